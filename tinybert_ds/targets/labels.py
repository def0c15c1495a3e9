"""One label a row, out of several that exclude each other: classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from tinybert_ds.losses import logit_divergence, logit_error, soft_cross_entropy
from tinybert_ds.targets.named import ExclusiveLabels
from tinybert_ds.types import Batch


class OneLabel(ExclusiveLabels):
    """A class id, int64, for each row; the model has an output for each class."""

    name = "labels"
    noun = "labels"
    kind = "classification"
    metrics = ("accuracy", "f1", "macro_f1", "matthews")
    key_rules: ClassVar[Mapping[str, bool]] = {"labels": True, "score_range": False}
    other_forms = ("mse", "kl")
    mixes = True
    exclusive = True
    id_type = np.int64
    head_kind = "one"
    remedy = (
        "Mend the row, or list the label in a task file (--task_file): in labels or aliases, or in skip_labels to "
        "leave such rows out"
    )

    def teacher_loss(self, logits: Tensor, teacher: Tensor, batch: Batch, *, temperature: float) -> Tensor:
        """Soft cross-entropy (arXiv 1909.10351, eq. 10)."""
        return self.formed_loss(logits, teacher, batch, form="cross_entropy", temperature=temperature)

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
        """Soft cross-entropy, squared differences of logits, or the divergence times the squared temperature."""
        rows, classes = batch.counts.rows, logits.shape[-1]
        if form == "mse":
            return logit_error(logits, teacher, denominator=rows * classes, row_weights=row_weights)
        if form == "kl":
            return logit_divergence(logits, teacher, temperature=temperature, denominator=rows, row_weights=row_weights)
        return soft_cross_entropy(
            logits, teacher, temperature=temperature, denominator=rows * classes, row_weights=row_weights
        )

    def weighed_label_loss(self, logits: Tensor, batch: Batch, row_weights: Tensor) -> Tensor:
        """Cross-entropy."""
        assert batch.labels is not None
        rows = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        return ((rows * row_weights).sum() / batch.counts.rows).float()

    def confidence(self, teacher: Tensor, batch: Batch) -> Tensor:
        """The probability that it gives the label."""
        assert batch.labels is not None
        return teacher.float().softmax(dim=-1).gather(1, batch.labels[:, None])[:, 0]

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy over the global batch's rows."""
        assert batch.labels is not None
        return (F.cross_entropy(logits.float(), batch.labels, reduction="sum") / batch.counts.rows).float()
