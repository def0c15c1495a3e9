"""Tokenisers: loaded from a model directory with their casing stated, and compared by what they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

from tinybert_ds.errors import ModelError

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")

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
        lower_case: True or False forces the casing (`--do_lower_case`, `--no_lower_case`); None takes what the
            directory states.

    Raises:
        ModelError: not a directory, no tokeniser in it, an unreadable one, or a WordPiece vocabulary whose casing
            nothing states.
    """
    directory = Path(directory)
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
    wanted = _stated_casing(directory) if lower_case is None else lower_case
    if wanted is None and _is_bare_vocabulary(directory):
        raise ModelError(
            f"the casing of the tokeniser in {str(directory)!r} is unknown: it has a vocab.txt, but neither a "
            "tokenizer.json nor a tokenizer_config.json with do_lower_case. Give --do_lower_case for an uncased "
            "vocabulary or --no_lower_case for a cased one."
        )
    tokenizer = _load(directory, wanted)
    tokenizer.name_or_path = str(directory)
    if wanted is not None:
        _set_casing(tokenizer, wanted)
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
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        prefix=prefix,
        middle=middle,
        suffix=suffix,
        all_special=tuple(sorted({int(token) for token in tokenizer.all_special_ids})),
    )


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is not a JSON file: {error}. Fetch the model again.") from error
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
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"cannot load the tokeniser in {str(directory)!r}: {error}. Supported are tokenizer.json and vocab.txt; "
            "convert others with transformers' save_pretrained."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"the tokeniser in {str(directory)!r} is a {type(tokenizer).__name__}, which the tokenizers library does "
            "not run. Save it with a tokenizer.json."
        )
    return tokenizer


def _set_casing(tokenizer: PreTrainedTokenizerFast, lower_case: bool) -> None:
    """Make the normaliser lower-case, or not; the saved tokeniser says the same."""
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    changed = _with_casing(state["normalizer"], lower_case)
    if changed != state["normalizer"]:
        state["normalizer"] = changed
        backend.normalizer = Tokenizer.from_str(json.dumps(state)).normalizer
    tokenizer.init_kwargs["do_lower_case"] = lower_case
    tokenizer.do_lower_case = lower_case  # save_pretrained prefers the attribute where there is one


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
