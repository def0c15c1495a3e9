"""What is odd about the rows of a split: told with counts, refused where it cannot be meant."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from tinybert_ds.data.table_formats import may_be_quoted
from tinybert_ds.data.task_spec import SplitFile, TaskSpec
from tinybert_ds.data.task_tables import Table
from tinybert_ds.errors import DataError
from tinybert_ds.foreign_text import listed
from tinybert_ds.targets import Labels, target_of
from tinybert_ds.targets.target import LabelAudit

logger = logging.getLogger(__name__)

_FEWEST_TOKENS = 6  # rows from which on a file is judged to hold a token in each
_TOKEN_CHARACTERS = 12  # mean length of tokens, below that of sentences in scripts without spaces
_ALL_BUT = 0.98


@dataclass
class _Quotes:
    """Texts with quotation marks in a file where these are part of the text."""

    texts: int = 0
    with_marks: int = 0
    enclosed: int = 0  # as a spreadsheet writes them: marks around, marks inside doubled
    doubled: int = 0  # of them those with marks inside
    first: str = ""

    def look(self, text: str, place: str) -> None:
        """Look at a text with a quotation mark."""
        self.with_marks += 1
        inside = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else None
        if inside is not None and '"' not in inside.replace('""', ""):
            self.enclosed += 1
            self.doubled += '"' in inside
            self.first = self.first or place

    @property
    def cannot_be_meant(self) -> bool:
        """Whether all quotation marks are those of a spreadsheet."""
        if not self.enclosed or self.enclosed < self.with_marks:
            return False
        return self.doubled > 0 or (self.enclosed == self.texts and self.texts > 2)


class SplitAudit:
    """Looks at a split block by block."""

    def __init__(self, spec: TaskSpec, split: str, layout: SplitFile) -> None:
        self._spec, self._split, self._layout = spec, split, layout
        self._rows = self._skipped_labels = 0
        self._empty: list[int] = [0 for _ in self._layout.texts]
        self._first_empty: list[str] = ["" for _ in self._layout.texts]
        self._quotes = _Quotes()
        self._tokens = self._token_characters = self._gaps = 0
        self._last_line = 0
        self._labels: LabelAudit | None = None
        self._path = ""

    def look(self, table: Table, labels: Labels | None) -> None:
        """Count what is in a block."""
        if self._path != str(table.path):
            self._path, self._last_line = str(table.path), 0
        rows = table.rows
        marks = not may_be_quoted(table.path, self._layout.text_format) and self._layout.text_format.quotes is None
        for column, at in enumerate(table.text_columns):
            for number, fields in rows:
                text = fields[at]
                if not text or text.isspace():
                    self._empty[column] += 1
                    self._first_empty[column] = self._first_empty[column] or f"{table.path}, {table.unit} {number}"
                elif marks and '"' in text:
                    self._quotes.look(text.strip(), f"{table.path}, {table.unit} {number}")
            self._quotes.texts += len(rows)
        if len(table.text_columns) == 1 and table.unit == "line" and 2 * self._tokens >= self._rows:
            self._look_for_tokens(table)
        self._rows += len(rows)
        self._skipped_labels += table.skipped_labels
        if labels is None or not len(labels):
            return
        self._labels = self._labels or target_of(self._spec).audit(self._spec)
        self._labels.look(labels)

    def finish(self) -> None:
        """Tell what is odd.

        Raises:
            DataError: Something cannot be meant: a token a line, quotation marks of a spreadsheet in a tab-separated
                file, no text at all in a column, or training rows that all have one label.
        """
        self._refuse_tokens()
        self._judge_quotes()
        self._judge_empty_texts()
        self._judge_labels()
        if self._skipped_labels:
            logger.info(
                "%s: %d rows have a label of skip_labels (%s) and are left out",
                self._name,
                self._skipped_labels,
                listed(self._spec.skip_labels),
            )

    @property
    def _name(self) -> str:
        return self._path if not self._layout.more_files else f"the {self._split} split, up to {self._path}"

    def _look_for_tokens(self, table: Table) -> None:
        at = table.text_columns[0]
        for line, fields in table.rows:
            self._tokens += len(fields[at].split(None, 2)) == 1
            self._token_characters += len(fields[at])
            self._gaps += bool(self._last_line) and line > self._last_line + 1
            self._last_line = line

    def _refuse_tokens(self) -> None:
        rows, groups = self._rows, self._gaps + 1
        if rows < _FEWEST_TOKENS or not self._gaps or rows < 2 * groups or self._tokens < _ALL_BUT * rows:
            return
        if self._token_characters <= _TOKEN_CHARACTERS * rows:
            raise DataError(
                f"{self._name}: {self._tokens:,} of {rows:,} rows hold a single word, in {groups:,} groups between "
                "blank lines, as files for the labelling of tokens do (CoNLL). Say `target: tags` in the task "
                "file for a tag of each word; give a whole text in each row for a label of each text"
            )

    def _judge_quotes(self) -> None:
        quotes = self._quotes
        if not quotes.enclosed or not (quotes.doubled or quotes.cannot_be_meant):
            return
        found = (
            f"{self._name}: {quotes.enclosed:,} of {quotes.texts:,} texts stand in quotation marks as a spreadsheet or "
            f"pandas writes them, the first in {quotes.first}; a tab-separated file is read without quoting"
        )
        if quotes.cannot_be_meant and not self._spec.directory:
            raise DataError(f"{found}. Say in the task file `quotes: true`, or `quotes: false` if the marks are text")
        logger.warning("%s: the marks are read as text", found)

    def _judge_empty_texts(self) -> None:
        for column, empty, first in zip(self._layout.texts, self._empty, self._first_empty, strict=True):
            if not empty:
                continue
            if empty == self._rows:
                raise DataError(
                    f"{self._name}: all {empty:,} texts in column {column!r} are empty; name the right column"
                )
            logger.warning(
                "%s: %s of %s texts in column %r are empty, the first in %s; they are kept as they are",
                self._name,
                f"{empty:,}",
                f"{self._rows:,}",
                column,
                first,
            )

    def _judge_labels(self) -> None:
        if self._labels is not None:
            tell_findings(self._labels, self._rows, self._split, self._name)


def tell_findings(audit: LabelAudit, rows: int, split: str, name: str) -> None:
    """Tell what is odd about the labels of a split.

    Raises:
        DataError: Training rows that all have one label.
    """
    if rows < 2:
        return
    is_training = split == "train"
    for finding in audit.findings(rows):
        if finding.all_alike and is_training:
            raise DataError(
                f"{name}: {finding.what}; there is nothing to learn. Is `label` the right column, and the file sorted "
                "by label and cut off?"
            )
        if finding.all_alike:
            logger.warning("%s: %s; metrics say little about such a split", name, finding.what)
        elif is_training:
            logger.warning("%s: %s", name, finding.what)
