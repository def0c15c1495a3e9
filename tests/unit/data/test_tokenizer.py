from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.support.families import TOKENIZERS
from tests.support.models import VOCABULARY, tiny_config, write_tokenizer
from tinybert_ds.data import tokenizer as tokenizer_module
from tinybert_ds.data.tokenizer import (
    load_tokenizer,
    returns_token_types,
    special_ids,
    tokenizer_fingerprint,
    tokenizer_json,
)
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


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


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


@pytest.mark.parametrize(("name", "cased"), [("BertTokenizer", False), ("PreTrainedTokenizerFast", True)])
def test_without_a_flag_the_casing_is_what_transformers_makes_of_the_directory(packaged, name, cased):
    # A class with a setting of its own goes by its default where nothing states it, whatever tokenizer.json says.
    state = json.loads((packaged / "tokenizer.json").read_text(encoding="utf-8"))
    state["normalizer"]["lowercase"] = False
    (packaged / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    (packaged / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}), encoding="utf-8")
    tokens = tokens_of(load_tokenizer(packaged, None), "the CITY")
    assert tokens == tokens_of(AutoTokenizer.from_pretrained(packaged), "the CITY")
    assert tokens == ["the", "[UNK]" if cased else "city"]


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


@pytest.mark.parametrize("name", ["xlm-roberta", "big_bird"])
def test_a_stated_casing_that_a_class_has_no_setting_for_does_not_count_as_in_transformers(tmp_path, name):
    TOKENIZERS[name]().save_pretrained(tmp_path)
    change_json(tmp_path / "tokenizer_config.json", do_lower_case=True)
    assert (
        load_tokenizer(tmp_path, None)("the CITY").input_ids
        == AutoTokenizer.from_pretrained(tmp_path)("the CITY").input_ids
    )
    assert load_tokenizer(tmp_path, None).unk_token_id in load_tokenizer(tmp_path, None)("the CITY").input_ids


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "roberta"])
@pytest.mark.parametrize("lower_case", [True, False])
def test_a_forced_casing_stays_when_transformers_loads_what_was_saved(tmp_path, name, lower_case):
    TOKENIZERS[name]().save_pretrained(tmp_path / "in")
    tokenizer = load_tokenizer(tmp_path / "in", lower_case)
    tokenizer.save_pretrained(tmp_path / "out")
    tiny_config("roberta" if name == "xlm-roberta" else "bert", vocab_size=400).save_pretrained(tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("the CITY").input_ids == tokenizer("the CITY").input_ids
    assert (tokenizer("the CITY").input_ids == tokenizer("the city").input_ids) is lower_case
    assert again.model_input_names == tokenizer.model_input_names
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert returns_token_types(again) == returns_token_types(TOKENIZERS[name]())


@pytest.mark.parametrize(
    ("name", "returned"),
    [("bert", True), ("generic with types", True), ("generic", False), ("albert", False), ("xlm-roberta", False)],
)
def test_token_types_are_returned_where_transformers_returns_them(tmp_path, name, returned):
    TOKENIZERS[name]().save_pretrained(tmp_path)
    assert returns_token_types(load_tokenizer(tmp_path, None)) is returned
    assert ("token_type_ids" in AutoTokenizer.from_pretrained(tmp_path)("a", "a")) is returned


def test_a_damaged_or_newer_tokenizer_json_is_refused_with_the_installed_version(packaged):
    state = json.loads((packaged / "tokenizer.json").read_text(encoding="utf-8"))
    (packaged / "tokenizer.json").write_text(json.dumps({**state, "model": {"type": "Novel"}}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"newer version of the library than the installed tokenizers \d"):
        load_tokenizer(packaged, None)


def test_a_tokeniser_file_that_git_lfs_left_as_a_pointer_is_refused_with_how_to_fetch_it(packaged):
    (packaged / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(ModelError, match=r"tokenizer\.json is a pointer of Git LFS.*lfs pull"):
        load_tokenizer(packaged, None)


SENTENCEPIECE = {
    "deberta-v2": "spm.model",
    "rembert": "sentencepiece.model",
    "albert": "spiece.model",
    "xlm-roberta": "sentencepiece.bpe.model",
}


@pytest.mark.parametrize("model_type", SENTENCEPIECE)
def test_a_sentencepiece_model_is_read_where_the_library_is_there(tmp_path, model_type):
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs pip install sentencepiece")
    stream = io.BytesIO()
    special = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "user_defined_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
    texts = iter([f"the {word} was good" for word in VOCABULARY if word.isalpha()] * 4)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=stream, vocab_size=64, minloglevel=2, **special
    )
    (tmp_path / SENTENCEPIECE[model_type]).write_bytes(stream.getvalue())
    tiny_config(model_type, vocab_size=128).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, None)
    ids = tokenizer("the film was good").input_ids
    assert ids == AutoTokenizer.from_pretrained(tmp_path)("the film was good").input_ids
    assert tokenizer.unk_token_id not in ids


def test_a_vocabulary_file_that_the_tokenisers_class_does_not_read_is_refused_with_the_one_it_reads(tmp_path):
    # transformers makes a tokeniser of special tokens alone
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    tiny_config("albert").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"AlbertTokenizer.* spiece\.model or tokenizer\.json.* it has vocab\.txt"):
        load_tokenizer(tmp_path, True)


@pytest.mark.parametrize("model_type", SENTENCEPIECE)
def test_a_sentencepiece_model_without_the_library_is_refused_with_its_name(tmp_path, monkeypatch, model_type):
    monkeypatch.setattr(tokenizer_module, "find_spec", lambda _: None)
    name = SENTENCEPIECE[model_type]
    (tmp_path / name).write_bytes(b"\x0a\x0e")
    tiny_config(model_type).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"{name} is read with the library sentencepiece: pip install"):
        load_tokenizer(tmp_path, None)


def test_the_tokeniser_of_the_old_sentence_transformers_layout_is_found(packaged, tmp_path):
    tiny_config().save_pretrained(packaged)
    packaged.rename(tmp_path / "0_Transformer")
    (tmp_path / "modules.json").write_text('[{"idx": 0, "path": "0_Transformer"}, {"idx": 1, "path": "1_Pooling"}]')
    assert tokens_of(load_tokenizer(tmp_path, None), "The CITY") == ["the", "city"]
