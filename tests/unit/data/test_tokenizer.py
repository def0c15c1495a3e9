from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.support.models import VOCABULARY, write_tokenizer
from tinybert_ds.data.tokenizer import load_tokenizer, special_ids, tokenizer_fingerprint, tokenizer_json
from tinybert_ds.errors import ModelError


@pytest.fixture
def packaged(tmp_path: Path) -> Path:
    """vocab.txt, tokenizer.json and tokenizer_config.json."""
    write_tokenizer(tmp_path / "packaged")
    return tmp_path / "packaged"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Only a vocab.txt, and a config.json without model_type, as the published TinyBERTs have."""
    directory = tmp_path / "bare"
    directory.mkdir()
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    (directory / "config.json").write_text("{}", encoding="utf-8")
    return directory


def write_roberta(directory: Path) -> Path:
    """A byte-level BPE without merges, with RoBERTa's template."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    tokenizer.save_pretrained(directory)
    return directory


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)


def test_a_packaged_tokenizer_keeps_its_casing(packaged):
    assert tokens_of(load_tokenizer(packaged, None), "The CITY") == ["the", "city"]


def test_the_flag_overrides_the_casing_that_the_directory_states(packaged):
    tokenizer = load_tokenizer(packaged, lower_case=False)
    assert tokens_of(tokenizer, "the CITY") == ["the", "[UNK]"]


def test_a_forced_casing_is_still_there_after_saving_and_loading(packaged, tmp_path):
    load_tokenizer(packaged, lower_case=False).save_pretrained(tmp_path / "saved")
    assert tokens_of(load_tokenizer(tmp_path / "saved", None), "the CITY") == ["the", "[UNK]"]


def test_a_tokenizer_json_alone_states_its_casing(packaged):
    state = json.loads((packaged / "tokenizer.json").read_text(encoding="utf-8"))
    state["normalizer"]["lowercase"] = False
    (packaged / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    (packaged / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    assert tokens_of(load_tokenizer(packaged, None), "the CITY") == ["the", "[UNK]"]


def test_a_bare_vocabulary_is_refused_until_a_flag_states_the_casing(bare):
    with pytest.raises(ModelError, match=r"--do_lower_case .* --no_lower_case"):
        load_tokenizer(bare, None)
    assert tokens_of(load_tokenizer(bare, True), "The CITY") == ["the", "city"]
    assert tokens_of(load_tokenizer(bare, False), "the CITY") == ["the", "[UNK]"]


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "electra"])
def test_a_config_that_names_the_architecture_does_not_state_the_casing(bare, model_type):
    (bare / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    with pytest.raises(ModelError, match="casing"):
        load_tokenizer(bare, None)
    assert tokens_of(load_tokenizer(bare, False), "the CITY") == ["the", "[UNK]"]


def test_a_tokenizer_config_states_the_casing_of_a_bare_vocabulary(bare):
    (bare / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    (bare / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    assert tokens_of(load_tokenizer(bare, None), "the CITY") == ["the", "[UNK]"]


def test_packaged_truncation_and_padding_are_switched_off(packaged):
    backend = Tokenizer.from_file(str(packaged / "tokenizer.json"))
    plain = tokenizer_fingerprint(load_tokenizer(packaged, None))
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(packaged / "tokenizer.json"))
    tokenizer = load_tokenizer(packaged, None)
    assert len(tokenizer("the " * 50).input_ids) == 52
    assert tokenizer_fingerprint(tokenizer) == plain


def test_the_fingerprint_does_not_depend_on_the_file_format(packaged, bare):
    assert tokenizer_fingerprint(load_tokenizer(packaged, None)) == tokenizer_fingerprint(load_tokenizer(bare, True))


def test_the_fingerprint_tells_casings_and_vocabularies_apart(packaged, tmp_path):
    other = tmp_path / "other"
    swapped = [*VOCABULARY[:-2], VOCABULARY[-1], VOCABULARY[-2]]
    write_tokenizer(other, vocabulary=swapped)
    prints = {
        tokenizer_fingerprint(load_tokenizer(packaged, True)),
        tokenizer_fingerprint(load_tokenizer(packaged, False)),
        tokenizer_fingerprint(load_tokenizer(other, True)),
    }
    assert len(prints) == 3


def test_a_fingerprint_leaves_the_tokenizer_as_it_is(packaged):
    tokenizer = load_tokenizer(packaged, None)
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer_fingerprint(tokenizer)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 7
    assert json.loads(tokenizer_json(tokenizer))["truncation"] is None


def test_special_ids_of_bert(packaged):
    special = special_ids(load_tokenizer(packaged, None))
    assert (special.pad, special.cls, special.sep, special.mask) == (0, 2, 3, 4)
    assert (special.prefix, special.middle, special.suffix) == ((2,), (3,), (3,))
    assert special.vocab_size == len(VOCABULARY)
    assert special.all_special == (0, 1, 2, 3, 4)


def test_special_ids_of_roberta_have_two_separators_between_the_segments(tmp_path):
    special = special_ids(load_tokenizer(write_roberta(tmp_path), None))
    assert (special.cls, special.pad, special.sep, special.mask) == (0, 1, 2, 4)
    assert (special.prefix, special.middle, special.suffix) == ((0,), (2, 2), (2,))


def test_lower_casing_can_be_forced_on_a_tokenizer_without_a_normaliser(tmp_path):
    write_roberta(tmp_path)
    assert tokens_of(load_tokenizer(tmp_path, None), "Ab") == ["A", "b"]
    assert tokens_of(load_tokenizer(tmp_path, True), "Ab") == ["a", "b"]


def test_a_tokenizer_without_separator_is_refused(tmp_path):
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cls_token, sep_token, pad_token"):
        special_ids(load_tokenizer(tmp_path, None))


def test_a_missing_directory_an_empty_one_and_a_broken_file_are_refused(tmp_path, packaged):
    with pytest.raises(ModelError, match="not a directory"):
        load_tokenizer("bert-base-uncased", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"none of tokenizer\.json"):
        load_tokenizer(tmp_path / "empty", None)
    broken = shutil.copytree(packaged, tmp_path / "broken")
    (broken / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="not a JSON file"):
        load_tokenizer(broken, None)
