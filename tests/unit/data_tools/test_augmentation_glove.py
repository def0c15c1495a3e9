from __future__ import annotations

import gzip
import os

import numpy as np
import pytest

from data_tools import glove
from data_tools.glove import WordVectors, build_cache, cache_directory, open_cache
from data_tools.neighbours import Neighbours
from tinybert_ds.errors import DataError


def read(folder, text, vocab_size=100, name="glove.txt"):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    build_cache(folder / name, vocab_size, folder / "cache")
    return open_cache(folder / "cache")


def test_a_line_is_a_word_and_its_numbers(tmp_path):
    found = read(tmp_path, "the 1 -2.5 3e-2\nof 0.1 0.2 0.3\n\n. 7 8 9")
    assert found.words == ["the", "of", "."]
    np.testing.assert_array_equal(found.vectors, np.array([[1, -2.5, 0.03], [0.1, 0.2, 0.3], [7, 8, 9]], np.float32))


def test_words_may_hold_spaces_and_numbers(tmp_path):
    found = read(tmp_path, "a 1 2 3\n. . . 4 5 6\nat name@domain.com 7 8 9\n1 1/2 1 2 3\n3 4 5 6\n")
    assert found.words == ["a", ". . .", "at name@domain.com", "1 1/2", "3"]
    assert found.vectors[:, 0].tolist() == [1, 4, 7, 1, 4]


def test_the_first_line_of_a_fasttext_file_is_no_word(tmp_path):
    found = read(tmp_path, "2 3\nthe 1 2 3 \nof 4 5 6 \n", name="cc.en.vec")
    assert found.words == ["the", "of"]
    assert found.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_gzip_file_is_read_as_it_is(tmp_path):
    assert read(tmp_path, "the 1 2\nof 3 4\n", name="glove.txt.gz").words == ["the", "of"]


def test_only_so_many_words_are_read(tmp_path):
    assert read(tmp_path, "the 1 2\nof 3 4\nbroken\n", vocab_size=2).words == ["the", "of"]
    assert read(tmp_path, "\n".join(f"w{n} {n} 1" for n in range(5000)), vocab_size=4999).vectors[-1, 0] == 4998


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"the 1 2 3\nof 1 2\n", 2),
        (b"the 1 2 3\n\nof 1 2 x\n", 3),
        (b"the 1 2 3\nof 1 2 nan\n", 2),
        (b"2 3\nthe 1 2 3\nof 1 2\n", 3),
        (b"words only\n", 1),
        (b"the\n", 1),
        (b"the 1 2\n\xff\xfe 1 2\n", 2),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, text, line):
    with pytest.raises(DataError, match=rf"glove\.txt', line {line}: not"):
        read(tmp_path, text)
    assert [path.name for path in tmp_path.iterdir()] == ["glove.txt"]


def test_a_missing_an_empty_and_a_cut_file_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        build_cache(tmp_path / "gone.txt", 10, tmp_path / "cache")
    with pytest.raises(DataError, match="holds no vectors"):
        read(tmp_path, "\n")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"the 1 2\n" * 1000)[:-20])
    with pytest.raises(DataError, match=r"cannot read .*cut\.txt\.gz' after line"):
        build_cache(tmp_path / "cut.txt.gz", 10_000, tmp_path / "cache")


def test_a_file_is_read_once_and_again_only_when_it_or_the_number_of_words_changes(tmp_path, monkeypatch):
    calls = []
    convert = glove._convert
    monkeypatch.setattr(glove, "_convert", lambda *arguments: calls.append(arguments) or convert(*arguments))
    for expected in (1, 1):
        assert read(tmp_path, "the 1 2\nof 3 4\n").words == ["the", "of"]
        assert len(calls) == expected
    assert read(tmp_path, "the 1 2\nof 3 5\n").vectors[1, 1] == 5
    assert len(calls) == 2
    assert read(tmp_path, "the 1 2\nof 3 5\n", vocab_size=1).words == ["the"]
    assert len(calls) == 3
    (tmp_path / "cache" / "vectors.f32").write_bytes(b"")
    (tmp_path / "cache.tmp").mkdir()  # of a command that was killed
    assert read(tmp_path, "the 1 2\nof 3 5\n", vocab_size=1).vectors.tolist() == [[1, 2]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "glove.txt"]


def test_the_memory_mapped_form_lies_beside_the_file_or_where_it_can_be_written(tmp_path, monkeypatch):
    path = tmp_path / "glove.txt"
    assert cache_directory(path, 100, tmp_path / "task") == tmp_path / "glove.txt.100.vectors"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cache_directory(path, 100, tmp_path / "task") == tmp_path / "task" / "glove.txt.100.vectors"


def neighbours(rows, count=2):
    return Neighbours(WordVectors(list(rows), np.array(list(rows.values()), dtype=np.float32)), count)


def test_neighbours_are_near_by_angle_and_not_by_length():
    rows = {"east": [1, 0], "far east": [100, 1], "north": [0, 1], "north east": [0.1, 0.1], "west": [-5, 0]}
    assert neighbours(rows, 4).find(["east"]) == {"east": ["far east", "north east", "north", "west"]}
    assert neighbours(rows, 2).find(["east"]) == {"east": ["far east", "north east"]}
    assert neighbours(rows, 9).find(["west"])["west"] == ["north", "north east", "far east", "east"]


def test_a_word_without_a_vector_has_no_neighbours():
    rows = {"east": [1, 0], "zero": [0, 0], "<unk>": [1, 0], "north": [0, 1]}
    found = neighbours(rows, 9).find(["south", "zero", "<unk>", "east"])
    assert found == {"south": [], "zero": [], "<unk>": [], "east": ["north"]}


def test_case_counts_and_neighbours_of_a_title_case_word_get_its_case():
    rows = {"rome": [1, 0], "Paris": [1, 0.1], "oslo": [1, 0.2], "UN": [1, 0.35]}
    found = neighbours(rows, 3).find(["Rome", "rome", "UN", "Paris", "paris"])
    assert found == {
        "Rome": [],
        "rome": ["Paris", "oslo", "UN"],
        "UN": ["oslo", "Paris", "rome"],
        "Paris": ["Oslo", "Rome", "Un"],
        "paris": [],
    }


def test_of_a_word_that_comes_twice_the_last_vector_counts():
    words = ["twice", "north", "east", "twice"]
    vectors = np.array([[0, 1], [0, 1], [1, 0.1], [1, 0]], dtype=np.float32)
    found = Neighbours(WordVectors(words, vectors), 3).find(["twice", "east"])
    assert found == {"twice": ["east", "north"], "east": ["twice", "north"]}


def test_neighbours_are_those_of_a_full_sort_in_float64_however_many_are_asked_for_at_once():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 25)).astype(np.float32)
    # A hundred words whose cosines with w7 differ by less than float32 can tell.
    vectors[500:600] = vectors[7] * rng.normal(3, 3e-4, size=(100, 25))
    words = [f"w{number}" for number in range(3000)]
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    expected = {}
    for number in [*range(0, 3000, 61), 7, 500, 599]:
        cosines = unit @ unit[number]
        cosines[number] = -np.inf
        expected[f"w{number}"] = [words[other] for other in np.argsort(-cosines)[:15]]
    assert len(np.unique((unit[500:600] @ unit[7]).astype(np.float32))) < 5
    glove = WordVectors(words, vectors)
    assert Neighbours(glove, 15).find(expected) == expected
    one_by_one = Neighbours(glove, 15)
    assert all(one_by_one.find([word]) == {word: found} for word, found in expected.items())
