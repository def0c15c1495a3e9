"""The layers in their form for CUDA, against float64 and beside PyTorch's; on a CPU, run dry, they are PyTorch's."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

from tests.gpu.step import Check

if TYPE_CHECKING:
    from torch import Tensor, nn


def part_layers(check: Check) -> None:
    """Layer norms with and without an addition, frozen and trained; linear layers with their gradients; heads."""
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    from tinybert_ds.models.fused_attention import resized  # noqa: PLC0415

    def pad(heads: Tensor, width: int) -> Tensor:
        return nn.functional.pad(heads, (0, width - heads.shape[-1]))

    tokens = 64 if check.dry else 256 * 128
    for width, dtype, trains in ((768, torch.float16, False), (312, torch.bfloat16, True), (768, torch.bfloat16, True)):
        for given in (1, 2):
            name = f"layer norm of {width}, {'trained' if trains else 'frozen'}, {dtype}, {given} given"
            compare(check, name, nn.LayerNorm(width), [(tokens, width)] * given, dtype, trains=trains)
    for inner, width in ((312, 312), (312, 1200), (1200, 312), (768, 768)):
        name = f"linear layer of {inner} to {width}"
        compare(check, name, nn.Linear(inner, width), [(tokens, inner)], torch.bfloat16, trains=True)
    for size, width in ((26, 32), (32, 26)):
        heads = torch.randn(tokens // 4, 4, 12, size, device=check.device).bfloat16()
        own, plain = (functools.partial(resize, heads, width) for resize in (resized, pad))
        text = f"{check.milliseconds(own):.3f} ms, PyTorch's {check.milliseconds(plain):.3f}"
        check.say(f"heads of {size} as {width}", torch.equal(own(), plain()), text)


def compare(
    check: Check, name: str, plain: nn.Module, shapes: list[tuple[int, int]], dtype: Any, *, trains: bool
) -> None:
    """Say how far a layer is from float64 beside PyTorch's in the same dtype, and what both take."""
    import torch  # noqa: PLC0415

    from tests.support.numerics import relative_error  # noqa: PLC0415
    from tinybert_ds.models.cuda_layers import use_cuda_layers  # noqa: PLC0415

    torch.manual_seed(0)
    plain = plain.to(check.device, dtype).requires_grad_(trains)
    own, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    use_cuda_layers(own, torch.device(check.device))
    changed = type(own) is not type(plain)
    given = [torch.randn(shape, device=check.device).to(dtype) for shape in shapes]
    upstream = torch.randn_like(plain(given[0]))

    def run(layer: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
        inputs = [tensor.detach().requires_grad_(trains) for tensor in tensors]
        takes_both = layer is own and changed
        output = layer(*inputs) if takes_both else layer(inputs[0] if len(inputs) == 1 else inputs[0] + inputs[1])
        if not trains:
            return [output]
        wanted = [*inputs, *layer.parameters()]
        return [output, *torch.autograd.grad(output, wanted, upstream.to(output.dtype))]

    rounded = [sum(given[1:], given[0])]  # as the addition rounds it
    right = run(exact, [tensor.double() for tensor in rounded])
    right[1:2] = right[1:2] * len(given)
    errors = [
        max(relative_error(one, other) for one, other in zip(run(layer, given), right, strict=True))
        for layer in (own, plain)
    ]
    times = [check.milliseconds(functools.partial(run, layer, given)) for layer in (own, plain)]
    text = f"errors {errors[0]:.1e}, PyTorch's {errors[1]:.1e}; {times[0]:.3f} ms, PyTorch's {times[1]:.3f}"
    check.say(name, (changed or check.dry) and errors[0] <= 1.1 * errors[1] + 2.0**-16, text)
