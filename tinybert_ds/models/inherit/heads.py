"""The student's pooler and classifier, regressed from the teacher's.

n rows of a block, H hidden size of the teacher, h of the student, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinybert_ds.models.inherit.factors import choose_neurons
from tinybert_ds.models.inherit.fit import Task, fit_chosen
from tinybert_ds.models.inherit.layers import HeadParts, head_parts, run_layer
from tinybert_ds.models.inherit.sums import Regression, Sums, regression_sums

HEAD_RIDGE = 1e-2
"""A head is fitted on one token of each row: there are far fewer of them, and more for each to say."""


def fit_head(
    task: Task, teacher: PreTrainedModel, student: PreTrainedModel, columns: Sequence[int] | None
) -> float | None:
    """Fit the student's pooler, and its classifier where both models have one, once all layers are fitted.

    Args:
        task: The models and the text.
        teacher, student: Bare encoders, or classifiers.
        columns: The teacher's output for each of the student's; None: in the same order.

    Returns:
        The share of the variance of the teacher's logits (of its pooler's inputs, without a classifier) that is
        explained; None where there is nothing to fit.
    """
    source, own = head_parts(teacher), head_parts(student)
    if source is None or own is None:
        return None
    share = _fit_dense(task, source, own)
    return share if own.classifier is None else _fit_classifier(task, source, own, columns)


def copy_head(teacher: PreTrainedModel, student: PreTrainedModel, columns: Sequence[int] | None) -> list[nn.Module]:
    """Start a head of the same width from the teacher's; return its linear layers, none where nothing is copied."""
    source, own = head_parts(teacher), head_parts(student)
    if source is None or own is None or source.dense.weight.shape != own.dense.weight.shape:
        return []
    own.dense.load_state_dict(source.dense.state_dict())
    if source.classifier is None or own.classifier is None:
        return [own.dense]
    outputs = slice(None) if columns is None else list(columns)
    own.classifier.weight.copy_(source.classifier.weight[outputs])
    own.classifier.bias.copy_(source.classifier.bias[outputs])
    return [own.dense, own.classifier]


def _fit_dense(task: Task, source: HeadParts, own: HeadParts) -> float:
    """Fit the layer before the classifier to the neurons of the teacher's that matter most."""

    def activity(number: int) -> Sums:
        activated = source.activation(source.dense(_teacher_rows(task, number))).double()
        return {"a": activated.sum(0), "aa": activated.square().sum(0), "rows": activated.new_tensor(len(activated))}

    sums = task.blocks.sum(activity)
    importance = sums["aa"] / sums["rows"] - (sums["a"] / sums["rows"]).square()
    if source.classifier is not None:
        importance = importance * source.classifier.weight.double().square().sum(0)
    chosen = choose_neurons(importance, own.dense.out_features)
    weight, bias = source.dense.weight[chosen], source.dense.bias[chosen]

    def inputs(number: int) -> Sums:
        return regression_sums(_student_rows(task, number), F.linear(_teacher_rows(task, number), weight, bias))

    return fit_chosen(task, own.dense, Regression(**task.blocks.sum(inputs)), ridge=HEAD_RIDGE)


def _fit_classifier(task: Task, source: HeadParts, own: HeadParts, columns: Sequence[int] | None) -> float:
    assert source.classifier is not None
    assert own.classifier is not None
    classifier = source.classifier

    def logits(number: int) -> Sums:
        target = classifier(source.activation(source.dense(_teacher_rows(task, number))))
        target = target if columns is None else target[:, list(columns)]
        return regression_sums(own.activation(own.dense(_student_rows(task, number))), target)

    return fit_chosen(task, own.classifier, Regression(**task.blocks.sum(logits)), ridge=HEAD_RIDGE)


def _teacher_rows(task: Task, number: int) -> Tensor:
    """The teacher's last states of the rows' first tokens (n, H)."""
    state, mask = task.blocks.kept(number, "teacher"), task.blocks.mask(number)
    for layer in task.teacher_layers[task.layer_map[-1] :]:
        state = run_layer(layer, state, mask)
    return state[_first_tokens(mask)]


def _student_rows(task: Task, number: int) -> Tensor:
    """The student's last states of the rows' first tokens (n, h)."""
    mask = task.blocks.mask(number)
    return task.blocks.kept(number, task.kept)[_first_tokens(mask)]


def _first_tokens(mask: Tensor) -> Tensor:
    """Where the rows begin among the real tokens of a block."""
    lengths = mask.sum(dim=1)
    return lengths.cumsum(0) - lengths
