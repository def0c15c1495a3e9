"""The student's engine: encoder, projections and losses under one DeepSpeed optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any

import deepspeed
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from tinybert_ds.engine.deepspeed_private import (
    clip_at_once,
    float32_masters,
    forget_first_step,
    hand_over_whole_gradients,
    place_weights_once,
    reduce_nothing_alone,
    total_norm,
)
from tinybert_ds.engine.ds_defaults import fitted_buckets
from tinybert_ds.engine.muon import layer_matrices, muon_optimizer
from tinybert_ds.engine.optimizer_check import is_muon
from tinybert_ds.models.cuda_layers import use_cuda_layers
from tinybert_ds.models.student import decay_groups

ENCODER_PREFIX = "encoder.model."
"""Of the model's weights in the state of an engine's module."""
DECAY_SHARE = 0.2
"""Of all steps, which "warmup_stable_decay" ends with (arXiv 2405.18392)."""


def learning_rate_factor(step: int, *, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """Share of the peak learning rate that a step is taken with.

    Args:
        step: Steps taken before, from 0.
        warmup_steps: Steps of the linear rise; the last of them has the peak rate.
        schedule: "linear" decays to 0 just after the last step, "cosine" does so along a half cosine,
            "warmup_stable_decay" linearly over the last `DECAY_SHARE` of all steps; "constant" stays.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "warmup_stable_decay":
        return min(1.0, max(0.0, (total_steps - step) / max(1.0, DECAY_SHARE * total_steps)))
    left = max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    return (1 - math.cos(math.pi * left)) / 2 if schedule == "cosine" else left


def build_engine(
    module: nn.Module, config: dict[str, Any], *, weight_decay: float, total_steps: int, warmup: float, schedule: str
) -> Any:
    """Hand the student to `deepspeed.initialize`; return the engine.

    Args:
        module: Encoder and objective in one module; its trainable parameters are what the optimizer gets.
        warmup: Share of them that is warm-up.
        schedule: See `learning_rate_factor`, unless the config has a scheduler of its own.
    """
    factor = partial(
        learning_rate_factor, total_steps=total_steps, warmup_steps=int(warmup * total_steps), schedule=schedule
    )
    originals = {
        name: value.detach().to("cpu", copy=True)
        for name, value in chain(module.named_parameters(remove_duplicate=False), module.named_buffers())
        if value.is_floating_point() and not value.requires_grad
    }
    own_schedule = None if config.get("scheduler") else partial(LambdaLR, lr_lambda=factor)
    config = fitted_buckets(config, sum(p.numel() for p in module.parameters() if p.requires_grad))
    muon = None
    if is_muon(config):  # made here: DeepSpeed would take it for projections and heads, too
        muon = partial(
            muon_optimizer,
            params=config["optimizer"]["params"],
            matrices=layer_matrices(module.get_submodule("encoder")),
        )
        config = {name: section for name, section in config.items() if name != "optimizer"}
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=muon,
        model_parameters=decay_groups(module, weight_decay),
        config=config,
        lr_scheduler=own_schedule,
        dist_init_required=False,
    )
    if not engine.zero_optimization_partition_weights():
        use_cuda_layers(engine.module, engine.device)
    forget_first_step(engine.optimizer)
    clip_at_once(engine)
    reduce_nothing_alone(engine)
    hand_over_whole_gradients(engine)
    place_weights_once(engine)
    engine.untrained_originals = originals  # the engine rounds its own copies in half precision
    return engine


def gradient_norm(engine: Any) -> Tensor | None:
    """Global gradient norm before clipping, read between `backward` and `step`, where ZeRO leaves gradients in place.

    Returns:
        The norm, still on the device; None for an engine that computes it inside `step` (ask
        `engine.get_global_grad_norm()` afterwards), as every one does that clips.
    """
    own = engine.zero_optimization() or engine.fp16_enabled() or engine.bfloat16_enabled()
    if own or engine.gradient_clipping() > 0:
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return total_norm(gradients)


def state_below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return what a state dict holds below a prefix, by the names behind it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def full_state(engine: Any) -> dict[str, Tensor]:
    """Gather the engine's parameters and buffers in full: trained ones as the optimizer's float32 masters, the others
    as they were before the engine rounded them.

    All ranks must call it. Returns the module's state dict, on CPU.
    """
    module = engine.module
    state = dict(module.state_dict())
    masters = float32_masters(engine.optimizer)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in engine.untrained_originals:
            continue
        if engine.zero_optimization() and parameter.requires_grad:
            state[name] = safe_get_full_fp32_param(parameter)
        else:
            with deepspeed.zero.GatheredParameters([parameter], enabled=engine.zero_optimization_partition_weights()):
                state[name] = masters.get(id(parameter), parameter).detach().float().clone()
    state |= {name: value for name, value in engine.untrained_originals.items() if name in state}
    return {name: value.detach().cpu() for name, value in state.items()}
