"""How far a student's sentence vectors are from its teacher's: by position, by direction, by relations in the batch.

B rows, N rows of the whole batch, V width. Each loss sums over rows and divides by `denominator`, the rows of the
global batch over the number of its micro-batches (`types.Counts.rows`).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def vector_distance(student: Tensor, teacher: Tensor, *, denominator: float) -> Tensor:
    """Return the sum of the rows' squared distances (LEAF, arXiv 2509.12539), divided.

    Args:
        student, teacher: (B, V) of any length.
    """
    return (student - teacher).square().sum() / denominator


def vector_angle(student: Tensor, teacher: Tensor, *, denominator: float) -> Tensor:
    """Return the sum over the rows of 1 - cosine, divided; arguments as of `vector_distance`."""
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).sum() / denominator


def vector_relations(
    student: Tensor, teacher: Tensor, all_student: Tensor, all_teacher: Tensor, *, denominator: float
) -> Tensor:
    """Return the squared differences of two similarity matrices, averaged over a row, summed over the rows, divided.

    The matrices are the cosines of this rank's rows with all rows of the batch. An entry depends on two rows, and the
    gradient with respect to each row is that of the whole matrix, in which it stands twice, although `all_student` is
    held fixed: the gradients of several ranks sum up to those of one.

    Args:
        student, teacher: (B, V) of this rank's rows, of any length.
        all_student, all_teacher: (N, V) of the rows of all ranks, of length 1, without gradients.
    """
    own = F.normalize(student, dim=-1) @ all_student.T
    wanted = F.normalize(teacher, dim=-1) @ all_teacher.T
    half = (own - wanted).square().sum() / (max(1, len(all_student)) * denominator)
    return 2 * half - half.detach()
