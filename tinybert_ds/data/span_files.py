"""Files of questions about contexts, whose answers are spans of these: as SQuAD nests them, or a question an object.

Nested, an object has `paragraphs` with a context and `qas` each; flat, it has question and context itself. JSON,
Parquet and directories of `datasets` are read. Places are characters of the context.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tinybert_ds.data.object_records import field_text, find_value
from tinybert_ds.data.table_formats import file_format, read_objects
from tinybert_ds.data.task_spec import SplitFile
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import quoted, shown
from tinybert_ds.strict_formats import parse_json

logger = logging.getLogger(__name__)

QUESTIONS_AT_ONCE = 2048
_ANSWER = 'answers are {"text": [...], "answer_start": [...]} or a list of {"text": ..., "answer_start": ...}'


class Answer(NamedTuple):
    """A span of a context."""

    text: str
    begin: int  # its first character


class Question(NamedTuple):
    """A question of a file."""

    place: str  # file and record, and the question's id
    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None  # the first one is learned, all are right; () there is none, None: not said


def question_blocks(paths: Sequence[Path], layout: SplitFile) -> Iterator[tuple[Path, list[Question]]]:
    """Read the files of a split, some thousand questions after the other, with the file that they are from.

    An answer that does not stand where the file says is taken where it stands next; how many were is told.

    Raises:
        OSError: A file cannot be read.
        DataError: It is damaged, a question lacks something, an answer is not in its context, two questions have one
            id, or there is none; names file, record and question.
    """
    known: dict[str, str] = {}
    moved: list[str] = []
    for path in paths:
        questions = _questions(path, layout, moved)
        found = False
        while block := list(islice(questions, QUESTIONS_AT_ONCE)):
            found = True
            for question in block:
                if question.id in known:
                    raise DataError(
                        f"{question.place}: {known[question.id]} has the same id; predictions are written by id, so "
                        "give each question of a split its own"
                    )
                known[question.id] = question.place
            yield path, block
        if not found:
            raise DataError(f"{path} holds no question; give a file with at least one")
    if moved:
        logger.warning(
            "%s: %d answers do not stand where `answer_start` says, the first of %s; they are taken where they stand "
            "next to it",
            paths[-1] if len(paths) == 1 else f"the files up to {paths[-1]}",
            len(moved),
            moved[0],
        )


def first_span(question: Question) -> tuple[int, int]:
    """Return the characters of the answer that is learned, spaces around it left out; (-1, -1) where there is none."""
    if not question.answers:
        return -1, -1
    text, begin = question.answers[0]
    begin += len(text) - len(text.lstrip())
    return begin, begin + len(text.strip())


def _questions(path: Path, layout: SplitFile, moved: list[str]) -> Iterator[Question]:
    if file_format(path) not in ("json", "parquet", "dataset"):
        raise DataError(
            f"{path}: questions with spans of a context are read from .json, .jsonl (also .gz, .xz, .zst), .parquet, "
            "or a directory of `datasets`; convert the file"
        )
    objects = read_objects(path, layout.text_format)
    for number, item in objects.rows:
        place = f"{path}, {objects.unit} {number}"
        if "paragraphs" not in item:
            yield _question(item, item, str(number), place, layout, moved)
            continue
        for at, paragraph in enumerate(_objects(item["paragraphs"], "paragraphs", place), start=1):
            inside = f"{place}, paragraph {at}"
            for count, entry in enumerate(_objects(paragraph.get("qas"), "qas", inside), start=1):
                yield _question(entry, paragraph, f"{number}.{at}.{count}", inside, layout, moved)


def _objects(value: Any, name: str, place: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        found = "nothing" if value is None else shown(value, 100)
        raise DataError(f"{place}: {name} is a list of objects in a file like SQuAD's, found {found}")
    return value


def _question(
    item: Mapping[str, Any],
    around: Mapping[str, Any],
    number: str,
    place: str,
    layout: SplitFile,
    moved: list[str],
) -> Question:
    given = find_value(item, "id")
    name = number if given is None else field_text(given, "id", place, needed=True)
    place = f"{place}, question {quoted(name)}" if given is not None or around is not item else place
    names = [str(column) for column in layout.texts]
    question = field_text(find_value(item, names[0]), names[0], place, needed=True)
    context = field_text(find_value(around, names[1]), names[1], place, needed=True)
    value = find_value(item, str(layout.label))
    if value is None and find_value(item, "is_impossible") is True:
        value = []
    answers = None
    if value is not None:
        answers = tuple(_placed(answer, context, place, moved) for answer in _answers(value, place))
    elif layout.label_required and not layout.may_lack_label:
        raise DataError(
            f"{place}, column {quoted(str(layout.label))}: no answers; an empty list says that there is none"
        )
    return Question(place, name, question, context, answers)


def _answers(value: Any, place: str) -> list[Answer]:
    if isinstance(value, str):  # of a Parquet file that holds them as JSON
        with suppress(ValueError):  # which is told below
            value = parse_json(value)
    texts: Any = None
    begins: Any = None
    if isinstance(value, dict):
        texts, begins = value.get("text"), value.get("answer_start")
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        texts, begins = ([entry.get(key) for entry in value] for key in ("text", "answer_start"))
    if not isinstance(texts, list) or not isinstance(begins, list) or len(texts) != len(begins):
        raise DataError(f"{place}: {_ANSWER}; found {shown(value, 200)}")
    for text, begin in zip(texts, begins, strict=True):
        if not isinstance(text, str) or not text.strip() or not isinstance(begin, int) or isinstance(begin, bool):
            raise DataError(f"{place}: the answer {shown(text, 100)!r} at {shown(begin, 100)}; {_ANSWER}")
    return [Answer(text, begin) for text, begin in zip(texts, begins, strict=True)]


def _placed(answer: Answer, context: str, place: str, moved: list[str]) -> Answer:
    """The answer where its text stands in the context: where it is said to, else next to that."""
    text, begin = answer
    if begin >= 0 and context.startswith(text, begin):
        return answer
    begin = max(begin, 0)
    found = [at for at in (context.rfind(text, 0, begin + len(text)), context.find(text, begin)) if at >= 0]
    if not found:
        raise DataError(
            f"{place}: the answer {shown(text, 100)!r} is no part of its context; mend it, or remove the question"
        )
    moved.append(place)
    return Answer(text, min(found, key=lambda at: abs(at - begin)))
