"""DeepSpeed's Muon for the matrices of a student's layers, beside AdamW for everything else (arXiv 2502.16982)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_NUMBERED = re.compile(r"\.\d+\.")
_OF_MUON, _OF_ADAM = ("momentum", "ns_method"), ("betas", "eps")


def layer_matrices(encoder: nn.Module) -> list[Tensor]:
    """Return the weights of the linear maps in an encoder's numbered layers.

    Embeddings, the pooler and heads are none of them, nor is what stands outside the encoder, such as projections to
    the teacher's width.
    """
    return [
        module.weight
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and _NUMBERED.search(f".{name}.") and module.weight.requires_grad
    ]


def muon_optimizer(
    groups: Sequence[Mapping[str, Any]], params: Mapping[str, Any], matrices: Sequence[Tensor]
) -> torch.optim.Optimizer:
    """Make the optimizer of a config whose `optimizer.type` is Muon.

    The rate that is watched is the first group's, AdamW's.

    Args:
        groups: Parameters with their weight decay, see `decay_groups`.
        params: `optimizer.params`, resolved: `muon_lr` of the matrices, `lr` of everything else.
    """
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # noqa: PLC0415 - slow, and rarely needed

    chosen = {id(matrix) for matrix in matrices}
    halves: list[dict[str, Any]] = []
    for group in groups:
        for use_muon, lr, names in ((False, params["lr"], _OF_ADAM), (True, params["muon_lr"], _OF_MUON)):
            own = [parameter for parameter in group["params"] if (id(parameter) in chosen) == use_muon]
            settings = {name: params[name] for name in names if name in params}
            if own:
                halves.append({**group, "params": own, "use_muon": use_muon, "lr": lr, **settings})
    adam = {name: params[name] for name in _OF_ADAM if name in params}
    optimizer = MuonWithAuxAdam(halves, torch.optim.AdamW, {"fused": True, **adam})
    optimizer.step = MethodType(_step_uncompiled, optimizer)
    return optimizer


def _step_uncompiled(optimizer: Any, closure: Any = None) -> Any:
    """DeepSpeed compiles the update of each shape of a matrix, which takes minutes on a CPU and saves milliseconds."""
    with torch.compiler.set_stance("force_eager"):
        return type(optimizer).step(optimizer, closure)
