from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools import inspect_shards, prepare_corpus
from tests.support.models import write_tokenizer
from tinybert_ds.data.manifest import read_manifest, write_manifest
from tinybert_ds.errors import DataError

TEXT = "the city was good .\nwe liked it .\n\na bad film .\nthey hated it .\n\nthe river .\n"


@pytest.fixture
def corpus(tmp_path) -> Path:
    write_tokenizer(tmp_path / "model")
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    arguments = ["--train_corpus", str(tmp_path / "a.txt"), "--bert_model", str(tmp_path / "model")]
    prepare_corpus.main([*arguments, "--output_dir", str(tmp_path / "out"), "--short_seq_prob", "0", "--one_seq"])
    return tmp_path / "out"


def test_counts_and_sources_are_printed(corpus, capsys):
    inspect_shards.main([str(corpus)])
    printed = capsys.readouterr().out
    assert "3 documents, 5 sentences, 20 tokens" in printed
    assert f"from a.txt[0:{len(TEXT)}]" in printed
    assert "0 of 20 tokens are unknown to the tokeniser (0.0%)" in printed


def test_the_share_of_unknown_tokens_is_printed_where_it_was_counted(corpus, capsys):
    manifest = read_manifest(corpus)
    write_manifest(corpus, replace(manifest, report={"unknown tokens": 3}))
    inspect_shards.main([str(corpus)])
    assert "warning: 3 of 20 tokens are unknown to the tokeniser (15.0%)" in capsys.readouterr().out
    write_manifest(corpus, replace(manifest, report={}))
    inspect_shards.main([str(corpus)])
    assert "were not counted" in capsys.readouterr().out


def test_samples_are_shown_as_text_with_their_special_tokens(corpus, capsys):
    inspect_shards.main([str(corpus), "--decode", "10"])
    assert sorted(capsys.readouterr().out.splitlines()[3:]) == [
        "[CLS] a bad film. [SEP] they hated it. [SEP]",
        "[CLS] the city was good. [SEP] we liked it. [SEP]",
        "[CLS] the river. [SEP]",
    ]


def test_verification_passes_on_an_intact_corpus(corpus, capsys):
    inspect_shards.main([str(corpus), "--verify"])
    assert "all 3 files are as they were written" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["shard-00000-00000.bin", "shard-00000-00000.idx", "tokenizer.json"])
def test_one_flipped_bit_is_found_and_its_file_named(corpus, name):
    content = bytearray((corpus / name).read_bytes())
    content[len(content) // 2 if name != "shard-00000-00000.idx" else 36] ^= 1
    (corpus / name).write_bytes(content)
    with pytest.raises(DataError, match=f"1 of 3 files .*{name}|{name}' is damaged"):
        inspect_shards.main([str(corpus), "--verify"])


@pytest.mark.slow
def test_the_command_exits_with_2_and_names_a_truncated_file(corpus):
    path = corpus / "shard-00000-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    script = Path(inspect_shards.__file__)
    ended = subprocess.run([sys.executable, str(script), str(corpus)], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "shard-00000-00000.bin' is damaged" in ended.stderr
    assert "Traceback" not in ended.stderr
