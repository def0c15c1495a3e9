"""What the rows of a task are answered with: what a kind of target has to say, and is asked nowhere else.

B rows of a micro-batch, N rows of a split, C outputs of a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tinybert_ds.data.metrics import Values, compute_metrics
from tinybert_ds.data.task_spec import Column, TaskSpec
from tinybert_ds.models.labels import Head
from tinybert_ds.types import Batch

Labels = NDArray[np.int64 | np.float32 | np.uint8 | np.int16 | np.int32]
"""What a file says of its rows: (N,) class ids, int64; (N,) scores, float32; (N, C) of each label yes or no, uint8; of
each word a class id, int16; of each question the characters of its answer, (Q, 2) int32."""


Settings = Mapping[str, NDArray[np.floating]]
"""What predictions need to know beside logits: name -> (C,), in the order of the task's outputs."""

Parser = Callable[[str, str], Any]


class Finding(NamedTuple):
    """Something odd about the labels of a split."""

    what: str
    all_alike: bool  # nothing can be learnt from such rows, and nothing judged


class LabelAudit(ABC):
    """Looks at the labels of a split block by block."""

    @abstractmethod
    def look(self, labels: Labels) -> None:
        """Count what is in a block."""

    @abstractmethod
    def findings(self, rows: int) -> Iterator[Finding]:
        """Yield what is odd about a split of so many rows, two or more."""


class Target(ABC):
    """One kind of target; it has no state, and what it needs to know of a task is in the task's `TaskSpec`."""

    name: ClassVar[str]
    """As `target` in a task file says it."""
    noun: ClassVar[str]
    """What its answers are called."""
    kind: ClassVar[str]
    """What messages call tasks of this kind."""
    metrics: ClassVar[tuple[str, ...]]
    """Metrics of `data.metrics` that a task of this kind may name."""
    keys: ClassVar[Mapping[str, str]] = {}
    """Keys of a task file that only this target understands, and what they hold."""
    required: ClassVar[tuple[str, ...]] = ("files", "text", "label", "metric")
    """Keys that a task file must have."""
    key_rules: ClassVar[Mapping[str, bool]] = {}
    """Of the common keys that not every target has: whether this one needs them; others are refused."""
    softens: ClassVar[bool] = True
    """Whether predictions are probabilities, which a temperature softens."""
    other_forms: ClassVar[tuple[str, ...]] = ()
    """Of `--prediction_loss`, beside the form that `teacher_loss` has: what `formed_loss` takes."""
    mixes: ClassVar[bool] = False
    """Whether rows may be weighed by the teacher's confidence in their labels."""
    teacher_kinds: ClassVar[tuple[str, ...]] = ()
    """What columns with a teacher's answers may hold, the usual first; none: it learns from no columns."""
    teacher_width: ClassVar[int | None] = None
    """Values of a teacher for a row of a task without names of labels; None: as many as the rows have."""
    unit: ClassVar[Literal["row", "word", "piece"]] = "row"
    """What has an output of its own: a row, each word of it at its first token, or each token of a context."""
    not_augmented: ClassVar[str] = ""
    """Why data augmentation cannot make more rows of this kind; "" where it can."""
    exclusive: ClassVar[bool] = False
    """Whether a row has one of several labels, whose probabilities add up to 1."""
    several_columns: ClassVar[bool] = False
    """Whether `label` of a task file may be a list: a column of yes and no for each label."""
    reads_arrays: ClassVar[bool] = False
    """Whether a field of the label column may be an array, which the parser is given as JSON."""
    setting_names: ClassVar[tuple[str, ...]] = ()
    """What `settle` returns."""
    learns_gold: ClassVar[bool] = False
    """Whether the prediction stage learns what the files say, as published, unless it is told otherwise."""

    @property
    def by_token(self) -> bool:
        """Whether it is tokens that are answered, each by itself, and not rows."""
        return self.unit != "row"

    def key_problems(self, content: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with the keys of a task file that states this target, a sentence each."""
        return [
            f"{key}: {'missing' if needed else 'leave it out'} with `target: {self.name}`"
            for key, needed in self.key_rules.items()
            if needed != (key in content)
        ]

    def read_keys(self, content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Read the keys of a task file that are this target's own.

        Returns:
            Fields of `TaskSpec`, and what is wrong with the keys, a sentence each.
        """
        return {}, []

    def lacks(self, spec: TaskSpec) -> str | None:
        """Return which package a task of this target needs that is not installed, and how to have it."""
        return None

    def more_columns(self, content: Mapping[str, Any]) -> dict[str, tuple[Column, ...]]:
        """Return the columns that a task file's own keys name, by what they hold; see `SplitFile.more_columns`."""
        return {}

    @abstractmethod
    def parser(self, spec: TaskSpec) -> Parser:
        """Return what reads a field of the label column.

        It is given the field, and file, row and column for the message; it raises DataError where the field is none of
        the task's labels.
        """

    @abstractmethod
    def as_labels(self, spec: TaskSpec, values: Sequence[Any]) -> Labels:
        """Return what the parser returned for some rows, as one array."""

    @abstractmethod
    def audit(self, spec: TaskSpec) -> LabelAudit:
        """Return what looks at the labels of a split."""

    def may_be_hidden(self, spec: TaskSpec) -> bool:
        """Whether -1 is no label of the task, so that a test file may hold it in the place of all labels."""
        return True

    @abstractmethod
    def head(self, spec: TaskSpec) -> Head:
        """Return what a model's head must be like."""

    @abstractmethod
    def columns(self, spec: TaskSpec, config: Any, stated: Sequence[str] | None, *, role: str) -> list[int]:
        """Return the output of a model for each output of the task.

        Args:
            config: The model's.
            stated: Names of its outputs in its order, where its config says nothing.

        Raises:
            ModelError: The model's outputs are not the task's.
        """

    def teacher_problem(self, values: NDArray[np.float32], kind: str) -> tuple[int, str] | None:
        """Return the first row of a teacher's values (n, W) that cannot be of their kind, and what is wrong with it."""
        return None

    def teacher_outputs(self, values: NDArray[np.float32], kind: str, temperature: float) -> NDArray[np.float32]:
        """Return a teacher's values (n, W), one of `teacher_kinds`, as `teacher_loss` takes them."""
        return values

    @abstractmethod
    def teacher_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Tensor:
        """Return the loss against a teacher's outputs, divided by the batch's counts.

        Args:
            logits: (B, C) of the student.
            teacher: (B, C), in the order of the task's outputs.
        """

    def formed_loss(
        self,
        logits: Tensor,
        teacher: Tensor,
        batch: Batch,
        *,
        form: str,
        temperature: float,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the loss against a teacher's outputs in one of `other_forms` or the usual one, each row weighed.

        Args:
            logits, teacher: As in `teacher_loss`.
            form: One of `--prediction_loss`.
            row_weights: (B,), where the target `mixes`.
        """
        assert form == "cross_entropy", f"targets {self.name} have one form of loss"
        assert row_weights is None, f"targets {self.name} are not mixed by confidence"
        return self.teacher_loss(logits, teacher, batch, temperature=temperature)

    def weighed_label_loss(self, logits: Tensor, batch: Batch, row_weights: Tensor) -> Tensor:
        """Return the loss against the labels, each row times its weight (B,), where the target `mixes`."""
        raise AssertionError(f"targets {self.name} are not mixed by confidence")

    def confidence(self, teacher: Tensor, batch: Batch) -> Tensor:
        """Return how sure the teacher (B, C) is of each label (B,), from 0 to 1, where the target `mixes`."""
        raise AssertionError(f"targets {self.name} are not mixed by confidence")

    @abstractmethod
    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss of logits (B, C) against the labels of a batch, divided by its counts."""

    def answers(
        self, logits: NDArray[np.floating], offsets: NDArray[np.int64] | None, columns: Mapping[str, NDArray]
    ) -> NDArray[np.floating]:
        """Return what predictions are made of, of the outputs (P, C) of a split.

        Args:
            offsets: (N + 1,) where the outputs of each row begin; None: each row has one.
            columns: What else is known of the rows, see `EncodedExamples.columns`.
        """
        return logits

    def gold(self, spec: TaskSpec, split: str, paths: Sequence[Path], labels: Labels) -> Any:
        """Return what the predictions of a split are compared with, an entry for each.

        Args:
            paths: The split's own files.
            labels: Of the rows, or of each token that is answered.
        """
        return labels

    def gold_problem(self, spec: TaskSpec, labels: Labels) -> tuple[int, str] | None:
        """Return the first of some labels of an evaluation split that the task's metrics cannot judge by, and why."""
        return None

    @abstractmethod
    def predict(self, spec: TaskSpec, logits: NDArray[np.floating], settings: Settings) -> Values:
        """Return the predictions of what `answers` returned, the logits (N, C) where it says nothing else.

        Args:
            settings: From `settle`; {} where nothing was settled.
        """

    def settle(self, spec: TaskSpec, logits: NDArray[np.floating], labels: Labels) -> Settings:
        """Return what predictions need to know beside what `answers` returned, as an evaluation split says it best.

        It is kept in the config.json of the model that a run ends with: a list for each name, with an entry for each
        output.
        """
        return {}

    def measure(
        self, spec: TaskSpec, predictions: Values, labels: Labels, groups: NDArray[np.int64] | None = None
    ) -> dict[str, float]:
        """Return every metric of the task by name.

        Args:
            predictions: Of one split, answer by answer.
            labels: From `gold`.
            groups: Which answers belong together, where the rows say so.
        """
        return compute_metrics(spec, predictions, labels)

    @abstractmethod
    def constant_answer(self, labels: Labels) -> Any:
        """Return the best answer that never looks at a text, of the labels of the training rows."""

    @abstractmethod
    def field(self, spec: TaskSpec, label: Any) -> str:
        """Return a label as the task's files spell it."""

    def words(self, spec: TaskSpec, predictions: Values) -> list[str]:
        """Return predictions as a file of predictions spells them."""
        return [self.field(spec, answer) for answer in predictions]

    def prediction_file(
        self, spec: TaskSpec, split: str, paths: Sequence[Path], predictions: Values, groups: NDArray[np.int64] | None
    ) -> tuple[str, str] | None:
        """Return the suffix and the content of a split's file of predictions; None: a line for each row.

        Args:
            paths: The split's own files.
            predictions, groups: See `measure`.
        """
        return None
