"""A labelled task as the stages use it: its specification, its batches and its metrics."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from tinybert_ds.arguments.groups import TaskRows
from tinybert_ds.data.metrics import Values, official_metric
from tinybert_ds.data.row_padding import choose_padding, marks_texts
from tinybert_ds.data.table_formats import augmented_split
from tinybert_ds.data.task_batches import EncodedExamples, TaskSource
from tinybert_ds.data.task_files import require_files, split_files
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.task_tokens import judge_rows, load_rows
from tinybert_ds.data.tokenizer import returns_token_types, special_ids
from tinybert_ds.engine.prediction import Model, predict_logits
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.shared_work.derived import cache_home
from tinybert_ds.targets import target_of
from tinybert_ds.targets.target import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """A task with its tokenised splits.

    Args:
        max_seq_length: What rows are cut to.
        token_types: Whether the tokeniser returns token types to the model that it belongs to.
        data_dir: Where the files of the splits are.
        world: The ranks, which share the work of an evaluation.
        batch_size: Rows of one forward of an evaluation over all ranks.
    """

    spec: TaskSpec
    splits: dict[str, EncodedExamples]
    max_seq_length: int
    pad_id: int
    token_types: bool
    cache_home: Path
    data_dir: Path
    world: World
    batch_size: int

    @property
    def score(self) -> str:
        """Name of the evaluation metric whose highest value is the best."""
        return "eval_score" if len(self.spec.official) > 1 else f"eval_{self.spec.official[0]}"

    def source(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int,
        padding: Any = "valid",
        shuffle: bool,
        in_pairs: bool = False,
    ) -> TaskSource:
        """Return the batches of a split; `in_pairs`: with pairs of rows of one group."""
        return TaskSource(
            self.splits[split],
            global_batch_size=batch_size,
            max_seq_length=self.max_seq_length,
            seed=seed,
            padding=padding,
            pad_id=self.pad_id,
            shuffle=shuffle,
            in_pairs=in_pairs,
        )

    def predict(
        self, model: Model, split: str, *, columns: Sequence[int] | None = None, settings: Settings | None = None
    ) -> Values:
        """Return the predictions for a split, as its labels are, in the order of the file, on all ranks.

        Args:
            columns: The model's output for each output of the task; None where they are in the task's order.
            settings: What the model's predictions need to know, see `Target.settle`.
        """
        return target_of(self.spec).predict(self.spec, self._answers(model, split, columns), settings or {})

    def evaluate(
        self, model: Model, split: str, *, columns: Sequence[int] | None = None, settings: Settings | None = None
    ) -> dict[str, float]:
        """Return every metric of the task on a labelled split, "eval_..."; the same on all ranks. See `predict`.

        Args:
            settings: None: those that the split itself says are the best.
        """
        return self._judge(split, self._answers(model, split, columns), settings)

    def settle(self, model: Model, *, columns: Sequence[int] | None = None) -> Settings:
        """Return what the model's predictions need to know, by the split that decides; see `Target.settle`."""
        split = self.spec.eval_splits[0]
        return self._settle(split, self._answers(model, split, columns))

    def gold(self, split: str) -> Any:
        """Return what the predictions of a labelled split are compared with, see `Target.gold`."""
        labels = self.splits[split].gold
        assert labels is not None, f"{split} has no labels"
        return target_of(self.spec).gold(self.spec, split, split_files(self.spec, self.data_dir, split), labels)

    def _answers(self, model: Model, split: str, columns: Sequence[int] | None) -> NDArray[np.floating]:
        logits = predict_logits(model, self.source(split, self.batch_size, seed=0, shuffle=False), self.world)
        rows = self.splits[split]
        return target_of(self.spec).answers(
            logits if columns is None else logits[:, list(columns)], rows.unit_offsets, rows.columns
        )

    def _settle(self, split: str, answers: NDArray[np.floating]) -> Settings:
        return target_of(self.spec).settle(self.spec, answers, self.gold(split))

    def _judge(self, split: str, answers: NDArray[np.floating], settings: Settings | None) -> dict[str, float]:
        target = target_of(self.spec)
        settings = self._settle(split, answers) if settings is None else settings
        predictions = target.predict(self.spec, answers, settings)
        metrics = target.measure(self.spec, predictions, self.gold(split), self.splits[split].groups)
        if len(self.spec.official) > 1:
            metrics["score"] = official_metric(self.spec, metrics)
        return {f"eval_{name}": value for name, value in metrics.items()}

    def evaluate_all(
        self, model: Model, *, columns: Sequence[int] | None = None, settings: Settings | None = None
    ) -> dict[str, float]:
        """Evaluate on the task's evaluation splits: the first decides, the others carry their name.

        Args:
            settings: None: those that the first split says are the best.
        """
        first, *others = self.spec.eval_splits
        answers = self._answers(model, first, columns)
        settings = self._settle(first, answers) if settings is None else settings
        results = self._judge(first, answers, settings)
        for split in others:
            for name, value in self.evaluate(model, split, columns=columns, settings=settings).items():
                results[f"eval_{split}_{name.removeprefix('eval_')}"] = value
        return results


class RowFlags(NamedTuple):
    """`TaskRows` of a command that has no such flags."""

    max_seq_length: int | None
    eval_batch_size: int = 32
    cache_dir: str | None = None
    allow_unknown: bool = True


def load_task(
    spec: TaskSpec,
    data_dir: str | Path,
    splits: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    model_config: Any,
    flags: TaskRows | RowFlags,
    world: World,
    *,
    unlabelled: Collection[str] = (),
    judged: bool = False,
) -> TaskData:
    """Tokenise a task's splits, or map what was tokenised before; on one rank of each host, without a collective.

    Args:
        model_config: Of the model that will read the batches.
        unlabelled: Splits that may come without labels, because nobody reads them.
        judged: Whether the model is not trained here; then it may be a language model, whose tokeniser has no cls and
            sep.

    Raises:
        ConfigError, DataError: A file is missing, a row does not fit, a split has no labels that training or
            evaluation needs, or the model has no embeddings for the tokeniser's tokens.
    """
    _require_vocabulary(tokenizer, model_config)
    max_seq_length = flags.max_seq_length or spec.max_seq_length
    spec = spec.without_labels(unlabelled)
    for split in splits:  # before a folder of derived data is made in a directory without a task
        require_files(spec, data_dir, split)
    home = cache_home(data_dir, flags.cache_dir)
    first = world.local_rank == 0
    rows = {
        split: load_rows(spec, data_dir, split, tokenizer, max_seq_length, home=home, first=first) for split in splits
    }
    for split, encoded in rows.items():
        if encoded.skipped_rows:
            path = spec.split_path(data_dir, split)
            logger.warning("%s: %d rows lack fields and are left out", path, encoded.skipped_rows)
        path = spec.split_path(data_dir, split)
        if warning := judge_rows(encoded, tokenizer, path, allow_unknown=flags.allow_unknown):
            logger.warning("%s", warning)
    for split in ("train", *spec.eval_splits):
        if split in rows and rows[split].labels is None and split not in unlabelled:
            raise DataError(
                f"the {split} split of task {spec.name} ({spec.splits[split].file}) has no labels; this command needs "
                "them: give a labelled file, or another eval_split in the task file"
            )
    types = returns_token_types(tokenizer)
    if judged and not marks_texts(tokenizer):
        pad_id = choose_padding(model_config, tokenizer, rows.values())
    else:
        pad_id = special_ids(tokenizer).pad
    directory = Path(data_dir)
    return TaskData(spec, rows, max_seq_length, pad_id, types, home, directory, world, flags.eval_batch_size)


def augmented(spec: TaskSpec) -> TaskSpec:
    """Return the task whose training rows are those that data_tools/data_augmentation.py has written."""
    return replace(spec, splits={**spec.splits, "train": augmented_split(spec.splits["train"])})


def _require_vocabulary(tokenizer: PreTrainedTokenizerFast, model_config: Any) -> None:
    """Refuse a tokeniser that knows tokens for which the model has no embedding."""
    size, highest = model_config.vocab_size, max(tokenizer.get_vocab().values())
    if highest >= size:
        raise ConfigError(
            f"the tokeniser has token ids up to {highest}, the model's vocabulary has {size} entries; give the "
            f'tokeniser that belongs to the model, or a config.json with "vocab_size": {highest + 1}'
        )
