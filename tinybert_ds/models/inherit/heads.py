"""The student's pooler and classifier, regressed from the teacher's.

n rows of a block, or tokens that are answered, H hidden size of the teacher, h of the student, C classes.
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
    share = None if source.dense is None or own.dense is None else _fit_dense(task, source, own)
    return share if own.classifier is None else _fit_classifier(task, source, own, columns)


def copy_head(teacher: PreTrainedModel, student: PreTrainedModel, columns: Sequence[int] | None) -> list[nn.Module]:
    """Start a head of the same width from the teacher's; return its linear layers, none where nothing is copied."""
    source, own = head_parts(teacher), head_parts(student)
    if source is None or own is None:
        return []
    copied: list[nn.Module] = []
    if source.dense is not None and own.dense is not None:
        if source.dense.weight.shape != own.dense.weight.shape:
            return []
        own.dense.load_state_dict(source.dense.state_dict())
        copied.append(own.dense)
    if source.classifier is not None and own.classifier is not None:
        outputs = slice(None) if columns is None else list(columns)
        own.classifier.weight.copy_(source.classifier.weight[outputs])
        own.classifier.bias.copy_(source.classifier.bias[outputs])
        copied.append(own.classifier)
    return copied


def _fit_dense(task: Task, source: HeadParts, own: HeadParts) -> float:
    """Fit the layer before the classifier to the neurons of the teacher's that matter most."""
    dense, theirs = own.dense, source.dense
    assert dense is not None
    assert theirs is not None

    def activity(number: int) -> Sums:
        activated = source.features(_teacher_states(task, number, source)).double()
        return {"a": activated.sum(0), "aa": activated.square().sum(0), "rows": activated.new_tensor(len(activated))}

    sums = task.blocks.sum(activity)
    importance = sums["aa"] / sums["rows"] - (sums["a"] / sums["rows"]).square()
    if source.classifier is not None:
        importance = importance * source.classifier.weight.double().square().sum(0)
    chosen = choose_neurons(importance, dense.out_features)
    weight, bias = theirs.weight[chosen], theirs.bias[chosen]

    def inputs(number: int) -> Sums:
        target = F.linear(_teacher_states(task, number, source), weight, bias)
        return regression_sums(_student_states(task, number, own), target)

    return fit_chosen(task, dense, Regression(**task.blocks.sum(inputs)), ridge=HEAD_RIDGE)


def _fit_classifier(task: Task, source: HeadParts, own: HeadParts, columns: Sequence[int] | None) -> float:
    assert source.classifier is not None
    assert own.classifier is not None
    classifier = source.classifier

    def logits(number: int) -> Sums:
        target = classifier(source.features(_teacher_states(task, number, source)))
        target = target if columns is None else target[:, list(columns)]
        return regression_sums(own.features(_student_states(task, number, own)), target)

    ridge = task.ridge if own.dense is None else HEAD_RIDGE
    return fit_chosen(task, own.classifier, Regression(**task.blocks.sum(logits)), ridge=ridge)


def _teacher_states(task: Task, number: int, head: HeadParts) -> Tensor:
    """The teacher's last states (n, H) of what its head answers."""
    state, mask = task.blocks.kept(number, "teacher"), task.blocks.mask(number)
    for layer in task.teacher_layers[task.layer_map[-1] :]:
        state = run_layer(layer, state, mask)
    return state[_answered(task, number, head)]


def _student_states(task: Task, number: int, head: HeadParts) -> Tensor:
    """The student's last states (n, h) of what its head answers."""
    return task.blocks.kept(number, task.kept)[_answered(task, number, head)]


def _answered(task: Task, number: int, head: HeadParts) -> Tensor:
    """Which of the real tokens of a block a head answers: the first of each row, or those that stand for themselves."""
    mask, units = task.blocks.mask(number), task.blocks.batches[number].units
    if head.dense is not None:
        lengths = mask.sum(dim=1)
        return lengths.cumsum(0) - lengths
    chosen = mask if units is None else units.to(mask.device)
    return chosen[mask].nonzero()[:, 0]
