"""Where the figures of a run are shown beside metrics.jsonl: TensorBoard and the trackers that other people use.

Each tracker is its own package with its own settings (`WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`, ...); the names of
the figures are those of TensorBoard in all of them. A run that goes on continues the run that a tracker has of it, and
no run ends for the sake of a tracker.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinybert_ds.engine.watch.tensorboard import FINAL, RunStart, TensorBoard, Tracker, hyper_parameters, tag
from tinybert_ds.files import file_error, write_atomically

logger = logging.getLogger(__name__)

RUN_NAMES_FILE = "trackers.json"
"""In a run's directory: by what name each tracker knows the run."""
PROJECT = "tinybert-ds"
_LONGEST_PARAMETER = 250  # characters, of MLflow


def open_trackers(names: Sequence[str], directory: Path, *, start_step: int) -> list[Tracker]:
    """Return the trackers that `--report_to` names, of a run in its directory; called on rank 0 alone."""
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(directory / "tensorboard", start_step=start_step),
        "wandb": lambda: Wandb(directory),
        "mlflow": lambda: MLflow(directory),
        "trackio": lambda: Trackio(directory),
    }
    lost = {"tensorboard": "TensorBoard's events are no longer written"}
    return [Guarded(lost.get(name, f"{name} gets no more figures"), makers[name]) for name in dict.fromkeys(names)]


class Guarded(Tracker):
    """A tracker that is given up when it fails, with a warning: its servers and its disk are not the run's affair."""

    def __init__(self, lost: str, make: Callable[[], Tracker]) -> None:
        self._lost = lost
        self._tracker: Tracker | None = None
        with self._watched():
            self._tracker = make()

    def describe(self, start: RunStart) -> None:
        self._tell("describe", start)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        self._tell("scalars", step, values)

    def finish(self, step: int, results: Mapping[str, float]) -> None:
        self._tell("finish", step, results)

    def flush(self) -> None:
        self._tell("flush")

    def close(self) -> None:
        self._tell("close")

    def _tell(self, what: str, *values: Any) -> None:
        if self._tracker is not None:
            with self._watched():
                getattr(self._tracker, what)(*values)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tracker = None
            told = isinstance(error, OSError) and file_error(error)
            reason = told or f"{type(error).__name__}: {error}".partition("\n")[0][:300]
            logger.warning("%s (%s); the run goes on, and metrics.jsonl has all figures", self._lost, reason)


class Wandb(Tracker):
    """Weights & Biases; its files are in `wandb/` of the run's directory, offline with `WANDB_MODE=offline`."""

    def __init__(self, directory: Path) -> None:
        import wandb  # noqa: PLC0415 - an extra

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run_name(directory, "wandb"),
            name=directory.resolve().name,
            dir=str(directory),
            resume="allow",
            reinit="create_new",  # several students are trained side by side
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def describe(self, start: RunStart) -> None:
        config = {**start.arguments, "deepspeed_config": dict(start.deepspeed_config), "world_size": start.world_size}
        self._run.config.update(config, allow_val_change=True)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        self._run.log({"step": step, **tagged(values)})

    def finish(self, step: int, results: Mapping[str, float]) -> None:
        self._run.log({"step": step, **final(results)})

    def close(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """MLflow; without `MLFLOW_TRACKING_URI` its store of files is `mlruns/` in the run's directory."""

    def __init__(self, directory: Path) -> None:
        from mlflow.entities import Metric, Param  # noqa: PLC0415 - an extra
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        self._metric, self._param = Metric, Param
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            uri = (directory / "mlruns").resolve().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow keeps, but opens on demand alone
        self._client = MlflowClient(tracking_uri=uri)
        known = run_names(directory).get("mlflow")
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            run = self._client.create_run(experiment, tags={"mlflow.runName": directory.resolve().name})
            known = note_run_name(directory, "mlflow", run.info.run_id)
        self._run_id = known

    def describe(self, start: RunStart) -> None:
        there = self._client.get_run(self._run_id).data.params  # which MLflow lets nobody change
        wanted = hyper_parameters(start.learning, {"world_size": start.world_size})
        new = [self._param(n, str(v)[:_LONGEST_PARAMETER]) for n, v in wanted.items() if n not in there]
        self._client.log_batch(self._run_id, params=new)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        self._log(step, tagged(values))

    def finish(self, step: int, results: Mapping[str, float]) -> None:
        self._log(step, final(results))
        self._client.set_terminated(self._run_id)

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)


class Trackio(Tracker):
    """Trackio; its data base is where `TRACKIO_DIR` says."""

    def __init__(self, directory: Path) -> None:
        import trackio  # noqa: PLC0415 - an extra

        name = f"{directory.resolve().name}-{run_name(directory, 'trackio')}"
        self._run = trackio.init(project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=name, resume="allow")

    def describe(self, start: RunStart) -> None:
        self._run.config.update({**start.arguments, "world_size": start.world_size})

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        self._run.log(tagged(values), step=step)

    def finish(self, step: int, results: Mapping[str, float]) -> None:
        self._run.log(final(results), step=step)

    def close(self) -> None:
        self._run.finish()


def tagged(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the figures of a step by the names that all trackers have for them."""
    return {tag(name): float(value) for name, value in values.items() if value is not None}


def final(results: Mapping[str, float]) -> dict[str, float]:
    """Return the final metrics by the names that all trackers have for them."""
    return {f"{FINAL}/{name.removeprefix('eval_')}": value for name, value in results.items()}


def run_names(directory: Path) -> dict[str, str]:
    """Return by what name each tracker knows the run of a directory; none where none has begun."""
    path = directory / RUN_NAMES_FILE
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {str(tracker): str(name) for tracker, name in content.items()}


def run_name(directory: Path, tracker: str) -> str:
    """Return by what name a tracker knows the run of a directory, made up at its first start."""
    return run_names(directory).get(tracker) or note_run_name(directory, tracker, secrets.token_hex(4))


def note_run_name(directory: Path, tracker: str, name: str) -> str:
    """Remember by what name a tracker knows the run; returns it."""
    names = {**run_names(directory), tracker: name}
    write_atomically(directory / RUN_NAMES_FILE, json.dumps(names, indent=2, sort_keys=True) + "\n")
    return name
