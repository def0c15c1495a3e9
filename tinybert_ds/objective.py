"""What each stage minimises: the layer map and the losses put together into LossTerms.

An objective is a module beside the student's encoder, inside one engine: it owns the projections, and every use of a
trained parameter is inside its forward, as ZeRO-3 demands. It is called as
`objective(student_output, teacher_output, batch, need_value)`.
B batch rows, S sequence length, H hidden size, C classes, M student layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinybert_ds.losses import attention_score_loss, hidden_state_loss, regression_loss, soft_cross_entropy
from tinybert_ds.types import Batch, EncoderOutput, LossTerms

Padding = Literal["valid", "reference"]
ProjectionKind = Literal["per_layer", "shared", "none"]

_PROJECTION_STD = 0.02  # as BERT initialises its linear layers


class ProjectedHiddenLoss(nn.Module):
    """A projection from student to teacher width with the hidden-state loss that uses it."""

    def __init__(self, student_hidden_size: int, teacher_hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(teacher_hidden_size, student_hidden_size))
        self.bias = nn.Parameter(torch.zeros(teacher_hidden_size))
        nn.init.normal_(self.weight, std=_PROJECTION_STD)

    def forward(self, student_hidden: Tensor, teacher_hidden: Tensor, batch: Batch, padding: Padding) -> Tensor:
        """Return the loss of states (B, S, H_student) and (B, S, H_teacher)."""
        return _hidden_loss(student_hidden, teacher_hidden, self.weight, self.bias, batch, padding)


class IntermediateObjective(nn.Module):
    """Attention scores and hidden states of the mapped layers (arXiv 1909.10351, eq. 7 to 9), weights 1.

    Args:
        num_layers: Student layers M; there are M + 1 hidden-state terms (embeddings included) and M attention terms.
        student_hidden_size, teacher_hidden_size: Widths.
        projection: One for each state, one for all, or none where widths agree.
        padding: Normalisation of the losses.
    """

    def __init__(
        self,
        num_layers: int,
        student_hidden_size: int,
        teacher_hidden_size: int,
        *,
        projection: ProjectionKind,
        padding: Padding,
    ) -> None:
        super().__init__()
        count = {"per_layer": num_layers + 1, "shared": 1, "none": 0}[projection]
        self.num_layers = num_layers
        self.padding: Padding = padding
        self.projections = nn.ModuleList(
            ProjectedHiddenLoss(student_hidden_size, teacher_hidden_size) for _ in range(count)
        )

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, batch: Batch, need_value: bool = True
    ) -> LossTerms:
        """Return "loss", "attention_loss", "hidden_loss" and each term by layer.

        Without `need_value` the terms of the attention loss that no gradient needs are left out, and it is NaN.
        """
        attention = [
            self._attention_term(student, teacher, batch, layer, need_value) for layer in range(self.num_layers)
        ]
        hidden = [self._hidden_term(student, teacher, batch, state) for state in range(self.num_layers + 1)]
        attention_loss, hidden_loss = torch.stack(attention).sum(), torch.stack(hidden).sum()
        return {
            "loss": attention_loss + hidden_loss,
            "attention_loss": attention_loss.detach(),
            "hidden_loss": hidden_loss.detach(),
            **{f"attention_loss/layer_{i + 1}": term.detach() for i, term in enumerate(attention)},
            **{f"hidden_loss/state_{i}": term.detach() for i, term in enumerate(hidden)},
        }

    def _attention_term(
        self, student: EncoderOutput, teacher: EncoderOutput, batch: Batch, layer: int, need_value: bool
    ) -> Tensor:
        num_heads = student.queries[layer].shape[1]
        return attention_score_loss(
            student.queries[layer],
            student.keys[layer],
            teacher.queries[layer],
            teacher.keys[layer],
            batch.attention_mask,
            student_scaling=student.scalings[layer],
            teacher_scaling=teacher.scalings[layer],
            padding=self.padding,
            denominator=num_heads * batch.counts.token_pairs,
            need_value=need_value,
        )

    def _hidden_term(self, student: EncoderOutput, teacher: EncoderOutput, batch: Batch, state: int) -> Tensor:
        pair = student.hidden_states[state], teacher.hidden_states[state]
        if not self.projections:
            return _hidden_loss(*pair, None, None, batch, self.padding)
        projection = self.projections[state if len(self.projections) > 1 else 0]
        return projection(*pair, batch, self.padding)


class PredictionObjective(nn.Module):
    """The teacher's predictions (eq. 10), or for a regression task the gold scores, as published.

    Args:
        temperature: Of both models' logits.
        regression: Whether labels are scores.
        teacher_columns: The teacher's output for each of our classes: labels are matched by name, not by position.
    """

    def __init__(
        self, *, temperature: float = 1.0, regression: bool = False, teacher_columns: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.regression = regression
        self.teacher_columns = list(teacher_columns) if teacher_columns is not None else None

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch, need_value: bool = True
    ) -> LossTerms:
        """Return "loss", "prediction_loss" and "logits" (B, C); for a batch without labels the logits alone."""
        logits = student.logits
        assert logits is not None
        if batch.labels is None:
            return {"logits": logits.detach()}
        if self.regression:
            loss = regression_loss(logits.squeeze(-1), batch.labels, denominator=batch.counts.rows)
        else:
            assert teacher is not None
            assert teacher.logits is not None
            columns = self.teacher_columns
            targets = teacher.logits if columns is None else teacher.logits[:, columns]
            denominator = batch.counts.rows * logits.shape[-1]
            loss = soft_cross_entropy(logits, targets, temperature=self.temperature, denominator=denominator)
        return {"loss": loss, "prediction_loss": loss.detach(), "logits": logits.detach()}


class LabelObjective(nn.Module):
    """The gold labels: cross-entropy, or for a regression task the mean squared error."""

    def __init__(self, *, regression: bool = False) -> None:
        super().__init__()
        self.regression = regression

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch, need_value: bool = True
    ) -> LossTerms:
        """Return "loss" and "logits" (B, C); for a batch without labels the logits alone."""
        logits = student.logits
        assert logits is not None
        if batch.labels is None:
            return {"logits": logits.detach()}
        if self.regression:
            loss = regression_loss(logits.squeeze(-1), batch.labels, denominator=batch.counts.rows)
        else:
            loss = F.cross_entropy(logits.float(), batch.labels, reduction="sum") / batch.counts.rows
        return {"loss": loss, "logits": logits.detach()}


def _hidden_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: Batch,
    padding: Padding,
) -> Tensor:
    denominator = batch.counts.tokens * teacher_hidden.shape[-1]
    return hidden_state_loss(
        student_hidden, teacher_hidden, weight, bias, batch.attention_mask, padding=padding, denominator=denominator
    )
