"""Made inputs for the hidden-state loss.

B batch rows, S sequence length, H hidden size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDING = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
PROJECTIONS = ["weight and bias", "weight", "none"]


def hidden_case(
    projection: str, rho: float, sizes: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return float64 student and teacher states, weight and bias; the loss is about ρ times the variance.

    Args:
        sizes: B, S, H_student, H_teacher.
    """
    batch, length, student_width, teacher_width = sizes
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student = draw(batch, length, student_width)
    weight = draw(teacher_width, student_width) / math.sqrt(student_width) if projection != "none" else None
    bias = draw(teacher_width) if projection == "weight and bias" else None
    ideal = student if weight is None else torch.nn.functional.linear(student, weight, bias)
    return student, ideal + math.sqrt(rho) * ideal.std() * draw(*ideal.shape), weight, bias
