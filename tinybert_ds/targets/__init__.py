"""What tasks may be answered with: one file for each kind of target, and this list of them.

Whoever reads a task's labels, builds a head, computes a loss, judges or writes predictions asks the task's target.
"""

from __future__ import annotations

from collections.abc import Mapping

from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.targets.labels import OneLabel
from tinybert_ds.targets.multi_label import SeveralLabels
from tinybert_ds.targets.scores import Score, ScoreMargin
from tinybert_ds.targets.spans import Spans
from tinybert_ds.targets.tags import Tags
from tinybert_ds.targets.target import Labels, Target

__all__ = ["LABELS", "MARGINS", "SCORES", "TARGETS", "Labels", "Target", "target_of"]

LABELS, SCORES = OneLabel(), Score()
MARGINS = ScoreMargin()
"""Scores that learn a teacher's margins within groups."""
TARGETS: Mapping[str, Target] = {target.name: target for target in (LABELS, SCORES, SeveralLabels(), Tags(), Spans())}
"""By the name that `target` in a task file gives them."""


def target_of(spec: TaskSpec) -> Target:
    """Return the target of a task."""
    return TARGETS[spec.kind]
