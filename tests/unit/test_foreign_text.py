import gzip
import lzma

import pytest

from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.foreign_text import (
    find_undecodable,
    likely_encoding,
    listed,
    listed_paths,
    open_decompressed,
    quoted,
    read_text,
    shown,
    table_cell,
    without_compression,
    zstd,
)

GERMAN = "Die Bäume blühen früh, die Käufer fragen nach größeren Äpfeln und süßen Öltöpfen.\n" * 20
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю.\n" * 20


def test_foreign_text_in_a_message_is_one_printable_line_of_bounded_length():
    assert shown("as it is") == "as it is"
    assert shown("two\nlines\x1b[31m") == "two\\nlines\\x1b[31m"
    assert shown("x" * 80) == "x" * 80
    assert shown("x" * 1_000_000) == "x" * 80 + "... (1,000,000 characters)"
    assert quoted("it's") == '"it\'s"'
    assert quoted("y" * 81) == repr("y" * 80) + "... (81 characters)"
    assert len(shown("\x00" * 10_000)) < 200
    assert listed(["a", "b"]) == "a, b"
    assert listed(range(1000), 3) == "0, 1, 2 and 997 more"
    assert len(listed(["n" * 10_000] * 50)) < 2000


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.XZ", "a.zst"])
def test_files_are_decompressed_as_their_suffix_says(tmp_path, name):
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd.compress}.get(
        name[-4:].lstrip("xta").lower(), bytes
    )
    path = tmp_path / name
    path.write_bytes(pack(b"some text\n"))
    with open_decompressed(path) as file:
        assert file.read() == b"some text\n"


def test_the_suffix_of_a_compression_is_no_part_of_a_files_format():
    assert [str(without_compression(name)) for name in ("d/a.csv.gz", "a.TSV.Xz", "a.zst", "a.csv")] == [
        "d/a.csv",
        "a.TSV",
        "a",
        "a.csv",
    ]


@pytest.mark.parametrize(
    ("text", "encoding", "allowed"),
    [
        (GERMAN, "latin-1", {"cp1252", "latin_1", "cp1250", "iso8859_15", "cp1254"}),
        (RUSSIAN, "cp1251", {"cp1251"}),
        (GERMAN, "utf-16", {"utf_16"}),
        ("日本語の文章です。とても良い映画でした。\n" * 30, "shift_jis", {"cp932", "shift_jis", "shift_jis_2004"}),
    ],
)
def test_the_encoding_of_a_text_is_named(text, encoding, allowed):
    assert likely_encoding(text.encode(encoding)) in allowed


def test_text_that_is_utf8_has_no_other_likely_encoding():
    assert likely_encoding(b"plain words\n" * 10) is None
    assert likely_encoding(RUSSIAN.encode()) is None


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_the_first_byte_that_cannot_be_decoded_is_found_with_its_line(tmp_path, compress):
    good = "züg\n" * 40_000  # more than is read at once; 5 bytes a line
    path = tmp_path / ("a.gz" if compress is gzip.compress else "a")
    path.write_bytes(compress(good.encode() + b"ab\xe9\n" + good.encode()))
    assert find_undecodable(path)[:2] == (40_001, 200_002)
    for cut in range(1, 5):  # a character that begins in one piece of the file and ends in the next
        path.write_bytes(compress(b"x" * ((1 << 16) - cut) + "€\n".encode() + b"\xff"))
        assert find_undecodable(path)[:2] == (2, (1 << 16) - cut + 4)
    path.write_bytes(compress("one\ntwo\n".encode("utf-16") + b"\x00\xd8\x00"))
    assert find_undecodable(path, "utf-16")[0] == 3


def test_a_small_file_is_read_or_named_with_what_is_wrong(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: b\r\n")
    assert read_text(path, "--task_file") == "a: b\n"
    path.write_bytes(b"name: x\n" + f"text: {GERMAN}".encode("latin-1"))
    with pytest.raises(
        ConfigError, match=r"--task_file: .*task.yaml, line 2: byte 19 is not UTF-8 text; it looks like"
    ):
        read_text(path, "--task_file")
    with pytest.raises(DataError, match=r"--x: cannot read .*: Is a directory"):
        read_text(tmp_path, "--x", DataError)
    with pytest.raises(ConfigError, match=r"cannot read .*gone: No such file"):
        read_text(tmp_path / "gone", "--task_file")
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match=r"has more than 16,777,216 bytes; this cannot be meant"):
        read_text(path, "--task_file")


def test_paths_are_listed_whole_where_names_are_shortened():
    path = "/data/" + "corpora/" * 20 + "a.txt"
    assert listed_paths([path, "b"]) == f"{path}, b"
    assert listed([path]) == f"{path[:80]}... ({len(path)} characters)"


def test_a_cell_of_a_table_is_one_line_without_bars_of_its_own():
    assert table_cell("a|b\nc\r\nd") == "a\\|b c d"
    assert table_cell(7) == "7"
