"""Whether a tokeniser's ids are what a model's embeddings are numbered by, and how much of a text it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tinybert_ds.errors import DataError, ModelError
from tinybert_ds.foreign_text import listed, quoted
from tinybert_ds.strict_formats import parse_json

LARGEST_UNKNOWN_SHARE = 0.5
NOTABLE_UNKNOWN_SHARE = 0.05
_BYTE_ORDER_MARK = "\ufeff"


def check_ids(tokenizer: Any, directory: Path, vocab_size: Any) -> None:
    """Refuse a tokeniser two of whose tokens share an id, or whose ids are not those of the model's embeddings.

    transformers gives a special token that the vocabulary lacks a number of its own, which may be that of a word, or of
    no embedding at all.

    Args:
        vocab_size: What the config.json in the directory says, if it says anything.

    Raises:
        ModelError: Names the token.
    """
    vocabulary: dict[str, int] = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    size = vocab_size if isinstance(vocab_size, int) else None
    if not (directory / "tokenizer.json").is_file():
        _check_vocabulary_file(tokenizer, directory / "vocab.txt", size)
    owners: dict[int, str] = {}
    for token, number in sorted(vocabulary.items()):
        other = owners.setdefault(number, token)
        if other != token:
            raise ModelError(
                f"the tokeniser in {str(directory)!r} gives the id {number} to two tokens, {quoted(other)} and "
                f"{quoted(token)}; give each a line of its own in the vocabulary, or fetch the tokeniser files again"
            )
    token, highest = max(vocabulary.items(), key=lambda item: item[1])
    # Without a model beside it, a vocabulary with more gaps than tokens is taken for a damaged one.
    limit = 2 * len(vocabulary) + 1000 if size is None else size
    if highest >= limit:
        known = f"holds {len(vocabulary)} tokens" if size is None else f"has embeddings for {size} (vocab_size)"
        raise ModelError(
            f"the tokeniser in {str(directory)!r} gives the token {quoted(token)} the id {highest}, but "
            f"{'its vocabulary' if size is None else 'the config.json beside it'} {known}; give the tokeniser files "
            "that belong to the model, or those of the model that they belong to"
        )


def _check_vocabulary_file(tokenizer: Any, file: Path, size: int | None) -> None:
    if not file.is_file():
        return
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # and at no other character: some are tokens
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{str(file)!r} cannot be read as UTF-8 ({error}); fetch it again") from error
    lines = lines[:-1] if not lines[-1] else lines
    if lines and lines[0].startswith(_BYTE_ORDER_MARK):
        raise ModelError(
            f"{str(file)!r} begins with a byte-order mark, which becomes a part of its first token "
            f"{quoted(lines[0].removeprefix(_BYTE_ORDER_MARK))}; save the file as UTF-8 without one"
        )
    if lines and not lines[-1].strip() and (size is None or len(lines) > size):
        raise ModelError(
            f"{str(file)!r} ends with a blank line, which counts as a token without an embedding; remove the blank "
            "lines at its end"
        )
    stated = {*lines, *_added_tokens(file.parent)}
    missing = [token for token in tokenizer.special_tokens_map.values() if token not in stated]
    if missing:
        raise ModelError(
            f"{str(file)!r} lacks the special token{'s' * (len(missing) > 1)} {listed(missing)}, which would get "
            "numbers that the model's embeddings do not have for them; give the vocab.txt of the model, with each of "
            "them in its line, or its tokenizer.json"
        )


def _added_tokens(directory: Path) -> set[str]:
    """The tokens that files beside the vocabulary give ids to."""
    found: set[str] = set()
    for name, read in (
        ("added_tokens.json", lambda content: content.keys()),
        ("tokenizer_config.json", lambda content: [t["content"] for t in content["added_tokens_decoder"].values()]),
    ):
        try:
            found.update(read(parse_json((directory / name).read_bytes())))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # not there, or without any
            continue
    return found


def unknown_id(backend: Tokenizer) -> int | None:
    """Return the id that a tokeniser's model gives to what it does not know; None where it knows everything."""
    model = json.loads(backend.to_str())["model"]
    if model["type"] == "Unigram":
        return model.get("unk_id")
    token = model.get("unk_token")
    return None if token is None else backend.token_to_id(token)


def count_unknown(tokens: NDArray[np.integer], unknown: int | None) -> int:
    """How many of some ids are the unknown token's."""
    return 0 if unknown is None else int(np.count_nonzero(tokens == unknown))


def describe_unknown(unknown: int, tokens: int) -> str:
    """Say what share of the tokens of a text is unknown."""
    return f"{unknown:,} of {tokens:,} tokens are unknown to the tokeniser ({unknown / max(tokens, 1):.1%})"


def judge_unknown(unknown: int, tokens: int, *, text: str, allowed: bool) -> str | None:
    """Judge how much of a text a tokeniser does not know.

    Args:
        tokens: All tokens of the text, special ones not counted.
        text: What it is, for the message.
        allowed: Whether the user wants it so (`--allow_unknown`).

    Returns:
        A warning above a share of 5 %, else None.

    Raises:
        DataError: A share above 50 %, unless that is allowed.
    """
    share = unknown / max(tokens, 1)
    if share > LARGEST_UNKNOWN_SHARE and not allowed:
        raise DataError(
            f"{text}: {describe_unknown(unknown, tokens)}, so hardly anything could be learned from it; is it the "
            "tokeniser of this language and script? Give the right model, or --allow_unknown to go on all the same"
        )
    if share > NOTABLE_UNKNOWN_SHARE:
        return f"{text}: {describe_unknown(unknown, tokens)}; is it the tokeniser of this language and script?"
    return None
