"""What each stage minimises: the layer map and the losses put together into LossTerms.

An objective is a module beside the student's encoder, inside one engine: it owns the projections, and every use of a
trained parameter is inside its forward, as ZeRO-3 demands. It is called as
`objective(student_output, teacher_output, batch)`.
B batch rows, S sequence length, H hidden size, C classes, M student layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tinybert_ds.losses import (
    attention_score_loss,
    hidden_state_loss,
    relation_loss,
)
from tinybert_ds.targets import LABELS, Target
from tinybert_ds.types import Batch, EncoderOutput, LossTerms, unit_outputs

Padding = Literal["valid", "reference"]
ProjectionKind = Literal["per_layer", "shared", "none"]

_PROJECTION_STD = 0.02  # as BERT initialises its linear layers


class LossWeights(NamedTuple):
    """Factors of the terms of `IntermediateObjective`, all 1 as published; a term of weight 0 is not computed."""

    attention: float = 1.0
    hidden: float = 1.0  # of the states 1..M
    embedding: float = 1.0  # of state 0

    def states(self, num_layers: int) -> tuple[int, ...]:
        """The student's states that are compared."""
        return (*((0,) if self.embedding else ()), *(range(1, num_layers + 1) if self.hidden else ()))

    def attention_layers(self, num_layers: int) -> tuple[int, ...]:
        """The student's layers whose attention is compared."""
        return tuple(range(num_layers)) if self.attention else ()


class Relations(NamedTuple):
    """Relations between tokens, compared in the place of attention scores (arXiv 2012.15828).

    They ask for no equal number of attention heads. A layer's term is the sum of those of its queries, keys and
    values, each times its factor; one of factor 0 is not computed.
    """

    layers: tuple[int, ...]  # of the student, 0-based
    heads: int  # see `losses.choose_relation_heads`
    form: Literal["scores", "kl"] = "kl"
    queries: float = 1.0
    keys: float = 1.0
    values: float = 1.0


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
    """Attention scores and hidden states of the mapped layers (arXiv 1909.10351, eq. 7 to 9).

    Both models' outputs hold the states and layers that the weights leave in, in that order, and no others.

    Args:
        num_layers: Student layers M; there are M + 1 hidden-state terms (embeddings included) and M attention terms.
        projection: One for each state, one for all, or none where widths agree.
        relations: What is compared instead of attention scores, with the weight of these.
        variances: Name of a term -> what it is divided by in the sum, beside its weight: the variance of the teacher's
            tensor, so that no term is large by its units alone. None: 1 for all.
    """

    is_recordable = True  # nothing in it reads numbers of the device: see `engine.graphs`

    def __init__(
        self,
        num_layers: int,
        student_hidden_size: int,
        teacher_hidden_size: int,
        *,
        projection: ProjectionKind,
        padding: Padding,
        weights: LossWeights | None = None,
        relations: Relations | None = None,
        variances: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.weights = weights or LossWeights()
        self.variances = dict(variances or {})
        self.states = self.weights.states(num_layers)
        self.relations = relations
        self.attention_layers = self.weights.attention_layers(num_layers)
        if relations is not None and self.weights.attention:
            self.attention_layers = relations.layers
        assert self.states or self.attention_layers, "every term has weight 0"
        count = {"per_layer": num_layers + 1, "shared": 1, "none": 0}[projection]
        self.padding: Padding = padding
        self.projections = nn.ModuleList(
            ProjectedHiddenLoss(student_hidden_size, teacher_hidden_size) for _ in range(count)
        )
        used = {self._projection_index(state) for state in self.states}
        for index, module in enumerate(self.projections):
            module.requires_grad_(index in used)  # or weight decay would shrink what no loss holds

    @property
    def attention_names(self) -> list[str]:
        """The names of the attention terms, or of the relations', in the order of the layers."""
        name = "attention_loss" if self.relations is None else "relation_loss"
        return [f"{name}/layer_{layer + 1}" for layer in self.attention_layers]

    @property
    def hidden_names(self) -> list[str]:
        """The names of the hidden-state terms in the order of the states."""
        return [f"hidden_loss/state_{state}" for state in self.states]

    @property
    def term_names(self) -> list[str]:
        """The names of all terms."""
        return self.attention_names + self.hidden_names

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, batch: Batch) -> LossTerms:
        """Return "loss", "attention_loss", "hidden_loss" and each term by layer; all but "loss" as they are, without
        weights and variances.

        Losses of weight 0 are missing. With relations it is "relation_loss" instead of "attention_loss".
        """
        weights = self.weights
        batch = batch._replace(attention_mask=batch.attention_mask.bool())  # once, and not in every loss
        name, term = ("attention_loss", self._attention_term)
        if self.relations is not None:
            name, term = ("relation_loss", self._relation_term)
        attention = {each: term(student, teacher, batch, place) for place, each in enumerate(self.attention_names)}
        hidden = {
            each: self._hidden_term(student, teacher, batch, place, state)
            for place, (each, state) in enumerate(zip(self.hidden_names, self.states, strict=True))
        }
        factors = [weights.attention] * len(attention)
        factors += [weights.hidden if state else weights.embedding for state in self.states]
        terms = attention | hidden
        weighed = (
            (term, factor / self.variances.get(name, 1.0))
            for (name, term), factor in zip(terms.items(), factors, strict=True)
        )
        total = torch.stack([term if factor == 1 else term * factor for term, factor in weighed]).sum()
        sums = {name: attention, "hidden_loss": hidden}
        return {
            "loss": total,
            **{name: torch.stack(list(parts.values())).detach().sum() for name, parts in sums.items() if parts},
            **{name: term.detach() for name, term in (attention | hidden).items()},
        }

    def _attention_term(self, student: EncoderOutput, teacher: EncoderOutput, batch: Batch, place: int) -> Tensor:
        num_heads = student.queries[place].shape[1]
        return attention_score_loss(
            student.queries[place],
            student.keys[place],
            teacher.queries[place],
            teacher.keys[place],
            batch.attention_mask,
            student_scaling=student.scalings[place],
            teacher_scaling=teacher.scalings[place],
            padding=self.padding,
            denominator=num_heads * batch.counts.token_pairs,
        )

    def _relation_term(self, student: EncoderOutput, teacher: EncoderOutput, batch: Batch, place: int) -> Tensor:
        relations = self.relations
        assert relations is not None
        rows = batch.counts.token_pairs if relations.form == "scores" else batch.counts.tokens
        compared = (
            (relations.queries, student.queries, teacher.queries),
            (relations.keys, student.keys, teacher.keys),
            (relations.values, student.values, teacher.values),
        )
        terms = [
            factor
            * relation_loss(
                ours[place],
                theirs[place],
                batch.attention_mask,
                relation_heads=relations.heads,
                form=relations.form,
                padding=self.padding,
                denominator=relations.heads * rows,
            )
            for factor, ours, theirs in compared
            if factor
        ]
        assert terms, "every relation has factor 0"
        return torch.stack(terms).sum()

    def _hidden_term(
        self, student: EncoderOutput, teacher: EncoderOutput, batch: Batch, place: int, state: int
    ) -> Tensor:
        pair = student.hidden_states[place], teacher.hidden_states[place]
        if not self.projections:
            return _hidden_loss(*pair, None, None, batch, self.padding)
        return self.projections[self._projection_index(state)](*pair, batch, self.padding)

    def _projection_index(self, state: int) -> int:
        return state if len(self.projections) > 1 else 0


class PredictionObjective(nn.Module):
    """The teacher's predictions (arXiv 1909.10351, eq. 10), the gold labels, or both.

    What either part is, the task's target says.

    Args:
        weight: Factor of the teacher's part; 0: no teacher is asked.
        label_weight: Factor of the labels' part; 0: not computed.
        form: Of the teacher's part, where the target has several: one of `--prediction_loss`.
        mixes: Whether each row's teacher part is multiplied by the teacher's confidence in its label, and its label
            part by the rest.
        teacher_columns: The teacher's output for each of our classes: labels are matched by name, not by position.
    """

    is_recordable = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        label_weight: float = 0.0,
        temperature: float = 1.0,
        form: str = "cross_entropy",
        mixes: bool = False,
        target: Target = LABELS,
        teacher_columns: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        assert weight > 0 or label_weight > 0, "every term has weight 0"
        self.weight = weight
        self.label_weight = label_weight
        self.temperature = temperature
        self.form = form
        self.mixes = mixes
        self.target = target
        columns = None if teacher_columns is None else torch.tensor(teacher_columns, dtype=torch.int64)
        self.register_buffer("teacher_columns", columns, persistent=False)  # a list would be copied to the device

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> LossTerms:
        """Return "loss", "prediction_loss", "label_loss" and "logits" (B, C), losses of weight 0 left out.

        Without a teacher's output and labels (evaluation) the logits alone.
        """
        assert student.logits is not None
        logits = unit_outputs(student.logits, batch)
        if batch.labels is None and teacher is None:
            return {"logits": logits.detach()}
        total, terms = logits.new_zeros((), dtype=torch.float32), {}
        trusted = None
        if self.weight:
            assert teacher is not None
            assert teacher.logits is not None
            outputs = self._answers(unit_outputs(teacher.logits, batch))
            trusted = self.target.confidence(outputs, batch) if self.mixes else None
            prediction_loss = self.target.formed_loss(
                logits, outputs, batch, form=self.form, temperature=self.temperature, row_weights=trusted
            )
            total = total + self.weight * prediction_loss
            terms["prediction_loss"] = prediction_loss.detach()
        if self.label_weight:
            if trusted is None:
                label_loss = self.target.label_loss(logits, batch)
            else:
                label_loss = self.target.weighed_label_loss(logits, batch, 1 - trusted)
            total = total + self.label_weight * label_loss
            terms["label_loss"] = label_loss.detach()
        return {"loss": total, **terms, "logits": logits.detach()}

    def _answers(self, logits: Tensor) -> Tensor:
        """The teacher's logits (n, C) in the order of the task's classes."""
        columns = self.teacher_columns
        return logits.index_select(-1, columns) if isinstance(columns, Tensor) else logits


class JointObjective(IntermediateObjective):
    """Hidden layers and predictions together: the sum of both objectives' losses.

    Args:
        predictions: What is learnt of the predictions; the rest are the arguments of `IntermediateObjective`.
    """

    def __init__(self, *arguments: Any, predictions: PredictionObjective, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.predictions = predictions

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> LossTerms:
        """Return the terms of both; without a teacher's output (evaluation) those of the predictions, the logits."""
        predicted = self.predictions(student, teacher, batch)
        if teacher is None:
            return predicted
        layers = super().forward(student, teacher, batch)
        return {**layers, **predicted, "loss": layers["loss"] + predicted["loss"]}


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
