"""A run of stub engines on one rank: what is opened, attached, trained and finished, without a model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tinybert_ds.arguments import FinetuneArguments, identity_of
from tinybert_ds.engine.loop import train
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.engine.run import run as module_under_test
from tinybert_ds.engine.run.run import Session, open_run
from tinybert_ds.errors import CheckpointError, ConfigError, FaultError
from tinybert_ds.losses.precomputed import needs_of
from tinybert_ds.types import Batch, Counts

pytestmark = pytest.mark.usefixtures("one_rank_group")

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
STEPS = 6


class Source:
    """Epochs of four steps; the batch of a step holds its position."""

    fingerprint = "source"

    def samples_in_epoch(self, epoch):
        return 8

    def steps_in_epoch(self, epoch):
        return 4

    def samples_in_step(self, epoch, position):
        return 2

    def micro_batches(self, epoch, position, *, rank, world_size, accumulation):
        ids = torch.full((2, 3), position)
        return [Batch(ids, torch.ones_like(ids), torch.zeros_like(ids), None, torch.arange(2), Counts(2, 6, 18))]


class Engine:
    """As much of DeepSpeed's engine as a run needs, around one weight that each step moves by its batch."""

    skipped_steps = 0
    monitor = SimpleNamespace(enabled=False)

    def __init__(self, module) -> None:
        self.module, self.training, self.with_value = module, True, []
        self.checkpoint_engine = SimpleNamespace(save=lambda state, path: Path(path).write_text(json.dumps(state)))

    def __call__(self, batch, teacher_output):
        self.with_value.append(needs_of(self.module.weight).value)
        return {"loss": (self.module.weight * (1 + batch.input_ids[0, 0])).sum()}

    def gradient_clipping(self):
        return 0.0

    def train(self):
        self.training = True

    def eval(self):
        self.training = False

    def backward(self, loss):
        loss.backward()

    def step(self):
        with torch.no_grad():
            self.module.weight -= self.module.weight.grad
        self.module.weight.grad = None

    def get_lr(self):
        return [1.0]

    def get_data_types(self):
        return torch.float32, torch.float32

    def zero_optimization_stage(self):
        return 0

    def zero_optimization(self):
        return False

    fp16_enabled = bfloat16_enabled = zero_optimization

    def _copy_recovery_script(self, save_path):
        pass

    def save_checkpoint(self, save_dir, *, tag, client_state, save_latest):
        (Path(save_dir) / tag).mkdir(parents=True)
        state = {**client_state, "weight": self.module.weight.item()}
        self.checkpoint_engine.save(state, Path(save_dir) / tag / "state.json")

    def load_checkpoint(self, load_dir, *, tag):
        state = json.loads((Path(load_dir) / tag / "state.json").read_text())
        with torch.no_grad():
            self.module.weight.fill_(state.pop("weight"))
        return tag, state


def weight() -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    return module


def export(engine, directory):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "weight").write_text(str(engine.module.weight.item()))


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Open a run of some students below tmp_path, each with its identity."""
    engines = []
    monkeypatch.setattr(
        module_under_test, "build_engine", lambda module, *_, **__: engines.append(Engine(module)) or engines[-1]
    )

    def opened(*students, steps=STEPS, resume="auto", **changes):
        arguments = FinetuneArguments(
            model="m", data_dir="d", output_dir=str(tmp_path), max_steps=steps, logging_steps=2, save_steps=2, **changes
        )
        identities = {tmp_path / name: identity_of(arguments, {}) for name in students or ("out",)}
        session = Session(arguments, ALONE, {}, resume)
        return open_run(session, identities, title="testing", source=Source(), evaluation_steps=2)

    opened.engines, opened.directory = engines, tmp_path
    return opened


def go(run, judge=None, **options):
    run.attach(weight(), export=export, **options)
    train(run, None)
    run.finish(judge)


def test_a_run_is_trained_to_its_end_and_started_again_has_its_results_without_any_engine(start):
    with start() as run:
        go(run, evaluate=lambda engine: {"eval_weight": engine.module.weight.item()})
    # Steps of epoch 0 move the weight by 1, 2, 3, 4, the first two of epoch 1 by 1 and 2.
    assert run.results == [{"eval_weight": -13.0}]
    assert (start.directory / "out" / "weight").read_text() == "-13.0"
    with start() as again:
        assert again.finished
        assert again.results == [{"eval_weight": -13.0}]
    assert len(start.engines) == 1


def test_the_best_student_is_the_result_and_the_judge_has_the_last_word(start):
    with start() as run:
        best_first = {"evaluate": lambda engine: {"eval_score": engine.module.weight.item()}, "score": "eval_score"}
        go(run, judge=lambda path: {"judged": float((path / "weight").read_text())}, **best_first)
    assert run.results == [{"judged": -3.0}]  # of the evaluation after step 2


def test_a_run_that_was_stopped_goes_on_from_its_last_checkpoint_to_the_same_end(start, monkeypatch):
    step = Engine.step

    def fail_at_step_5(engine):
        step(engine)
        if engine.module.weight.item() == -11.0:
            raise OSError("no disk")

    monkeypatch.setattr(Engine, "step", fail_at_step_5)
    with pytest.raises(FaultError, match=r"no disk\. The last good checkpoint is .*step-00000004"), start() as run:
        go(run)
    monkeypatch.setattr(Engine, "step", step)
    with start() as run:
        go(run)
    assert (start.directory / "out" / "weight").read_text() == "-13.0"
    record = json.loads((start.directory / "out" / "run.json").read_text())
    assert [launch["from_step"] for launch in record["launches"]] == [0, 4]
    steps = [json.loads(line)["step"] for line in (start.directory / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]


def test_several_students_stand_at_the_newest_step_that_all_of_them_have(start):
    with start("a", "b", steps=4) as run:
        for _ in range(2):
            run.attach(weight(), export=export)
        train(run, None)
        run.finish()
    (start.directory / "b" / "checkpoints" / "step-00000004" / "complete.json").unlink()
    with start("a", "b") as run:
        assert not run.finished
        for _ in range(2):
            run.attach(weight(), export=export)
        assert [student.state.step for student in run.students] == [2, 2]
        assert [engine.module.weight.item() for engine in start.engines[2:]] == [-3.0, -3.0]


def test_a_run_that_is_beyond_its_last_step_is_refused(start):
    with start() as run:
        go(run)
    with start(steps=3) as run, pytest.raises(CheckpointError, match="at step 6, beyond the 3 that are asked for"):
        run.attach(weight(), export=export)


def test_another_run_in_the_directory_is_refused_before_anything_is_attached(start):
    with start() as run:
        go(run)
    with pytest.raises(ConfigError, match=r"learning_rate was 5e-05, now 0\.1"), start(learning_rate=0.1):
        pytest.fail("it was opened")


def test_what_nobody_reads_is_not_computed(start):
    with start() as run:
        go(run)
    assert start.engines[0].with_value == [False, True] * 3


def test_a_monitor_of_deepspeeds_own_reads_the_loss_of_every_step(start, monkeypatch):
    monkeypatch.setattr(Engine, "monitor", SimpleNamespace(enabled=True))
    with start() as run:
        go(run)
    assert start.engines[0].with_value == [True] * 6


def test_a_rank_that_is_lost_while_models_are_built_is_told_plainly(start):
    with pytest.raises(FaultError, match="contact with another rank is lost"), start():
        raise RuntimeError("[gloo] Connection closed by peer")


def test_the_finished_directory_is_marked_only_when_everything_else_is_in_it(start):
    def judge(path):
        assert (path / "weight").is_file()
        assert json.loads((path / "run.json").read_text())["finished"] is None
        return {"judged": 1.0}

    with start() as run:
        go(run, judge=partial(judge))
    assert json.loads((start.directory / "out" / "run.json").read_text())["finished"] == {
        "steps": STEPS,
        "results": {"judged": 1.0},
    }
