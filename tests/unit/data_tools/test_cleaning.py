"""What is left out, against slow rules."""

from __future__ import annotations

import random

import numpy as np

from data_tools.cleaning import (
    DocumentPicker,
    Filters,
    Surveyor,
    dropped_documents,
    save_duplicates,
    save_hashes,
    save_survey,
)


def lines_of(documents: list[list[str]]) -> list[str]:
    return [line for document in documents for line in [*document, ""]]


def survey(lines: list[str], filters: Filters | None = None, step: int = 3):
    surveyor = Surveyor(filters or Filters())
    for begin in range(0, len(lines), step):
        surveyor.look(lines[begin : begin + step])
    return surveyor.finish()


def test_filters_drop_documents_by_length_and_letters():
    lines = lines_of([["short"], ["long enough", "and more"], ["1234 5678 ab"], ["x" * 60], ["中文 字符 也是 字母"]])
    found = survey(lines, Filters(min_chars=6, max_chars=50, min_letters=0.5))
    assert found.dropped.tolist() == [0, 2, 3]
    assert found.numbers.tolist() == [1, 4]
    assert found.counts == {
        "documents": 5,
        "shorter than --min_chars": 1,
        "longer than --max_chars": 1,
        "fewer letters than --min_letters": 1,
    }


def test_the_bounds_themselves_are_kept():
    assert survey(["abcd", "", "ab12"], Filters(4, 4, 0.5)).dropped.tolist() == []


def test_documents_are_runs_of_lines_however_many_blank_ones_are_between_them():
    found = survey(["", "", "a", "b", "", "", "c"])
    assert found.counts["documents"] == 2
    assert found.hashes.tolist() != survey(["a", "", "b", "c"]).hashes.tolist()
    assert found.hashes.tolist() == survey(["a", "b", "", "c", ""], step=100).hashes.tolist()


def test_the_picker_takes_out_what_the_surveyor_has_counted():
    documents = [[f"{number} {line}" for line in range(1 + number % 4)] for number in range(20)]
    lines = ["", *lines_of(documents)]
    picker = DocumentPicker({0, 3, 4, 19})
    kept = [line for begin in range(0, len(lines), 4) for line in picker.keep(lines[begin : begin + 4])]
    assert [line for line in kept if line] == [
        line for number, document in enumerate(documents) if number not in {0, 3, 4, 19} for line in document
    ]
    assert survey(lines).counts["documents"] == 20


def test_the_first_of_equal_documents_is_kept_across_parts_buckets_and_earlier_corpora(tmp_path):
    rng = random.Random(0)
    parts = [[[str(rng.randint(0, 30))] for _ in range(25)] for _ in range(4)]
    paths = []
    for number, part in enumerate(parts):
        paths.append(tmp_path / f"{number}.npz")
        save_survey(paths[-1], survey(lines_of(part)))
    earlier = tmp_path / "earlier.bin"
    save_hashes(earlier, [paths[0]])
    duplicates = [tmp_path / f"duplicates-{bucket}.npz" for bucket in range(3)]
    counts = [save_duplicates(path, paths[1:], [earlier], bucket, 3) for bucket, path in enumerate(duplicates)]
    seen = {document[0] for document in parts[0]}
    total = 0
    for place, part in enumerate(parts[1:]):
        expected = set()
        for number, (text,) in enumerate(part):
            if text in seen:
                expected.add(number)
            seen.add(text)
        assert dropped_documents(paths[1 + place], place, duplicates) == (frozenset(expected), len(expected))
        total += len(expected)
    assert sum(counts) == total > 40
    assert min(counts) > 0


def test_hashes_of_no_documents_can_be_compared(tmp_path):
    save_survey(tmp_path / "a.npz", survey([]))
    save_hashes(tmp_path / "h.bin", [])
    (tmp_path / "h.bin").write_bytes(np.zeros(2, "<u8").tobytes())
    assert save_duplicates(tmp_path / "d.npz", [tmp_path / "a.npz"], [tmp_path / "h.bin"], 0, 1) == 0
