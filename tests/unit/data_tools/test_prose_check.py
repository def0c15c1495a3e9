"""Records, markup and tables that are given as plain text are refused; prose that resembles them is not."""

import gzip
import json

import pytest

from data_tools.input_files import TextInput, describe_left_out, find_inputs, open_input
from data_tools.prose_check import find_no_prose
from data_tools.text_units import UnreadableInputError
from tinybert_ds.errors import DataError

SENTENCES = [
    "The river rose in the night, and the mill stood still.",
    'She said: "Nobody came, as always."',
    "It was late.",
    "Three men, two boats, one net.",
    "",
    "A second document begins here; it is about the price of salt in 1820.",
]
PROSE = "\n".join(SENTENCES * 5)
RECORDS = [{"text": sentence, "id": number} for number, sentence in enumerate(SENTENCES)]
ROWS = [(str(number), sentence.replace('"', "'"), "yes") for number, sentence in enumerate(SENTENCES * 2)]

NO_PROSE = {
    "lines.txt": ("\n".join(map(json.dumps, RECORDS)), "JSON"),
    "one": (json.dumps(RECORDS[0]), "JSON"),
    "list": (json.dumps(RECORDS), "JSON"),
    "long": (json.dumps({"data": RECORDS * 2000}), "JSON"),
    "indented.out": (json.dumps(RECORDS, indent=2), "JSON"),
    "nested.out": (json.dumps({"data": {"rows": RECORDS}}, indent=1), "JSON"),
    "strings": (json.dumps(SENTENCES), "JSON"),
    "dicts": ("\n".join(map(str, RECORDS)), "JSON"),
    "xml": ('<?xml version="1.0"?>\n<corpus>\n<p>The river rose.</p>\n</corpus>', "markup"),
    "html": ("<!DOCTYPE html>\n<html><body><p>The river rose.\nAnd fell.\n</p></body></html>", "markup"),
    "page": ("<!DOCTYPE html>\n" + PROSE, "markup"),
    "wiki_00": ('<doc id="12" url="https://x" title="River">\nRiver\n\nThe river rose.\nAnd fell.\n\n</doc>', "markup"),
    "wiki_01": ('Rest of an article.\n</doc>\n<doc id="1">\nRiver\n\nThe river rose.\nAnd fell.\n</doc>', "markup"),
    "segments": ("\n".join(f'<seg id="{n}">{s}</seg>' for n, s in enumerate(SENTENCES)), "markup"),
    "csv": ("id,text,label\n" + "".join(f'{n},"{text}",{label}\n' for n, text, label in ROWS), "separated by commas"),
    "tsv.txt": ("".join("\t".join(row) + "\n" for row in ROWS), "separated by tabs"),
    "semicolons": ("".join(f"{n};{text.replace(';', '')};x\n" for n, text, _ in ROWS), "separated by semicolons"),
    "bars": ("".join("|".join(row) + "\n" for row in ROWS), "separated by vertical bars"),
    "nulls": ("some\0bytes\0", "null bytes"),
}


@pytest.mark.parametrize("name", NO_PROSE)
@pytest.mark.parametrize("compress", [False, True])
def test_what_is_no_prose_is_refused_with_the_way_to_read_it(tmp_path, name, compress):
    content, kind = NO_PROSE[name]
    path = tmp_path / (f"{name}.gz" if compress else name)
    path.write_bytes(gzip.compress(content.encode()) if compress else content.encode())
    with pytest.raises(DataError, match=f"is given as plain text, but it holds .*{kind}") as error:
        find_inputs([str(path)])
    assert name == "nulls" or "--text_field" in str(error.value)
    with pytest.raises(UnreadableInputError, match=kind):  # which --skip_bad_input leaves out and lists
        open_input(TextInput(name, path), 100, "text")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PROSE.encode("utf-16"), "it is text in utf_16. Convert it, .* iconv -f utf-16"),
        (b"PK\x03\x04and so on", "a zip archive"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (gzip.compress(PROSE.encode()), "gzip-compressed; name it .gz"),
    ],
)
def test_bytes_that_are_no_utf8_text_are_named(tmp_path, content, said):
    (tmp_path / "corpus").write_bytes(content)
    with pytest.raises(DataError, match=said):
        find_inputs([str(tmp_path / "corpus")])


@pytest.mark.parametrize(
    "content",
    [
        PROSE,
        "",
        "\n\n",
        "One line without an end",
        "[[File:river.jpg|thumb]]\nThe river rose.\n" * 5,
        '["Hello," she said.]\nThe river rose.\n',
        '{"a": 1} is how a record is written.\nThe river rose, and the mill stood still.\nIt was late.\n',
        "<unk> rose in the night\nThe mill <unk> still\nIt was late\nNobody came\n",
        "It was late, she said.\n" * 20,
        "Yes, no.\nNo, yes.\nOne, two.\nThree, four.\n" * 10,
        "word\n" * 50,
        "Chapter 1\tThe river\nIt rose in the night.\nThe mill stood still.\n",
        "In 1820 salt cost 1,200 a ton.\nIn 1821 it cost 1,300.\nIn 1830 nobody bought any.\nThen 1,400 came.\n",
        "河水在夜里上涨。\n磨坊停了下来。\n" * 10,
        "x" * 200_000,
    ],
)
def test_prose_is_read(tmp_path, content):
    (tmp_path / "corpus").write_text(content, encoding="utf-8")
    assert find_no_prose(tmp_path / "corpus") is None


def test_tables_and_markup_are_refused_by_their_names_too(tmp_path):
    for name in ("a.csv", "b.tsv.gz", "c.xml"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError) as error:
        find_inputs([str(tmp_path / name) for name in ("a.csv", "b.tsv.gz", "c.xml")])
    assert str(error.value).count("is no text by its name") == 3
    assert str(error.value).count("--text_field then names the column") == 2


def test_files_of_a_directory_that_are_of_no_known_kind_are_named(tmp_path):
    for name in ("a.txt", "deep/b.jsonl.gz", "deep/c.csv", "LICENSE", ".git/config", "d.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    note, *files = describe_left_out([str(tmp_path), str(tmp_path / "LICENSE"), str(tmp_path / "*.txt")])
    assert "left out (3)" in note
    assert [line.strip() for line in files] == [str(tmp_path / name) for name in ("LICENSE", "d.json", "deep/c.csv")]
    assert describe_left_out([str(tmp_path / "a.txt")]) == []


def test_of_very_many_files_that_are_left_out_the_kinds_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("data_tools.input_files._NAMED_FILES", 2)
    for name in ("a.csv", "b.csv", "c.csv", "d.csv", "e", "f.md"):
        (tmp_path / name).write_text("x")
    note, first, second, *rest = describe_left_out([str(tmp_path)])
    assert "(6)" in note
    assert first.endswith("a.csv")
    assert second.endswith("b.csv")
    assert rest == ["    and 2 more with .csv", "    and 1 more with no suffix", "    and 1 more with .md"]
