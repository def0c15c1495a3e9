"""Texts that a benchmark's readers put together of several values of a row, before it is a row of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import shown

Object = Mapping[str, Any]


def joined_keywords(item: Object, place: str) -> Object:
    """The keywords of a paper (CSL) as one text, with a space between two."""
    words = item.get("keyword")
    if isinstance(words, str):
        return item
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{place}, column 'keyword': {shown(repr(words))}; a list of words is expected, as CSL has it")
    return {**item, "keyword": " ".join(words)}


def marked_spans(item: Object, place: str) -> Object:
    """The text of a row of CLUEWSC2020 with _ around the noun and [ ] around the pronoun.

    Both are parts of the text, with their first characters' places from 0.
    """
    target, text = item.get("target"), item.get("text")
    try:
        spans = [(target[f"span{n}_text"], int(target[f"span{n}_index"]), marks) for n, marks in ((1, "__"), (2, "[]"))]  # type: ignore[index]
        found = [str(text)[begin : begin + len(span)] for span, begin, _ in spans]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{place}: no target with span1_text, span1_index, span2_text and span2_index, as CLUEWSC2020 has it"
        ) from error
    wrong = [(span, begin) for (span, begin, _), inside in zip(spans, found, strict=True) if span != inside]
    if wrong or not isinstance(text, str):
        span, begin = wrong[0] if wrong else ("", 0)
        raise DataError(
            f"{place}, column 'target': {shown(repr(span))} does not stand at character {begin} of the text"
        )
    for span, begin, marks in sorted(spans, key=lambda item: -item[1]):  # from behind, so that places stay right
        text = f"{text[:begin]}{marks[0]}{span}{marks[1]}{text[begin + len(span) :]}"
    return {**item, "text": text}


FORMS: Mapping[str, Callable[[Object, str], Object]] = {
    "joined_keywords": joined_keywords,
    "marked_spans": marked_spans,
}
"""What a task may name; files whose rows are no objects hold the texts already, such as augmented ones."""
