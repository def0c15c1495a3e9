"""Whether a file that is given as plain text holds prose, or what would be learned as words: records, markup, a table.

What is judged is the beginning of the file. Text that looks like one of these and is meant is given as JSON lines.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tinybert_ds.foreign_text import DAMAGED, likely_encoding, open_decompressed
from tinybert_ds.strict_formats import NoJsonError, parse_json

_SAMPLE_BYTES = 1 << 16
_FEWEST_ROWS = 4
_NEARLY_ALL = 0.95
_MOST = 0.8
_HALF = 0.5

_BINARY = {
    b"PK\x03\x04": "a zip archive (or an office document)",
    b"%PDF": "a PDF document",
    b"\x7fELF": "a program",
    b"PAR1": "a Parquet file; name it .parquet",
    b"ARROW1": "an Arrow file",
    b"\x1f\x8b": "gzip-compressed; name it .gz",
    b"\xfd7zXZ": "xz-compressed; name it .xz",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; name it .zst",
    b"BZh": "bzip2-compressed; decompress it",
    b"7z\xbc\xaf": "a 7z archive",
    b"SQLite format 3": "a database",
    b"\x89PNG": "an image",
    b"\xd0\xcf\x11\xe0": "an office document",
    b"{\\rtf": "an RTF document",
}
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")
_OBJECT = re.compile(r"""\s*(\[\s*)*\{\s*(\}|["'][^"'\n]*["']\s*:)""")
_JSON_LINE = re.compile(r"""\s*([\[\]{}]+,?\s*$|"[^"]*"\s*(:|,?\s*$)|(-?[\d.]+|true|false|null),?\s*$)""")
_TAG = re.compile(r"\s*</?[A-Za-z][\w:.-]*(\s[^<>]*)?/?>")
_MARKUP = re.compile(r"\s*<(\?xml|!doctype|html|doc|mediawiki|rss|feed|tei)\b", re.IGNORECASE)

_JSON_WAY = (
    "If each line is a record, name the file .jsonl, and --text_field says which key holds the text; a list of records "
    "becomes lines with: jq -c '.[]'"
)
_MARKUP_WAY = (
    "Take the text out of it first, a sentence or paragraph a line, or as records in a .jsonl file, whose text "
    "--text_field names (wikiextractor --json writes such)"
)
TABLE_WAY = (
    "Write its rows as JSON lines or Parquet, for instance with pandas: read_csv(...).to_json('x.jsonl', "
    "orient='records', lines=True); --text_field then names the column of the text"
)


def find_no_prose(path: Path) -> str | None:
    """Return what a file holds instead of prose and how to read it, None where nothing speaks against prose.

    Args:
        path: Plain or compressed; one that cannot be read is left to the reader of its text.
    """
    try:
        with open_decompressed(path) as file:
            sample = file.read(_SAMPLE_BYTES)
    except (OSError, *DAMAGED):
        return None
    return _binary(sample) or _judge(sample.decode("utf-8-sig", errors="replace"), whole=len(sample) < _SAMPLE_BYTES)


def _binary(sample: bytes) -> str | None:
    for magic, name in _BINARY.items():
        if sample.startswith(magic):
            return f"it is {name}. Give the text in it, as UTF-8"
    if b"\0" not in sample and not sample.startswith(_BYTE_ORDER_MARKS):
        return None
    likely = likely_encoding(sample)
    if likely is not None and likely.startswith(("utf_16", "utf_32")):
        return f"it is text in {likely}. Convert it, for instance with: iconv -f {likely.replace('_', '-')} -t UTF-8"
    return "it holds null bytes, so it is no text. Give text in UTF-8"


def _judge(text: str, *, whole: bool) -> str | None:
    lines = text.split("\n")
    if not whole and len(lines) > 1:
        lines.pop()  # cut off
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    if not lines:
        return None
    if _share(lines, _is_json_line) >= _MOST and (_OBJECT.match(text) or _is_json(lines[0]) or _is_json(text)):
        return f"it holds JSON, not prose. {_JSON_WAY}"
    has_documents = any(line.startswith("<doc ") for line in lines) and any("</doc>" in line for line in lines)
    if _MARKUP.match(text) or has_documents or (len(lines) > 2 and _share(lines, _TAG.match) >= _HALF):
        return f"it holds markup (XML, HTML or <doc> elements), not prose. {_MARKUP_WAY}"
    name = next((name for separator, name in _SEPARATORS.items() if _is_table(lines, separator)), None)
    return None if name is None else f"it holds a table separated by {name}, not prose. {TABLE_WAY}"


_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}


def _share(lines: Sequence[str], matches: Callable[[str], object]) -> float:
    return sum(bool(matches(line)) for line in lines) / len(lines)


def _is_json(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict | list)
    except NoJsonError:
        return False


def _is_json_line(line: str) -> bool:
    return bool(_JSON_LINE.match(line) or _OBJECT.match(line)) or (line.lstrip()[:1] in "{[" and _is_json(line))


def _is_table(lines: Sequence[str], separator: str) -> bool:
    """Whether nearly all rows have one number of fields, and what separates them stands closer than in a sentence."""
    try:
        rows = list(csv.reader(lines, delimiter=separator))
    except csv.Error:
        return False
    if len(rows) < _FEWEST_ROWS:
        return False
    width, count = Counter(map(len, rows)).most_common(1)[0]
    if width < 2 or count < _NEARLY_ALL * len(rows):
        return False
    inner = [field for row in rows for field in row[1:]]
    return separator == "\t" or sum(field[:1] != " " for field in inner) > _HALF * len(inner)
