from __future__ import annotations

import pytest

from tinybert_ds.data.phases import PhasedSource, phase_steps


class Numbers:
    """A source whose epochs have a given number of steps; a batch is its own place."""

    def __init__(self, name: str, steps: list[int], rows: int) -> None:
        self.fingerprint = name
        self._steps = steps
        self._rows = rows

    def steps_in_epoch(self, epoch: int) -> int:
        return self._steps[epoch % len(self._steps)]

    def samples_in_epoch(self, epoch: int) -> int:
        return self.steps_in_epoch(epoch) * self._rows - 1

    def samples_in_step(self, epoch: int, position: int) -> int:
        return self._rows - (position == self.steps_in_epoch(epoch) - 1)

    def micro_batches(self, epoch: int, position: int, **place: int) -> list:
        return [(self.fingerprint, epoch, position)]


def read(source: PhasedSource, steps: int) -> list:
    found, epoch, position = [], 0, 0
    while len(found) < steps:
        if position == source.steps_in_epoch(epoch):
            epoch, position = epoch + 1, 0
        found += source.micro_batches(epoch, position, rank=0, world_size=1, accumulation=1)
        position += 1
    return found


@pytest.mark.parametrize(
    ("shares", "total", "expected"),
    [([0.9, 0.1], 1000, [900, 100]), ([0.9, 0.1], 7, [6, 1]), ([1.0], 5, [5]), ([0.5, 0.3, 0.2], 1, [0, 1, 0])],
)
def test_steps_are_shared_and_sum_to_the_total(shares, total, expected):
    assert phase_steps(shares, total) == expected


def test_phases_follow_each_other_and_each_begins_an_epoch():
    source = PhasedSource([Numbers("short", [5, 4], 8), Numbers("long", [6], 2)], [7, 8])
    places = read(source, 15)
    assert places[:7] == [("short", 0, i) for i in range(5)] + [("short", 1, i) for i in range(2)]
    assert places[7:] == [("long", 2, i) for i in range(6)] + [("long", 3, i) for i in range(2)]
    assert [source.steps_in_epoch(epoch) for epoch in range(4)] == [5, 2, 6, 2]
    assert [source.samples_in_epoch(epoch) for epoch in range(4)] == [39, 16, 11, 4]
    assert [source.samples_in_step(1, 1), source.samples_in_step(2, 0), source.samples_in_step(2, 5)] == [8, 2, 1]


def test_behind_the_last_phase_the_last_source_goes_on():
    source = PhasedSource([Numbers("short", [5], 8), Numbers("long", [6], 2)], [5, 2])
    assert read(source, 9)[-2:] == [("long", 2, 0), ("long", 2, 1)]
    assert source.steps_in_epoch(2) == 6


def test_the_fingerprint_names_the_sources_and_their_steps():
    def name(first: str, steps: list[int]) -> str:
        return PhasedSource([Numbers(first, [5], 8), Numbers("long", [6], 2)], steps).fingerprint

    assert len({name("a", [3, 2]), name("b", [3, 2]), name("a", [2, 3])}) == 3
    assert name("a", [3, 2]) == name("a", [3, 2])
