"""Vocabularies that are a part of another one: which tokens are in it, its tokeniser, and their ids in the other.

The tokeniser of a part keeps every rule of the whole one. A text that the whole one spells with pieces that are all in
the part is spelled alike by both: greedy longest matches, best paths and merges of lowest rank stay what they were when
only pieces are taken away that they did not use. V tokens of the part, W of the whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tinybert_ds.data.order import Ints
from tinybert_ds.data.tokenizer import special_ids, tokenizer_json
from tinybert_ds.errors import ConfigError
from tinybert_ds.foreign_text import listed

_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_RULES = ("normalizer", "pre_tokenizer")
_PIECES = ("vocab", "merges", "unk_id")  # of a model, what a part has other than the whole


def vocabulary_of(state: Mapping[str, Any]) -> dict[str, int]:
    """Return token -> id of the JSON of a tokeniser, added tokens included."""
    model = state["model"]["vocab"]
    own = dict(model) if isinstance(model, dict) else {piece: number for number, (piece, _) in enumerate(model)}
    return own | {token["content"]: token["id"] for token in state["added_tokens"]}


def needed_counts(state: Mapping[str, Any], counts: Ints) -> Ints:
    """Return how often each token is needed to spell a text, itself or, piece by piece, in the place of a longer one.

    A merge of BPE needs what it merges; a longer piece of the other kinds needs its characters once it is left out. So
    whatever is needed by a token is needed at least as often as that token.

    Args:
        state: The JSON of a tokeniser.
        counts: (W,) how often each token stands in a text.
    """
    vocabulary, total = vocabulary_of(state), counts.astype(np.int64)
    parts_of = _merged_parts(state["model"]) if state["model"]["type"] == "BPE" else _characters(state["model"])
    for token, number in vocabulary.items():
        if counts[number]:
            for part in parts_of(token):
                if part != token and part in vocabulary:
                    total[vocabulary[part]] += counts[number]
    return total


def always_kept(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Return the ids that every part keeps: special and added tokens, the unknown one, and bytes if there are any."""
    state = json.loads(tokenizer_json(tokenizer))
    vocabulary = vocabulary_of(state)
    kept = {int(token) for token in tokenizer.all_special_ids} | {token["id"] for token in state["added_tokens"]}
    model = state["model"]
    named = {model.get("unk_token")}
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        kept.add(model["unk_id"])
    if model.get("byte_fallback"):
        named |= set(_BYTES)
    if "ByteLevel" in json.dumps(state["pre_tokenizer"]):
        named |= set(pre_tokenizers.ByteLevel.alphabet())
    return kept | {vocabulary[token] for token in named if token in vocabulary}


def choose_tokens(state: Mapping[str, Any], needed: Ints, always: Iterable[int], keep: int) -> Ints:
    """Return the ids of the tokens of a part, ascending: those that are always kept, and the others most needed.

    Of those needed equally often the shorter ones win, which longer ones are made of, then lower ids. What no text
    needs is not taken.

    Args:
        state: The JSON of the whole tokeniser.
        needed: (W,) from `needed_counts`.
        always: From `always_kept`; no more than `keep`.
        keep: V, at most.
    """
    fixed = np.unique(np.fromiter(always, dtype=np.int64))
    assert len(fixed) <= keep, (len(fixed), keep)
    lengths = np.zeros(len(needed), dtype=np.int64)
    for token, number in vocabulary_of(state).items():
        lengths[number] = len(token)
    ranked = np.lexsort((lengths, -needed))
    ranked = ranked[(needed[ranked] > 0) & ~np.isin(ranked, fixed)]
    return np.sort(np.concatenate([fixed, ranked[: keep - len(fixed)]]))


def part_of(state: Mapping[str, Any], kept: Ints) -> dict[str, Any]:
    """Return the JSON of the tokeniser that has some tokens of another alone, numbered from 0 in their order.

    Args:
        state: The JSON of the whole tokeniser, without truncation and padding.
        kept: (V,) their ids, ascending; of BPE with all that their merges need.
    """
    numbers = {int(old): new for new, old in enumerate(kept)}
    model = dict(state["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: numbers[old] for token, old in model["vocab"].items() if old in numbers}
        model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    else:
        model["vocab"] = [piece for old, piece in enumerate(model["vocab"]) if old in numbers]
        model["unk_id"] = None if model.get("unk_id") is None else numbers[model["unk_id"]]
    if "merges" in model:
        own = set(model["vocab"])
        model["merges"] = [merge for merge in model["merges"] if own.issuperset(_made_of(merge))]
    added = [{**token, "id": numbers[token["id"]]} for token in state["added_tokens"] if token["id"] in numbers]
    processor = _renumbered(state["post_processor"], numbers)
    return {**state, "model": model, "added_tokens": added, "post_processor": processor}


def ids_in_whole(part: PreTrainedTokenizerFast, whole: PreTrainedTokenizerFast) -> NDArray[np.int64]:
    """Return the whole tokeniser's id of each token of a part of it, (V,).

    Raises:
        ConfigError: It is no part: another rule, or a token that the whole one has not or treats in another way.
    """
    own, other = (json.loads(tokenizer_json(tokenizer)) for tokenizer in (part, whole))
    if problem := _no_part(own, other):
        raise ConfigError(
            f"the tokeniser of {part.name_or_path} is neither that of {whole.name_or_path} nor a part of it: "
            f"{problem}. A student must read what its teacher reads: use the teacher's tokeniser files, say the casing "
            "with --do_lower_case or --no_lower_case, or let data_tools/trim_vocabulary.py make the part"
        )
    vocabulary, known = vocabulary_of(own), vocabulary_of(other)
    ids = np.full(max(vocabulary.values()) + 1, whole.pad_token_id or 0, dtype=np.int64)  # numbers without a token
    for token, number in vocabulary.items():
        ids[number] = known[token]
    templates = [special_ids(tokenizer) for tokenizer in (part, whole)]
    for name in ("cls", "sep", "pad", "prefix", "middle", "suffix"):
        found, wanted = (getattr(template, name) for template in templates)
        if not np.array_equal(ids[np.asarray(found, dtype=np.int64)], np.asarray(wanted, dtype=np.int64)):
            raise ConfigError(
                f"the tokeniser of {part.name_or_path} has other special tokens ({name}) than that of "
                f"{whole.name_or_path}; give a student's tokeniser that is a part of its teacher's"
            )
    return ids


def _no_part(own: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Say what keeps a tokeniser from being a part of another; None where nothing does."""
    for rule in _RULES:
        if own[rule] != other[rule]:
            return f"another {rule} (casing, accents, where words end)"
    models = [{key: value for key, value in state["model"].items() if key not in _PIECES} for state in (own, other)]
    if models[0] != models[1]:
        return f"{own['model']['type']} with other settings than the teacher's {other['model']['type']}"
    known = vocabulary_of(other)
    if missing := [token for token in vocabulary_of(own) if token not in known]:
        return f"{len(missing):,} of its tokens are not in the teacher's vocabulary, such as {listed(missing[:3])}"
    flags = {token["content"]: {**token, "id": 0} for token in other["added_tokens"]}
    if any(flags.get(token["content"]) != {**token, "id": 0} for token in own["added_tokens"]):
        return "its added tokens are others"
    return None if _spell_alike(own["model"], other["model"]) else "its pieces have other scores, or other merges"


def _spell_alike(own: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether what decides between two spellings of a word is the same for the pieces that both have."""
    if own["type"] == "Unigram":
        scores = dict(map(tuple, other["vocab"]))
        return all(scores[piece] == score for piece, score in own["vocab"])
    ranks = {_key(merge): rank for rank, merge in enumerate(other.get("merges", ()))}
    found = [ranks.get(_key(merge), -1) for merge in own.get("merges", ())]
    return all(rank >= 0 for rank in found) and all(earlier < later for earlier, later in pairwise(found))


def _characters(model: Mapping[str, Any]) -> Callable[[str], list[str]]:
    """What gives the characters of a piece, each as a piece of its own, marked as inside a word where it is."""
    prefix = model.get("continuing_subword_prefix") or ""

    def split(token: str) -> list[str]:
        inside = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
        text = token.removeprefix(prefix) if inside else token
        return [f"{prefix if place or inside else ''}{character}" for place, character in enumerate(text)]

    return split


def _merged_parts(model: Mapping[str, Any]) -> Callable[[str], list[str]]:
    """What gives all pieces that BPE has on its way to a piece, its characters first."""
    ranks = {_key(merge): rank for rank, merge in enumerate(model["merges"])}
    suffix = model.get("end_of_word_suffix") or ""

    def merge(token: str) -> list[str]:
        text = token.removesuffix(suffix)
        symbols = list(text)
        if suffix and text != token and symbols:
            symbols[-1] += suffix
        passed = list(symbols)
        while True:
            pairs = [(ranks[pair], place) for place, pair in enumerate(pairwise(symbols)) if pair in ranks]
            if not pairs:
                return passed
            _, place = min(pairs)
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
            passed.append(symbols[place])

    return merge


def _key(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _made_of(merge: Any) -> tuple[str, str, str]:
    left, right = _key(merge)
    return left, right, left + right


def _renumbered(processor: Any, numbers: Mapping[int, int]) -> Any:
    """A post-processor's JSON with the new ids of its special tokens."""
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_renumbered(inner, numbers) for inner in processor["processors"]]}
    changed = dict(processor)
    for name in ("cls", "sep"):  # of BERT's and RoBERTa's own
        if name in changed:
            token, old = changed[name]
            changed[name] = [token, numbers[old]]
    if "special_tokens" in changed:  # of a template
        changed["special_tokens"] = {
            name: {**token, "ids": [numbers[old] for old in token["ids"]]}
            for name, token in changed["special_tokens"].items()
        }
    return changed


def load_state(state: Mapping[str, Any]) -> Tokenizer:
    """Return the tokeniser of a JSON."""
    return Tokenizer.from_str(json.dumps(state))
