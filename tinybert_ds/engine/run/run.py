"""A run, from its opened directory to its results; `loop.train` takes it from the first step to the last.

One run may train several students: they learn from one teacher pass over the same batches, each in a directory of its
own and bit for bit as it would alone.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

from tinybert_ds.arguments import Arguments, hyper_parameters_of, recipe_values
from tinybert_ds.data.batching import BatchSource
from tinybert_ds.engine.checkpoints.best_student import best_directory
from tinybert_ds.engine.checkpoints.store import CHECKPOINT_DIRECTORY, Checkpoints, TrainingState, common_choices
from tinybert_ds.engine.ds_config import fill_schedule
from tinybert_ds.engine.ranks.lost_ranks import faults_reported
from tinybert_ds.engine.ranks.process_group import (
    World,
    require_same_everywhere,
    require_shared_directory,
    run_on_main,
    write_on_main,
)
from tinybert_ds.engine.run.directory import RunDirectory
from tinybert_ds.engine.run.plan import Plan, count_steps
from tinybert_ds.engine.student import build_engine
from tinybert_ds.engine.watch.health import Health
from tinybert_ds.engine.watch.monitor import Monitor
from tinybert_ds.engine.watch.stall import StallWatch
from tinybert_ds.engine.watch.tensorboard import RunStart
from tinybert_ds.errors import CheckpointError, raise_all
from tinybert_ds.models.saving import copy_student
from tinybert_ds.models.student import DistilledStudent
from tinybert_ds.preemption import undisturbed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session(Generic[Arguments]):
    """A command whose arguments and DeepSpeed config hold together, on its ranks."""

    arguments: Arguments
    world: World
    ds_config: dict[str, Any]  # empty where nothing is trained
    resume: str  # "auto", "never", or the path of a checkpoint that no launch before has taken

    @property
    def output_dir(self) -> Path:
        return Path(self.arguments.output_dir)


@dataclass(frozen=True)
class StudentRun:
    """A student in training and all that is its own."""

    directory: RunDirectory
    engine: Any
    state: TrainingState
    checkpoints: Checkpoints
    monitor: Monitor
    health: Health
    export: Callable[[Path], None]  # writes the student as it is to a directory; called on all ranks
    evaluate: Callable[[], dict[str, float]] | None  # metrics by name, "eval_...", the same on all ranks
    score: str | None  # the metric whose highest value is the best; None: the last state is the result


class Run:
    """An opened run: its students are attached, trained and finished, in this order.

    Attributes:
        finished: Whether there is nothing to do: `results` are those of an earlier launch.
        results: Final metrics of each student.
        students: Those that are attached, in the order of the directories.
    """

    def __init__(
        self,
        session: Session[Any],
        identities: Mapping[Path, dict[str, Any]],
        source: BatchSource,
        plan: Plan,
        title: str,
    ) -> None:
        self.arguments, self.world, self.source, self.plan = session.arguments, session.world, source, plan
        self.students: list[StudentRun] = []
        self.stall = StallWatch(self.arguments.stall_timeout_seconds, session.output_dir, self.world.rank)
        self.until_closed = ExitStack()
        self._session, self._title = session, title
        scheduler = session.ds_config.get("scheduler", {}).get("type")  # its steps follow from the arguments
        self._identities = {path: {**own, "scheduler": scheduler} for path, own in identities.items()}
        self._directories = [_open(session, path, identity) for path, identity in self._identities.items()]
        for directory in self._directories:
            self.until_closed.callback(directory.close)
        found = [
            run_on_main(self.world, partial(directory.finished_results, plan.total_steps))
            for directory in self._directories
        ]
        self.results = [results for results in found if results is not None and session.resume == "auto"]
        self.finished = len(self.results) == len(found)
        limit = self.arguments.save_total_limit
        self._checkpoints = [Checkpoints(path / CHECKPOINT_DIRECTORY, self.world, limit) for path in identities]
        self._choices: list[str] = []  # what each student is to resume from
        if self.finished:
            for path in identities:
                logger.info("%s in %s is finished (%d steps); nothing to do", title, path, plan.total_steps)
        else:
            self._choices = run_on_main(self.world, partial(common_choices, self._checkpoints, session.resume))

    def attach(
        self,
        module: DistilledStudent,
        *,
        export: Callable[[Any, Path], None],
        evaluate: Callable[[Any], dict[str, float]] | None = None,
        score: str | None = None,
        measured: Mapping[str, Any] | None = None,
    ) -> None:
        """Give the next directory its student, and take it to where the run stands; called on all ranks.

        Args:
            export: Writes the engine's student to a directory.
            evaluate: Judges the engine's student while it trains.
            measured: What run.json is to hold of the student beside the arguments; see `recorded`.

        Raises:
            CheckpointError: The run is beyond its last step, or no checkpoint can be loaded.
        """
        number, arguments, total_steps = len(self.students), self.arguments, self.plan.total_steps
        directory, checkpoints = self._directories[number], self._checkpoints[number]
        config = copy.deepcopy(self._session.ds_config)
        engine = build_engine(
            module,
            config,
            weight_decay=arguments.weight_decay,
            total_steps=total_steps,
            warmup=arguments.warmup,
            schedule=arguments.schedule,
        )
        state = checkpoints.resume(engine, self._choices[number])
        if state.step > total_steps:
            raise CheckpointError(
                f"the run in {directory.path} is at step {state.step}, beyond the {total_steps} that are asked for; "
                "raise --max_steps or --num_train_epochs, or give --resume one of its older checkpoints"
            )
        monitor = self._start_monitor(directory, config, state.step, measured or {})
        student = StudentRun(
            directory=directory,
            engine=engine,
            state=state,
            checkpoints=checkpoints,
            monitor=monitor,
            health=Health(self.world.device),
            export=partial(export, engine),
            evaluate=None if evaluate is None else partial(evaluate, engine),
            score=score,
        )
        self.students.append(student)

    def finish(self, judge: Callable[[Path], dict[str, float]] | None = None) -> None:
        """Fill each student's directory with its result, the best student or else the last, and with its metrics.

        Args:
            judge: Judges what a directory holds, on all ranks; None: the last evaluation did.
        """
        with undisturbed():
            self.results = [self._finish(student, judge) for student in self.students]

    def recorded(self, name: str) -> list[Any]:
        """Return what run.json held of each student under a name of `measured` when the run was opened, or None."""

        def read() -> list[Any]:
            return [(directory.record() or {}).get(name) for directory in self._directories]

        return run_on_main(self.world, read)

    def last_good(self) -> str:
        """A sentence about the newest complete checkpoint."""
        return self._checkpoints[0].last_good()

    def _finish(self, student: StudentRun, judge: Callable[[Path], dict[str, float]] | None) -> dict[str, float]:
        path, best_step = student.directory.path, student.state.best_step
        if best_step is None:
            student.export(path)
        else:
            best = best_directory(student.checkpoints.directory, best_step)
            write_on_main(self.world, path, lambda: copy_student(best, path))
        results = student.state.metrics if judge is None else judge(path)
        write_on_main(self.world, path, partial(student.directory.note_finish, self.plan.total_steps, results))
        student.monitor.finish(results)
        return results

    def _start_monitor(
        self, directory: RunDirectory, config: dict[str, Any], step: int, measured: Mapping[str, Any]
    ) -> Monitor:
        """Note the launch in run.json and start to watch the student."""
        arguments = dataclasses.asdict(self.arguments)
        launch = {"arguments": arguments, "deepspeed_config": config, "world_size": self.world.size}
        record = {**launch, **measured, "recipe": recipe_values(self.arguments), "from_step": step}
        run_on_main(self.world, partial(directory.note_start, self._identities[directory.path], record))
        monitor = Monitor(
            directory.path,
            enabled=self.world.is_main,
            start_step=step,
            total_steps=self.plan.total_steps,
            title=self._title,
            name=directory.path.name if len(self._directories) > 1 else None,
            show_bar=not self.students,
            report_to=self.arguments.report_to,
        )
        monitor.describe(RunStart(arguments, hyper_parameters_of(self.arguments), config, self.world.size))
        return monitor


@contextmanager
def open_run(
    session: Session[Any],
    identities: Mapping[Path, dict[str, Any]],
    *,
    title: str,
    source: BatchSource,
    evaluation_steps: int | None,
    total_steps: int | None = None,
) -> Iterator[Run]:
    """Lock the directories of a run and find out where it stands; no model is needed yet. Called on all ranks.

    Args:
        identities: Directory of each student -> what makes two runs of it the same, beside the scheduler.
        evaluation_steps: Steps between two evaluations; None: no evaluation while training.
        total_steps: Optimizer steps; None: what the arguments say of this source.

    Raises:
        ConfigError, CheckpointError: A directory that is not this run's; see `RunDirectory.open`.
        FaultError: From inside the context, a rank that is lost or a disk that fails.
    """
    arguments = session.arguments
    if total_steps is None:
        total_steps = count_steps(source, max_steps=arguments.max_steps, num_epochs=arguments.num_train_epochs)
    raise_all(
        fill_schedule(session.ds_config, total_steps=total_steps, warmup_steps=int(arguments.warmup * total_steps))
    )
    plan = Plan(
        total_steps=total_steps,
        logging_steps=arguments.logging_steps,
        checkpoint_steps=arguments.checkpoint_steps,
        evaluation_steps=evaluation_steps,
        accumulation=arguments.gradient_accumulation_steps,
        seed=arguments.seed,
    )
    run = Run(session, identities, source, plan, title)
    with faults_reported(run.last_good), run.until_closed:
        yield run


def _open(session: Session[Any], path: Path, identity: dict[str, Any]) -> RunDirectory:
    require_same_everywhere(identity)
    directory = RunDirectory(path)
    run_on_main(session.world, partial(directory.open, identity, resume=session.resume))
    require_shared_directory(path, session.world)
    return directory
