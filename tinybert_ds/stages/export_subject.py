"""A model that is exported, with the rows that it is measured on; sentence encoders are loaded by `export_vectors`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinybert_ds.arguments.export import ExportModelArguments
from tinybert_ds.data.batching import INFINITE_COUNTS, RowLayout, collate
from tinybert_ds.data.metrics import official_metric_name
from tinybert_ds.data.sts import StsPairs
from tinybert_ds.data.task_batches import EncodedExamples, TaskSource, take_rows
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types, special_ids
from tinybert_ds.engine.prediction import predict_logits
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import DataError
from tinybert_ds.export.measure import AGREEMENT, Answers, Logits, Model, agreement_of, metric_of
from tinybert_ds.export.runtimes import Feed
from tinybert_ds.export.vectors import VectorModel
from tinybert_ds.models.capture import takes_token_types
from tinybert_ds.models.labels import Head, HeadKind, output_names
from tinybert_ds.models.pretrained import Role, load_headed, read_config, weights_bytes
from tinybert_ds.models.probe import position_limit, require_positions
from tinybert_ds.models.sentence.modules import SentenceModules
from tinybert_ds.stages.task_data import RowFlags, load_task
from tinybert_ds.stages.task_settings import read_settings
from tinybert_ds.targets import target_of
from tinybert_ds.targets.target import Settings

BATCH_ROWS = 32
TEACHER = "teacher"
USUAL_LENGTH = 128
"""Tokens of the longest row of noise, unless --max_seq_length or the model says otherwise."""
_NOISE_ROWS = 256
_SHORTEST = 4
_KINDS: Mapping[str, HeadKind] = {"ForTokenClassification": "tokens", "ForQuestionAnswering": "spans"}
"""How the class of a model ends whose head answers for each token."""


@dataclass(frozen=True)
class Subject:
    """A model and what it is measured on as its tokeniser sees it; without a task or texts `rows` are noise."""

    name: str
    directory: Path
    model: PreTrainedModel | VectorModel
    tokenizer: PreTrainedTokenizerFast
    input_names: tuple[str, ...]
    spec: TaskSpec | None
    split: str
    columns: tuple[int, ...]  # the model's output for each output of the task
    settings: Settings | None  # what its predictions need to know, as its config says it
    answers: Answers
    rows: EncodedExamples
    training_rows: EncodedExamples | None
    layout: RowLayout
    world: World
    size_bytes: int  # of the weights on the disk
    modules: SentenceModules | None = None  # of a sentence encoder: what stands behind its transformer
    pairs: StsPairs | None = None  # whose texts the rows are
    gold: Any = None  # of a task: what predictions are compared with

    @property
    def transformer(self) -> PreTrainedModel:
        """The model as transformers knows it."""
        return self.model.transformer if isinstance(self.model, VectorModel) else self.model

    @property
    def metric_name(self) -> str | None:
        """What `metric` returns; None where there is nothing to judge by."""
        if self.pairs is not None:
            return "spearman"
        return official_metric_name(self.spec) if self.spec else None

    @property
    def agreement_name(self) -> str:
        """What agreement with the model is."""
        return AGREEMENT[self.answers]

    @property
    def measured_on(self) -> str:
        """What the figures are of, in words."""
        if self.spec is not None:
            return f"Task {self.spec.name}, {self.split} split, {len(self.rows):,} rows."
        if self.pairs is not None:
            return f"{self.pairs.name}, {len(self.pairs.scores):,} scored pairs."
        if self.training_rows is not None:
            return f"{len(self.rows):,} texts."
        return f"No task: {len(self.rows):,} rows of noise."

    def logits(self, model: Model, rows: EncodedExamples | None = None) -> Logits:
        """Return the logits (N, C), or vectors (N, V), that a model or a file of it gives for what is answered."""
        source = TaskSource(
            self.rows if rows is None else rows,
            global_batch_size=BATCH_ROWS,
            max_seq_length=self.layout.max_seq_length,
            pad_id=self.layout.pad_id,
            shuffle=False,
        )
        return predict_logits(model, source, self.world)

    def settle(self, logits: Logits) -> Settings:
        """Return what predictions need to know: what the config says, else what is best for the model's logits."""
        if self.settings is not None or self.spec is None:
            return self.settings or {}
        return target_of(self.spec).settle(self.spec, self._answers(self.spec, logits), self.gold)

    def metric(self, logits: Logits, settings: Settings) -> float | None:
        """Return the official metric of logits (N, C) or vectors (N, V); None where there is nothing to judge by."""
        if self.pairs is not None:
            return self.pairs.judge(logits)
        if self.spec is None:
            return None
        return metric_of(self._answers(self.spec, logits), self.spec, self.gold, settings, self.rows.groups)

    def agreement(self, found: Logits, reference: Logits, rows: EncodedExamples | None = None) -> float:
        """Return how far logits or vectors agree with the model's, see `agreement_of`."""
        return agreement_of(found, reference, self.answers, (self.rows if rows is None else rows).unit_offsets)

    def _answers(self, spec: TaskSpec, logits: Logits) -> NDArray[np.floating]:
        taken = logits[:, list(self.columns)]
        return target_of(spec).answers(taken, self.rows.unit_offsets, self.rows.columns)

    def batch(self, numbers: NDArray[np.int64], rows: EncodedExamples | None = None) -> Any:
        """Return some rows as one batch, padded to its longest."""
        taken = take_rows(self.rows if rows is None else rows, numbers)
        return collate(taken, int(taken.lengths.max()), self.layout, INFINITE_COUNTS)._replace(labels=None)

    def feeds(self, rows: EncodedExamples) -> list[Feed]:
        """Return rows as the runtimes take them, batch by batch."""
        numbers = np.arange(len(rows))
        parts = np.array_split(numbers, -(-len(rows) // BATCH_ROWS))
        batches = [self.batch(part, rows) for part in parts]
        return [{name: getattr(batch, name).numpy() for name in self.input_names} for batch in batches]


def load_subject(
    directory: str, spec: TaskSpec | None, arguments: ExportModelArguments, world: World, *, role: Role
) -> Subject:
    """Load a fine-tuned model in float32 and tokenise what it is measured on.

    Raises:
        ModelError, DataError: No classifier for this task, too few positions for its rows, or a split without labels.
    """
    tokenizer, config = load_tokenizer(directory, None), read_config(directory, role=role)
    head = own_head(config) if spec is None else target_of(spec).head(spec)
    model = load_headed(directory, head, role=role)
    split = arguments.split or (spec.eval_splits[0] if spec else "")
    if spec is None:
        length = arguments.max_seq_length or min(USUAL_LENGTH, position_limit(model) or USUAL_LENGTH)
        rows, training = noise(config.vocab_size, length, by_token=head.kind in ("tokens", "spans")), None
        columns, gold = list(range(config.num_labels)), None
    else:
        flags = RowFlags(arguments.max_seq_length, allow_unknown=arguments.allow_unknown)
        splits = [split, "train"] if split != "train" and "int8" in arguments.precision else [split]
        texts = {"train"} - {split}  # scales and layers are chosen without labels
        task = load_task(spec, str(arguments.data_dir), splits, tokenizer, config, flags, world, unlabelled=texts)
        rows, training, length = task.splits[split], task.splits.get("train"), task.max_seq_length
        if rows.labels is None:
            path = spec.split_path(str(arguments.data_dir), split)
            raise DataError(f"{path} has no labels to measure against; name a labelled split with --split")
        columns, gold = target_of(spec).columns(spec, model.config, None, role=role), task.gold(split)
    require_positions(model, length)
    names = target_of(spec).setting_names if spec else ()
    types = returns_token_types(tokenizer) and takes_token_types(model)
    return Subject(
        name=subject_name(directory, role),
        directory=Path(directory),
        model=model.eval(),
        tokenizer=tokenizer,
        input_names=input_names(types),
        spec=spec,
        split=split,
        columns=tuple(columns),
        settings=read_settings(model.config, names, columns, role=role),
        answers="score" if head.label_names is None else head.kind,
        rows=rows,
        training_rows=training,
        layout=RowLayout("valid", length, special_ids(tokenizer).pad),
        world=world,
        size_bytes=weights_bytes(directory),
        gold=gold,
    )


def own_head(config: Any) -> Head:
    """Return the head that a model's config says it has."""
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    kind: HeadKind = "several" if several else "one"
    for name in config.architectures or ():
        kind = next((found for end, found in _KINDS.items() if str(name).endswith(end)), kind)
    return Head(None if config.num_labels == 1 and kind == "one" else output_names(config), kind=kind)


def input_names(token_types: bool) -> tuple[str, ...]:
    """Return what of a tokeniser's outputs a model takes."""
    return ("input_ids", "attention_mask", *(("token_type_ids",) if token_types else ()))


def subject_name(directory: str, role: Role) -> str:
    """Return what a model is called beside its teacher: as its directory."""
    if role == "teacher":
        return TEACHER
    name = Path(directory).resolve().name
    return "model" if name == TEACHER else name


def some_rows(rows: EncodedExamples, numbers: NDArray[np.int64]) -> EncodedExamples:
    """Return some of the rows as examples of their own."""
    taken = take_rows(rows, numbers)
    offsets = np.concatenate([[0], np.cumsum(taken.lengths)])
    first_lengths = taken.first_lengths.astype(np.int32)
    return EncodedExamples(taken.tokens, offsets, first_lengths, taken.labels, units=taken.units)


def noise(vocabulary: int, longest: int, *, by_token: bool = False) -> EncodedExamples:
    """Return rows of random tokens, of all lengths up to the longest; `by_token`: each token is answered."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(min(_SHORTEST, longest), longest + 1, _NOISE_ROWS)
    tokens = rng.integers(0, vocabulary, int(lengths.sum()), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    units = np.ones(len(tokens), dtype=np.bool_) if by_token else None
    return EncodedExamples(tokens, offsets, (lengths // 2).astype(np.int32), None, units=units)
