"""Tokenisers: loaded from a model directory with their casing stated, and compared by what they do."""

from __future__ import annotations

import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import xxhash
from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

from tinybert_ds.data.vocabulary import check_ids
from tinybert_ds.errors import ModelError
from tinybert_ds.models.directory import model_files, require_fetched
from tinybert_ds.models.foreign import in_short
from tinybert_ds.strict_formats import parse_json

SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "sentencepiece.model")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", *SENTENCEPIECE_FILES)

# Texts on which tokenisers with one vocabulary differ: casing, accents, Chinese characters, control characters,
# zero-width characters, full-width forms, ligatures, numbers, brackets that look like special tokens, spaces.
_PROBES = (
    "The QUICK Brown fox, jumped over Café Zürich's naïve façade; Ångström İstanbul ß",
    "中文字符 mixed with English\uff0c日本語のテキスト 한국어",
    "tab\tnewline\nnbsp\u00a0zwj\u200dzwsp\u200bbell\x07replacement\ufffdbom\ufeffsoft\u00adhyphen",
    "ﬁligature \uff26\uff35\uff2c\uff2c \uff57\uff49\uff44\uff54\uff48 e\u0301 \u00e9 3.14159 1,000 10% $5 #tag @user http://x.org/a_b",
    "  leading and   double spaces [MASK] <mask> [CLS] unaffable don't",
)


class SpecialIds(NamedTuple):
    """The special tokens of a tokeniser and where they stand around a sentence pair.

    A sample is prefix + A + suffix, or prefix + A + middle + B + suffix: BERT `[CLS] A [SEP] B [SEP]`, RoBERTa
    `<s> A </s></s> B </s>`.
    """

    cls: int
    sep: int
    pad: int
    mask: int | None
    vocab_size: int  # largest token id + 1
    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    all_special: tuple[int, ...]  # every id that is never masked and never drawn as a random replacement


def load_tokenizer(directory: str | Path, lower_case: bool | None) -> PreTrainedTokenizerFast:
    """The tokeniser of a model directory, with no truncation and no padding of its own.

    Args:
        directory: a Hugging Face model directory; nothing is ever looked up on a network.
        lower_case: True or False forces the casing (`--do_lower_case`, `--no_lower_case`); None leaves the tokeniser
            as transformers' AutoTokenizer gives it.

    Raises:
        ModelError: not a directory, no tokeniser in it, an unreadable one, a WordPiece vocabulary whose casing nothing
            states, or ids that are not each one token's, or that the model beside it has no embedding for.
    """
    directory = model_files(directory)
    if not directory.is_dir():
        raise ModelError(
            f"cannot load a tokeniser: {str(directory)!r} is not a directory. Names on a hub are not looked up: "
            "download the model and give its directory."
        )
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"cannot load a tokeniser: {str(directory)!r} has none of {', '.join(TOKENIZER_FILES)}. "
            "Copy the tokeniser files of the model into it."
        )
    require_fetched(directory / name for name in TOKENIZER_FILES if (directory / name).is_file())
    if lower_case is None and _is_bare_vocabulary(directory) and _stated_casing(directory) is None:
        raise ModelError(
            f"the casing of the tokeniser in {str(directory)!r} is unknown: it has a vocab.txt, but neither a "
            "tokenizer.json nor a tokenizer_config.json with do_lower_case. Give --do_lower_case for an uncased "
            "vocabulary or --no_lower_case for a cased one."
        )
    tokenizer = _load(directory, _stated_casing(directory) if lower_case is None else lower_case)
    tokenizer.name_or_path = str(directory)
    if lower_case is not None:
        tokenizer = _with_forced_casing(tokenizer, lower_case)
    check_ids(tokenizer, directory, _read_json(directory / "config.json").get("vocab_size"))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hexadecimal xxh3-128 of the token-to-id map and of what the tokeniser makes of texts that tell tokenisers apart.

    Truncation and padding settings, file formats and the tokeniser's class have no influence.
    """
    backend = _bare_copy(tokenizer)
    digest = xxhash.xxh3_128()
    digest.update(json.dumps(sorted(backend.get_vocab(with_added_tokens=True).items())).encode())
    for probe in _PROBES:
        digest.update(json.dumps(backend.encode(probe).ids).encode())
        digest.update(json.dumps(backend.encode(probe, probe).ids).encode())
    return digest.hexdigest()


def special_ids(tokenizer: PreTrainedTokenizerFast) -> SpecialIds:
    """The special token ids of a tokeniser and its templates for one sentence and for two.

    Raises:
        ModelError: no classification, separator or padding token, or a template that is not one of an encoder.
    """
    ids = {"cls": tokenizer.cls_token_id, "sep": tokenizer.sep_token_id, "pad": tokenizer.pad_token_id}
    missing = [f"{name}_token" for name, token_id in ids.items() if token_id is None]
    if missing:
        raise ModelError(
            f"the tokeniser {tokenizer.name_or_path!r} has no {', '.join(missing)}; a BERT-like encoder needs them. "
            "Add them to its tokenizer_config.json."
        )
    backend = _bare_copy(tokenizer)
    prefix, suffix = _template(backend.encode("a"), 1)
    pair_prefix, middle, pair_suffix = _template(backend.encode("a", "a"), 2)
    if not prefix or (prefix, suffix) != (pair_prefix, pair_suffix):
        raise ModelError(
            f"the tokeniser {tokenizer.name_or_path!r} puts {prefix} and {suffix} around one sentence, {pair_prefix}, "
            f"{middle} and {pair_suffix} around a pair; allowed are 'prefix A suffix' and 'prefix A middle B suffix' "
            "with one prefix and one suffix. Give the tokenizer.json of an encoder."
        )
    return SpecialIds(
        cls=int(ids["cls"]),
        sep=int(ids["sep"]),
        pad=int(ids["pad"]),
        mask=None if tokenizer.mask_token_id is None else int(tokenizer.mask_token_id),
        vocab_size=vocabulary_size(tokenizer),
        prefix=prefix,
        middle=middle,
        suffix=suffix,
        all_special=tuple(sorted({int(token) for token in tokenizer.all_special_ids})),
    )


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Largest token id + 1."""
    return max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def returns_token_types(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether transformers gives a model token types of this tokeniser that tell two texts apart.

    Some classes, such as ALBERT's, know which token belongs to which text and still do not say so unless asked: their
    models are used with type 0 everywhere. RoBERTa's template has one type.
    """
    return "token_type_ids" in tokenizer.model_input_names and any(_bare_copy(tokenizer).encode("a", "a").type_ids)


def tokenizer_json(tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokeniser as the text of a `tokenizer.json`, without truncation and padding."""
    return _bare_copy(tokenizer).to_str()


def _template(encoding: Encoding, sequences: int) -> list[tuple[int, ...]]:
    """The ids before the first sequence, between neighbours, and after the last one."""
    gaps, begin = [], 0
    for sequence in range(sequences):
        places = [place for place, owner in enumerate(encoding.sequence_ids) if owner == sequence]
        gaps.append(tuple(encoding.ids[begin : places[0]]))
        begin = places[-1] + 1
    return [*gaps, tuple(encoding.ids[begin:])]


def _bare_copy(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(path)!r} is not a JSON file: {in_short(error)}. Fetch the model again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{str(path)!r} holds a JSON {type(content).__name__}, not an object. Fetch the model again.")
    return content


def _is_bare_vocabulary(directory: Path) -> bool:
    return (directory / "vocab.txt").is_file() and not (directory / "tokenizer.json").is_file()


def _stated_casing(directory: Path) -> bool | None:
    """What tokenizer_config.json says, which transformers obeys first, or else the normaliser in tokenizer.json."""
    stated = _read_json(directory / "tokenizer_config.json").get("do_lower_case")
    if isinstance(stated, bool):
        return stated
    normalizer = _read_json(directory / "tokenizer.json").get("normalizer") or {}
    return normalizer.get("lowercase") if normalizer.get("type") == "BertNormalizer" else None


def _load(directory: Path, lower_case: bool | None) -> PreTrainedTokenizerFast:
    names_its_class = any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    if not names_its_class and _is_bare_vocabulary(directory):
        model_type = _read_json(directory / "config.json").get("model_type")
        if model_type in (None, "bert"):  # the published TinyBERT directories state no model_type
            return BertTokenizerFast(vocab=str(directory / "vocab.txt"), do_lower_case=bool(lower_case))
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare ones
        raise ModelError(
            f"cannot load the tokeniser in {str(directory)!r}: {in_short(error)}. {_what_to_do(directory)}"
        ) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # transformers made it without any vocabulary
        wanted = sorted(set(tokenizer.vocab_files_names.values()))
        found = [name for name in TOKENIZER_FILES if (directory / name).is_file()]
        raise ModelError(
            f"cannot load the tokeniser in {str(directory)!r}: its class, {type(tokenizer).__name__}, reads "
            f"{' or '.join(wanted)}, and the directory has none of them that holds words; it has {', '.join(found)}. "
            "Give the tokeniser files of the model."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"the tokeniser in {str(directory)!r} is a {type(tokenizer).__name__}, which the tokenizers library does "
            "not run. Save it with a tokenizer.json."
        )
    return tokenizer


def _what_to_do(directory: Path) -> str:
    """What helps where the files of a tokeniser are there and transformers cannot read them."""
    if (directory / "tokenizer.json").is_file():
        return (
            "tokenizer.json is damaged, or was written by a newer version of the library than the installed tokenizers "
            f"{tokenizers.__version__}: fetch it again, or pip install --upgrade tokenizers transformers."
        )
    found = [name for name in SENTENCEPIECE_FILES if (directory / name).is_file()]
    if found and find_spec("sentencepiece") is None:
        return f"{found[0]} is read with the library sentencepiece: pip install sentencepiece."
    return "Supported are tokenizer.json, vocab.txt and SentencePiece models; convert others with transformers."


def _with_forced_casing(tokenizer: PreTrainedTokenizerFast, lower_case: bool) -> PreTrainedTokenizerFast:
    """A tokeniser that lower-cases, or does not; saved and loaded by transformers, it does the same."""
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    changed = _with_casing(state["normalizer"], lower_case)
    if changed != state["normalizer"]:
        state["normalizer"] = changed
        backend.normalizer = Tokenizer.from_str(json.dumps(state)).normalizer
        if "do_lower_case" not in inspect.signature(type(tokenizer).__init__).parameters:
            # The class would build a normaliser of its own when it is loaded; the generic one takes that of the file.
            tokenizer = with_backend(tokenizer, backend)
    tokenizer.init_kwargs["do_lower_case"] = lower_case
    tokenizer.do_lower_case = lower_case  # save_pretrained prefers the attribute where there is one
    return tokenizer


def with_backend(tokenizer: PreTrainedTokenizerFast, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a tokeniser of the class that takes a backend as it is, with the special tokens of another one."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=tokenizer.model_input_names,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        name_or_path=tokenizer.name_or_path,
        **tokenizer.special_tokens_map,
    )


def _with_casing(normalizer: dict[str, Any] | None, lower_case: bool) -> dict[str, Any] | None:
    """The JSON of a normaliser that lower-cases, or does not: BERT's by its switch, others by a Lowercase step."""
    if normalizer is not None and normalizer["type"] == "BertNormalizer":
        return {**normalizer, "lowercase": lower_case}
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    kept = [step for step in steps if step["type"] != "Lowercase"]
    if lower_case:
        if len(kept) < len(steps):
            return normalizer
        kept = [{"type": "Lowercase"}, *kept]
    if len(kept) == len(steps):
        return normalizer
    return {"type": "Sequence", "normalizers": kept} if kept else None
