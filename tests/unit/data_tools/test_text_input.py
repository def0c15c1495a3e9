"""Parts of texts: each document in one of them, whoever reads which."""

from __future__ import annotations

import gzip
import lzma
import random
from pathlib import Path

import pytest
from backports import zstd

from data_tools import text_input
from data_tools.text_input import LineParts, TextReader, is_blank, line_number
from data_tools.text_units import Problems, UnreadableInputError
from tinybert_ds.errors import DataError

COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd.compress}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(text_input, "BLOCK_BYTES", 64)
    monkeypatch.setattr(text_input, "UNIT_BYTES", 100)


def write(path: Path, text: bytes) -> Path:
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(text))
    return path


def random_text(seed: int) -> bytes:
    """Documents of random lines, some longer than a part, separated by blank lines of several kinds."""
    rng = random.Random(seed)
    blank = [b"\n", b" \t\n", b"\r\n", "\u3000\n".encode(), b"\x1c\n", b"\n\n"]
    text = b""
    for _ in range(rng.randint(0, 12)):
        lines = [b"x" * rng.choice([1, 5, 20, 90, 400]) + b"\n" for _ in range(rng.randint(1, 5))]
        text += b"".join(lines) + rng.choice(blank)
    return text + rng.choice([b"", b"no line feed at the end", b"x\n"])


def parts_by_hand(text: bytes, part_bytes: int) -> list[bytes]:
    """The rule as it is stated, in one pass over the lines."""
    starts, offset, edges = [], 0, [(0, 0)]
    for line in text.split(b"\n"):
        starts.append((offset, line))
        offset += len(line) + 1
    for start, line in starts:
        if start < len(text) and not line.decode().strip():
            edges.append((start, min(start + len(line) + 1, len(text))))
    edges.append((len(text), len(text)))
    count = max(1, -(-len(text) // part_bytes))
    begins = [0] + [next(end for start, end in edges[1:] if start >= k * part_bytes) for k in range(1, count)]
    return [text[begin:end] for begin, end in zip(begins, [*begins[1:], len(text)], strict=True)]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.xz", "a.zst"])
def test_parts_are_those_of_the_rule_in_whatever_order_they_are_read(tmp_path, name):
    for seed in range(25):
        text = random_text(seed)
        path = write(tmp_path / name, text)
        for part_bytes in (16, 100, 1000):
            expected = parts_by_hand(text, part_bytes)
            one = LineParts(path, part_bytes, blank_lines=True)
            in_order = [b"".join(one.pieces(part)) for part in range(len(expected))]
            assert in_order == expected
            every_second = LineParts(path, part_bytes, blank_lines=True)
            some = [b"".join(every_second.pieces(part)) for part in range(1, len(expected), 2)]
            assert some == expected[1::2]
            last = LineParts(path, part_bytes, blank_lines=True)
            assert b"".join(last.pieces(len(expected) - 1)) == expected[-1]
            assert last.ended


def test_lines_as_documents_are_cut_at_any_line(tmp_path):
    text = b"".join(b"%d\n" % (10**k) for k in range(30))
    path = write(tmp_path / "a.jsonl", text)
    reader = LineParts(path, 50, blank_lines=False)
    parts = [b"".join(reader.pieces(part)) for part in range(reader.num_parts)]
    assert b"".join(parts) == text
    begin = 0
    for number, part in enumerate(parts):
        assert not part or 50 * number <= begin < 50 * (number + 1)
        begin += len(part)


def test_the_place_of_a_part_in_the_text_is_known(tmp_path):
    text = b"one\n\ntwo\nthree\n\nfour\n"
    reader = TextReader(write(tmp_path / "a.gz", text), 16)
    units = list(reader.read(0, Problems(False)))
    assert [line for unit in units for line in unit.lines] == ["one", "", "two", "three", "", "four"]
    assert (reader.begin, reader.end, reader.ended) == (0, len(text), True)
    first = TextReader(write(tmp_path / "b", text), 5)
    assert [line for unit in first.read(0, Problems(False)) for line in unit.lines] == ["one", "", "two", "three", ""]
    assert (first.begin, first.end, first.ended, first.num_parts) == (0, 16, False, 5)


def test_an_empty_file_is_one_empty_part(tmp_path):
    reader = TextReader(write(tmp_path / "a.txt", b""), 100)
    assert not list(reader.read(0, Problems(False)))
    assert reader.ended
    assert reader.num_parts == 1


@pytest.mark.parametrize("name", ["a.gz", "a.xz", "a.zst"])
@pytest.mark.parametrize("damage", ["cut off", "other bytes", "empty"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    path = write(tmp_path / name, random.Random(0).randbytes(3000).replace(b"\n", b"") + b"\n")
    content = path.read_bytes()
    path.write_bytes({"cut off": content[:-20], "other bytes": b"no such format" + content, "empty": b""}[damage])
    with pytest.raises(UnreadableInputError, match=f"cannot read .*{name}' after"):
        list(TextReader(path, 10_000).pieces(0))


def test_every_reader_finds_the_same_text_before_damage(tmp_path):
    text = b"".join(b"line %d\n\n" % number for number in range(2000))
    path = write(tmp_path / "a.gz", text)
    path.write_bytes(path.read_bytes()[:-2000])

    def readable(reader: LineParts, parts: range) -> dict[int, bytes]:
        found = {}
        for part in parts:
            try:
                found[part] = b"".join(reader.pieces(part))
            except UnreadableInputError:
                break
        return found

    whole = readable(LineParts(path, 500, blank_lines=True), range(100))
    assert 3 < len(whole) < 36
    for part in range(1, len(whole) + 1):
        own = readable(LineParts(path, 500, blank_lines=True), range(part, part + 1))
        assert own.get(part) == whole.get(part)


def test_a_line_without_end_is_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr(text_input, "LONGEST_LINE_BYTES", 1000)
    with pytest.raises(UnreadableInputError, match="longer than 1000 bytes"):
        list(TextReader(write(tmp_path / "a", b"x" * 5000), 10_000).pieces(0))


def test_a_byte_that_is_not_utf8_is_named_or_its_line_left_out(tmp_path):
    text = b"good\n\n" * 50 + b"not \xff good\r\nlast\n"
    path = write(tmp_path / "a.txt", text)
    with pytest.raises(DataError, match=r"a\.txt' is not UTF-8: byte 0xff at offset 304 of the text, line 101"):
        list(TextReader(path, 1000).read(0, Problems(False)))
    problems = Problems(True)
    units = list(TextReader(path, 1000).read(0, problems))
    assert [line for unit in units for line in unit.lines] == ["good", ""] * 50 + ["last"]
    assert problems.counts == {"lines that are not UTF-8": 1}
    assert "line 101" in problems.listed[0]


def test_line_numbers_count_line_feeds(tmp_path):
    path = write(tmp_path / "a", b"a\nbb\n\nc\xe2\x80\xa8c\r\nd")
    assert [line_number(path, offset) for offset in (0, 1, 2, 4, 5, 6, 11, 12, 13)] == [1, 1, 2, 2, 3, 4, 4, 4, 5]


def test_only_the_byte_order_mark_of_a_file_is_dropped(tmp_path):
    path = write(tmp_path / "a", b"\xef\xbb\xbfone\n\xef\xbb\xbf\n")
    (unit,) = TextReader(path, 100).read(0, Problems(False))
    assert unit.lines == ["one", "\ufeff"]


@pytest.mark.parametrize("line", [b"", b"\n", b" \t\r\n", b"\x1c\x1f\n", "\u2028\u3000\x85\n".encode()])
def test_white_space_of_any_kind_is_blank(line):
    assert is_blank(line)
    assert not line.decode().strip()


@pytest.mark.parametrize("line", [b".\n", b"\xff\n", "\u200b\n".encode(), "\ufeff\n".encode(), b"\x1c.\n"])
def test_what_is_no_white_space_is_not_blank(line):
    assert not is_blank(line)


def test_the_likely_encoding_of_a_text_is_told_with_the_command_that_converts_it(tmp_path):
    line = "Die Bäume blühen früh und die Käufer fragen nach größeren Äpfeln.\n"
    path = write(tmp_path / "a.txt", b"one\n" + (line * 50).encode("cp1252"))
    with pytest.raises(
        DataError, match=r"line 2. It looks like (\w+); convert the file, .*: iconv -f \1 -t UTF-8, or leave"
    ):
        list(TextReader(path, 10_000).read(0, Problems(False)))
