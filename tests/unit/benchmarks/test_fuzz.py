from __future__ import annotations

import json
import random
import time

import pytest

from tests.benchmarks import fuzz
from tests.benchmarks.fuzzed_file import Target
from tests.benchmarks.mutations import damage_bytes, damage_json, damage_json_lines, damage_numbers, damage_words
from tinybert_ds.errors import DataError

WHOLE = b'{"a": 1, "b": [1, 2, 3]}\n{"c": {"d": "e f"}}\n'


@pytest.mark.parametrize(
    ("damage", "content"),
    [
        (damage_bytes, WHOLE),
        (damage_numbers, bytes(range(64))),
        (damage_json, WHOLE.splitlines()[0]),
        (damage_json_lines, WHOLE),
        (damage_words, WHOLE),
    ],
)
def test_a_mutation_follows_from_its_number_and_mutations_differ(damage, content):
    found = [damage(content, random.Random(number)) for number in range(200)]
    assert found == [damage(content, random.Random(number)) for number in range(200)]
    assert len(set(found)) > 40
    assert sum(mutation == content for mutation in found) < 40


def reader(path, answer):
    def read():
        content = path.read_bytes()
        return "whole" if content == WHOLE else answer(content)

    return read


def refuse(content):
    raise DataError("damaged")


def break_down(content):
    return json.loads("{")


def dawdle(content):
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("answer", "unseen", "outcome"),
    [
        (refuse, True, "refused"),
        (lambda content: "whole", True, "unchanged"),
        (lambda content: "another", False, "other"),
        (lambda content: "another", True, "silent"),
        (break_down, True, "traceback"),
        (dawdle, True, "slow"),
    ],
)
def test_every_outcome_is_told_from_the_others_and_what_must_not_be_is_kept(
    tmp_path, monkeypatch, answer, unseen, outcome
):
    monkeypatch.setattr(fuzz, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(fuzz, "GIVE_UP_SECONDS", 0.25)
    path, keep = tmp_path / "file", tmp_path / "kept"
    path.write_bytes(WHOLE)
    target = Target(path, reader(path, answer), [lambda content, rng: content + b"x"], unseen=unseen)
    row = fuzz.fuzz("file", target, seconds=60, seed=0, most=2, keep=keep)
    assert row.mutations == 2
    assert {name: getattr(row, name) for name in fuzz.OUTCOMES} == {**dict.fromkeys(fuzz.OUTCOMES, 0), outcome: 2}
    assert path.read_bytes() == WHOLE
    assert keep.exists() is (outcome in fuzz.FORBIDDEN)
    if keep.exists():
        assert (keep / f"file-1-{outcome}-file").read_bytes() == WHOLE + b"x"
