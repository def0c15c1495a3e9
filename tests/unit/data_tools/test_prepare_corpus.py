"""The command from text to a finished corpus, and everything that must stop it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data_tools import prepare_corpus
from data_tools.corpus_directory import IDENTITY_NAME, WORK_DIRECTORY, WorkDirectory
from data_tools.prepare_corpus import main
from tests.support.models import WORDS, write_tokenizer
from tinybert_ds.data.manifest import MANIFEST_NAME, Sampling, open_corpus
from tinybert_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from tinybert_ds.errors import ConfigError, DataError, ModelError

SCRIPT = Path(prepare_corpus.__file__).with_name("pregenerate_training_data.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(directory)
    return directory


def story(documents: int = 30, first: int = 0) -> str:
    """Documents of 4 sentences of 6 known words."""
    words = [word for word in WORDS if not word.startswith("##")]
    lines = []
    for document in range(first, first + documents):
        for sentence in range(4):
            start = document * 7 + sentence * 3
            lines.append(" ".join(words[(start + place) % len(words)] for place in range(6)))
        lines.append("")
    return "\n".join(lines)


@pytest.fixture
def texts(tmp_path) -> list[Path]:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(story(), encoding="utf-8")
    (folder / "b.txt.gz").write_bytes(gzip.compress(story(20, first=30).encode()))
    return [folder / "a.txt", folder / "b.txt.gz"]


def arguments(model: Path, texts: list[Path], output: Path, *more: str) -> list[str]:
    return ["--train_corpus", *map(str, texts), "--bert_model", str(model), "--output_dir", str(output), *more]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def corpus_tokens(directory: Path) -> list[list[list[int]]]:
    """Documents as sentences as ids."""
    documents = []
    for shard in open_corpus(directory).shards:
        ends = shard.offsets // shard.tokens.itemsize + shard.lengths
        for begin, end in zip(shard.documents[:-1], shard.documents[1:], strict=True):
            documents.append([shard.tokens[ends[s] - shard.lengths[s] : ends[s]].tolist() for s in range(begin, end)])
    return documents


def test_shards_hold_the_ids_of_the_hugging_face_tokenizer_document_by_document(model, texts, tmp_path, capsys):
    main(arguments(model, texts, tmp_path / "out"))
    tokenizer = load_tokenizer(model, None)
    documents = [text.split("\n") for text in story(50).strip().split("\n\n")]
    expected = [[tokenizer(line, add_special_tokens=False).input_ids for line in lines] for lines in documents]
    assert corpus_tokens(tmp_path / "out") == expected
    assert sorted(contents(tmp_path / "out")) == [
        MANIFEST_NAME,
        "shard-00000-00000.bin",
        "shard-00000-00000.idx",
        "tokenizer.json",
    ]
    assert "50 documents, 200 sentences, 1,200 tokens in 1 shard" in capsys.readouterr().out


def test_the_manifest_names_tokenizer_inputs_ranges_and_sampling(model, texts, tmp_path):
    flags = ["--max_seq_len", "64", "--short_seq_prob", "0.2", "--masked_lm_prob", "0.15"]
    flags += ["--max_predictions_per_seq", "9", "--do_whole_word_mask", "--one_seq", "--shard_bytes", "500"]
    main(arguments(model, texts, tmp_path / "out", *flags))
    manifest = open_corpus(tmp_path / "out").manifest
    assert manifest.tokenizer_fingerprint == tokenizer_fingerprint(load_tokenizer(model, None))
    assert manifest.sampling == Sampling(64, 0.2, 0.15, 9, True, True)
    assert list(manifest.inputs) == ["a.txt", "b.txt.gz"]
    assert manifest.text_bytes == len(story()) + len(story(20, first=30))
    ranges = [(source.name, source.begin, source.end) for shard in manifest.shards for source in shard.sources]
    blank_lines = [len(story(number)) for number in range(1, 30)]
    ends = [next(place for place in blank_lines if place >= 500 * part) + 1 for part in (1, 2, 3)]
    assert ranges[:3] == [("a.txt", 0, ends[0]), ("a.txt", ends[0], ends[1]), ("a.txt", ends[1], ends[2])]
    text_end = next(number for number, (name, _, _) in enumerate(ranges) if name == "b.txt.gz")
    assert ranges[text_end - 1][2] == len(story())
    assert ranges[text_end][1] == 0
    assert ranges[-1][2] == len(story(20, first=30))
    assert manifest.documents == 50


@pytest.mark.parametrize("shard_bytes", ["16", "500", "100000"])
def test_shards_are_cut_at_documents_and_hold_the_same_text(model, texts, tmp_path, shard_bytes):
    main(arguments(model, texts, tmp_path / "one"))
    main(arguments(model, texts, tmp_path / "cut", "--shard_bytes", shard_bytes))
    assert corpus_tokens(tmp_path / "cut") == corpus_tokens(tmp_path / "one")
    shards = open_corpus(tmp_path / "cut").manifest.shards
    assert len(shards) == {"16": 50, "500": 12, "100000": 1}[shard_bytes]


def test_units_make_no_difference_to_the_bytes(model, texts, tmp_path, monkeypatch):
    main(arguments(model, texts, tmp_path / "one", "--shard_bytes", "300"))
    monkeypatch.setattr("data_tools.text_input.UNIT_BYTES", 100)
    main(arguments(model, texts, tmp_path / "many", "--shard_bytes", "300"))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_workers_and_the_order_of_the_arguments_make_no_difference_to_the_bytes(model, texts, tmp_path, monkeypatch):
    main(arguments(model, texts, tmp_path / "one", "--shard_bytes", "300"))
    monkeypatch.setattr("data_tools.text_input.UNIT_BYTES", 1000)
    main(arguments(model, texts[::-1], tmp_path / "two", "--shard_bytes", "300", "--num_workers", "2"))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_casing_flags_reach_the_tokenizer(model, tmp_path):
    (tmp_path / "a.txt").write_text("The City was not bad\n", encoding="utf-8")
    main(arguments(model, [tmp_path / "a.txt"], tmp_path / "cased", "--no_lower_case"))
    main(arguments(model, [tmp_path / "a.txt"], tmp_path / "uncased", "--do_lower_case"))
    assert corpus_tokens(tmp_path / "cased") != corpus_tokens(tmp_path / "uncased")


def test_prose_is_split_into_sentences_on_demand(model, tmp_path):
    (tmp_path / "a.txt").write_text("The city was good. We liked it!\n", encoding="utf-8")
    main(arguments(model, [tmp_path / "a.txt"], tmp_path / "lines"))
    main(arguments(model, [tmp_path / "a.txt"], tmp_path / "split", "--split_sentences"))
    assert [len(document) for document in corpus_tokens(tmp_path / "lines")] == [1]
    assert [len(document) for document in corpus_tokens(tmp_path / "split")] == [2]


def test_flags_without_meaning_are_accepted_and_said_once(model, texts, tmp_path, capsys):
    main(arguments(model, texts, tmp_path / "out", "--reduce_memory", "--epochs_to_generate", "3", "--local_rank=0"))
    printed = capsys.readouterr().out
    assert printed.count("--reduce_memory has no effect") == 1
    assert printed.count("--epochs_to_generate has no effect") == 1


def test_a_finished_corpus_is_left_alone(model, texts, tmp_path, capsys):
    out = tmp_path / "out"
    main(arguments(model, texts, out))
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    main(arguments(model, texts, out, "--num_workers", "2"))
    assert "nothing to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (["--max_seq_len", "64"], "max_seq_len is 128 there and 64 now"),
        (["--split_sentences"], "split_sentences is False there and True now"),
        (["--no_lower_case"], "tokeniser is"),
    ],
)
def test_a_finished_corpus_of_other_options_is_refused(model, texts, tmp_path, more, difference):
    main(arguments(model, texts, tmp_path / "out"))
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=difference):
        main(arguments(model, texts, tmp_path / "out", *more))
    assert contents(tmp_path / "out") == before


def test_a_finished_corpus_of_other_text_is_refused(model, texts, tmp_path):
    main(arguments(model, texts, tmp_path / "out"))
    texts[0].write_text(story(29), encoding="utf-8")
    with pytest.raises(DataError, match="made of other text"):
        main(arguments(model, texts, tmp_path / "out"))


def test_foreign_files_are_refused_and_left_alone(model, texts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "shard-00000.bin").write_bytes(b"of another tool")
    with pytest.raises(ConfigError, match=r"not of this corpus: shard-00000\.bin"):
        main(arguments(model, texts, out))
    assert contents(out) == {"shard-00000.bin": b"of another tool"}


def test_what_a_killed_run_left_is_replaced(model, texts, tmp_path):
    main(arguments(model, texts, tmp_path / "good"))
    out = tmp_path / "out"
    (out / WORK_DIRECTORY).mkdir(parents=True)
    names = ["shard-00000-00000.bin.tmp", "shard-00000-00007.idx", ".manifest.json.12.tmp", "tokenizer.json"]
    names += [f"{WORK_DIRECTORY}/input-00000.json", f"{WORK_DIRECTORY}/shard-00000-00000.json"]
    for name in names:
        (out / name).write_bytes(b'{"torn": ')
    main(arguments(model, texts, out))
    assert contents(out) == contents(tmp_path / "good")


def test_an_empty_corpus_is_refused_and_leaves_nothing_behind(model, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n \n", encoding="utf-8")
    with pytest.raises(DataError, match="the corpus is empty"):
        main(arguments(model, [tmp_path / "a.txt"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_text_that_is_not_utf8_is_refused_and_gives_no_corpus(model, texts, tmp_path):
    (tmp_path / "z.txt").write_bytes(b"the city\nthe \xe9\n")
    with pytest.raises(DataError, match=r"z\.txt' is not UTF-8: byte 0xe9 at offset 13 of the text, line 2"):
        main(arguments(model, [*texts, tmp_path / "z.txt"], tmp_path / "out"))
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    (tmp_path / "z.txt").write_text("the city\nthe é\n", encoding="utf-8")
    main(arguments(model, [*texts, tmp_path / "z.txt"], tmp_path / "out"))
    assert open_corpus(tmp_path / "out").manifest.documents == 51


def test_records_given_as_text_are_refused_or_left_out_and_files_of_no_kind_are_named(model, texts, tmp_path, capsys):
    folder = texts[0].parent
    for name in ("c.txt", "d.txt"):
        (folder / name).write_text('{"text": "the film"}\n' * 3, encoding="utf-8")
    (folder / "e.csv").write_text("text\nthe film\n", encoding="utf-8")
    given = arguments(model, [folder], tmp_path / "out")
    with pytest.raises(
        DataError, match=r"2 problems:(.|\n)*c.txt' is given as plain text, but it holds JSON(.|\n)*d.txt"
    ):
        main(given)
    assert f"    {folder / 'e.csv'}\n" in capsys.readouterr().out
    main([*given, "--skip_bad_input"])
    documents = [text.split("\n") for text in story(50).strip().split("\n\n")]
    assert len(corpus_tokens(tmp_path / "out")) == len(documents)
    (listed,) = (tmp_path / "out").glob("skipped-*.txt")
    assert "it holds JSON, not prose" in listed.read_text(encoding="utf-8")


def test_a_directory_that_cannot_be_written_is_an_error_of_the_user(model, texts, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinybert_ds.data.indexed.ShardWriter.add_sentences", full)
    with pytest.raises(DataError, match=r"cannot write to .*No space left"):
        main(arguments(model, texts, tmp_path / "out"))
    monkeypatch.undo()
    main(arguments(model, texts, tmp_path / "out"))


def test_wrong_numbers_are_reported_together(model, texts, tmp_path):
    with pytest.raises(ConfigError) as raised:
        main(arguments(model, texts, tmp_path / "out", "--num_workers", "0", "--masked_lm_prob", "2"))
    assert "--num_workers is 0" in str(raised.value)
    assert "--masked_lm_prob is 2.0" in str(raised.value)


def test_a_directory_that_is_no_model_is_refused(texts, tmp_path):
    with pytest.raises(ModelError, match="has none of"):
        main(arguments(tmp_path, texts, tmp_path / "out"))


def test_abbreviated_and_contradicting_flags_are_refused_together(model, texts, tmp_path):
    flags = ["--max_seq", "3", "--do_lower_case", "--no_lower_case"]
    with pytest.raises(ConfigError, match=r"'--max_seq' \(did you mean --max_seq_len\?\)(.|\n)*--no_lower_case contra"):
        main(arguments(model, texts, tmp_path / "out", *flags))


def test_the_same_run_gives_the_same_manifest_wherever_the_files_lie(model, texts, tmp_path):
    main(arguments(model, texts, tmp_path / "one"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copies = [elsewhere / path.name for path in texts]
    for path, copy in zip(texts, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    main(arguments(model, copies, tmp_path / "two"))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert str(tmp_path) not in json.dumps((tmp_path / "two" / MANIFEST_NAME).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "content", ["{", '{"identity": 3, "part_bytes": 9}', '{"identity": {}, "part_bytes": 0}', "[" * 9000]
)
def test_a_damaged_record_of_unfinished_work_is_named_with_the_way_out(tmp_path, content):
    work = WorkDirectory(tmp_path)
    assert work.begin({"a": 1}, 10) == 10
    assert work.begin({"a": 1}, 20) == 10
    (work.path / IDENTITY_NAME).write_text(content)
    with pytest.raises(DataError, match=r"identity\.json' is damaged.*remove .*unfinished' to begin anew"):
        work.begin({"a": 1}, 10)


CHINESE = "\u7535\u5f71\u5f88\u597d\u770b "  # five characters, none of which the vocabulary has


@pytest.mark.parametrize("sentences", [3, 400])
def test_text_that_the_tokeniser_does_not_know_is_refused_unless_allowed(model, tmp_path, capsys, sentences):
    (tmp_path / "a.txt").write_text(story(2), encoding="utf-8")
    (tmp_path / "b.txt").write_text((CHINESE * 5 + "\n") * sentences, encoding="utf-8")
    command = arguments(model, [tmp_path / "b.txt", tmp_path / "a.txt"], tmp_path / "out")
    unknown, tokens = 25 * sentences, 25 * sentences + 48
    text = "the corpus" if sentences == 3 else r"a\.txt, b\.txt"  # a long shard is refused before all are written
    with pytest.raises(DataError, match=rf"{text}: {unknown:,} of {tokens:,} tokens are unknown .*--allow_unknown"):
        main(command)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    main([*command, "--allow_unknown"])
    assert open_corpus(tmp_path / "out").manifest.report == {"unknown tokens": unknown}
    assert f"warning: {unknown:,} of {tokens:,} tokens are unknown" in capsys.readouterr().out


def test_a_tenth_of_unknown_words_gives_a_warning(model, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(("the city was good and bad and long " + CHINESE[0] + "\n") * 20, encoding="utf-8")
    main(arguments(model, [tmp_path / "a.txt"], tmp_path / "out"))
    assert "warning: 20 of 180 tokens are unknown to the tokeniser (11.1%)" in capsys.readouterr().out
