from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.models import VOCAB_SIZE, tiny_model
from tinybert_ds.data.task_batches import EncodedExamples, TaskSource
from tinybert_ds.engine import teacher_cache
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.engine.teacher_cache import (
    cached_teacher,
    compute_logits,
    logits_directory,
    logits_key,
    read_logits,
)
from tinybert_ds.errors import ModelError
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.shared_work import claims, derived
from tinybert_ds.types import EncoderOutput

CPU = torch.device("cpu")
ROWS = 300
KEY = {"teacher": "t", "data": "d", "max_seq_length": 40, "dtype": "torch.float32"}


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 41, ROWS)
    tokens = generator.integers(5, VOCAB_SIZE, lengths.sum()).astype(np.int16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return EncodedExamples(tokens, offsets, lengths.astype(np.int32), generator.integers(0, 3, ROWS))


@pytest.fixture(scope="module")
def encoder():
    model = tiny_model(labels=("a", "b", "c"), seed=3)
    return CapturingEncoder(model, states=(), attention_layers=(), logits=True).eval()


@pytest.fixture
def teacher(encoder):
    """Return a teacher that counts the rows it is asked about."""

    def teach(batch) -> EncoderOutput:
        teach.rows += len(batch.input_ids)
        with torch.no_grad():
            return encoder(batch)

    teach.rows = 0
    return teach


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(teacher_cache, "BATCH_ROWS", {"cpu": 16})
    monkeypatch.setattr(teacher_cache, "STEPS_OF_A_PART", 2)
    monkeypatch.setattr(claims, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(derived, "POLL_SECONDS", 0.005)


def batches(rows, batch_size, *, shuffle=False) -> TaskSource:
    options = {"max_seq_length": 40, "seed": 1, "padding": "valid", "pad_id": 0, "shuffle": shuffle}
    return TaskSource(rows, global_batch_size=batch_size, **options)


def compute(home: Path, rows, teacher, *, rank: int = 0, size: int = 1, key=KEY):
    directory = logits_directory(home, key)
    return compute_logits(directory, teacher, len(rows), partial(batches, rows), World(rank, size, rank, CPU))


def content(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_the_kept_logits_are_the_live_ones_in_whatever_batches_the_rows_come(rows, teacher, tmp_path):
    kept = cached_teacher(compute(tmp_path, rows, teacher), CPU)
    assert teacher.rows == ROWS
    source = batches(rows, 7, shuffle=True)
    for step in range(0, source.steps_in_epoch(2), 5):
        for batch in source.micro_batches(2, step, rank=1, world_size=2, accumulation=1):
            torch.testing.assert_close(kept(batch).logits, teacher(batch).logits, atol=1e-5, rtol=1e-5)


def test_in_half_precision_they_agree_within_its_tolerance(rows, tmp_path):
    model = tiny_model(labels=("a", "b", "c"), seed=3, scale=1.0).to(torch.bfloat16)
    half = CapturingEncoder(model, states=(), attention_layers=(), logits=True).eval()
    kept = cached_teacher(compute(tmp_path, rows, torch.no_grad()(half)), CPU)
    source = batches(rows, 7, shuffle=True)
    (batch,) = source.micro_batches(0, 0, rank=0, world_size=1, accumulation=1)
    with torch.no_grad():
        live = half(batch).logits.float()
    torch.testing.assert_close(kept(batch).logits, live, atol=2**-7 * float(live.abs().max()), rtol=0)


def test_a_filler_row_gets_finite_logits(rows, teacher, tmp_path):
    kept = cached_teacher(compute(tmp_path, rows, teacher), CPU)
    (batch,) = batches(rows, 1).micro_batches(0, 0, rank=0, world_size=2, accumulation=1)
    assert batch.sample_ids.tolist() == [-1]
    assert kept(batch).logits.isfinite().all()


def test_written_twice_they_have_the_same_bytes_on_any_number_of_ranks(rows, teacher, encoder, tmp_path):
    for name in ("one", "again", "three"):
        (tmp_path / name).mkdir()
    compute(tmp_path / "one", rows, teacher)
    compute(tmp_path / "again", rows, teacher)
    asked = []

    def run(rank: int) -> None:
        def teach(batch) -> EncoderOutput:
            asked.append((rank, len(batch.input_ids)))
            with torch.no_grad():
                return encoder(batch)

        found = compute(tmp_path / "three", rows, teach, rank=rank, size=3)
        assert found.shape == (ROWS, 3)

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
    assert content(tmp_path / "one") == content(tmp_path / "again") == content(tmp_path / "three")
    assert sorted(Path(name).name for name in content(tmp_path / "three")) == ["logits.npy", "record.json"]
    assert sum(count for _, count in asked) == ROWS  # nobody was asked twice
    assert len({rank for rank, _ in asked}) > 1


def test_a_computation_that_was_killed_goes_on_and_makes_a_lost_part_again(rows, encoder, teacher, tmp_path):
    def dies(batch) -> EncoderOutput:
        if batch.input_ids.shape[1] > 24:
            raise KeyboardInterrupt
        return encoder(batch)

    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        compute(tmp_path, rows, dies)
    assert read_logits(logits_directory(tmp_path, KEY), ROWS) is None
    lost, *kept = sorted(tmp_path.rglob("*.npy"))
    assert kept
    lost.unlink()
    compute(tmp_path, rows, teacher)
    assert 0 < teacher.rows < ROWS


def test_two_runs_at_once_both_get_them(rows, encoder, tmp_path):
    results = []

    def run() -> None:
        results.append(compute(tmp_path, rows, torch.no_grad()(encoder)))

    runs = [threading.Thread(target=run) for _ in range(2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join(timeout=60)
    assert len(results) == 2
    assert np.array_equal(results[0], results[1])


@pytest.mark.parametrize("name", ["logits.npy", "record.json"])
@pytest.mark.parametrize("fault", ["changed", "cut", "missing"])
def test_damaged_logits_are_noticed_and_computed_anew(rows, teacher, tmp_path, name, fault):
    compute(tmp_path, rows, teacher)
    before = content(tmp_path)
    (path,) = tmp_path.rglob(name)
    data = path.read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-4] if fault == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert read_logits(path.parent, ROWS) is None
    compute(tmp_path, rows, teacher)
    assert content(tmp_path) == before
    assert teacher.rows == 2 * ROWS


def test_logits_of_another_number_of_rows_are_not_taken(rows, teacher, tmp_path):
    compute(tmp_path, rows, teacher)
    assert read_logits(logits_directory(tmp_path, KEY), ROWS + 1) is None


STATED = {"teacher": "t", "data": "d", "max_seq_length": 40, "dtype": "torch.float32"}


def test_what_a_teacher_was_given_beside_the_tokens_is_part_of_the_key_where_it_makes_a_difference(tmp_path):
    def directory(types, padding):
        return logits_directory(tmp_path, logits_key(**STATED, types=types, padding=padding))

    # Entries of before: single texts, teachers without segments, padding that the teacher's config names.
    earlier = logits_directory(tmp_path, STATED)
    assert directory(None, (0, 0)) == directory(None, (1, 1)) == directory(None, (0, None)) == earlier
    others = {directory(True, (0, 0)), directory(False, (0, 0)), directory(None, (1, 0)), directory(True, (1, 0))}
    assert len({earlier, *others}) == 5


def test_each_teacher_data_length_and_precision_has_its_own(tmp_path):
    others = [{**KEY, name: "other"} for name in KEY]
    assert len({logits_directory(tmp_path, key) for key in [KEY, *others]}) == 1 + len(KEY)
    assert logits_directory(tmp_path, dict(reversed(KEY.items()))) == logits_directory(tmp_path, KEY)


def test_logits_that_are_no_numbers_are_refused_and_not_kept(rows, encoder, tmp_path):
    def overflows(batch) -> EncoderOutput:
        output = encoder(batch)
        return output._replace(logits=torch.where(batch.sample_ids[:, None] == 5, torch.inf, output.logits))

    with pytest.raises(ModelError, match="no finite numbers; take a higher precision with --teacher_dtype"):
        compute(tmp_path, rows, torch.no_grad()(overflows))
    assert read_logits(logits_directory(tmp_path, KEY), ROWS) is None
