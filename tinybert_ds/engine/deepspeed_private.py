"""What is done to DeepSpeed behind its interface, all of it here; seen to work with DeepSpeed 0.19.8.

After an update of DeepSpeed read its code at these places, and run tests/distributed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import deepspeed
import deepspeed.comm as dist
import deepspeed.comm.comm
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor


def leave_out_shared_memory_extension() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives for CPUs, which takes minutes; gloo does the work."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextmanager
def replaced_backend(replace: Callable[[Any], Any]) -> Iterator[None]:
    """Let what `replace` makes of DeepSpeed's communication backend stand in for it inside the context."""
    backend = deepspeed.comm.comm.cdb
    deepspeed.comm.comm.cdb = replace(backend)
    try:
        yield
    finally:
        deepspeed.comm.comm.cdb = backend


@contextmanager
def replaced_writers(
    engine: Any, writer: Any, copy_script: Callable[[Callable[[str], None], str], None]
) -> Iterator[None]:
    """Let an engine write its checkpoint files through `writer` inside the context.

    Args:
        writer: Stands in for its checkpoint engine.
        copy_script: Called with DeepSpeed's own function, which puts zero_to_fp32.py beside the checkpoints, and its
            argument.
    """
    checkpoint_engine, own_copy = engine.checkpoint_engine, engine._copy_recovery_script
    engine.checkpoint_engine = writer
    engine._copy_recovery_script = lambda save_path: copy_script(own_copy, save_path)
    try:
        yield
    finally:
        engine.checkpoint_engine, engine._copy_recovery_script = checkpoint_engine, own_copy


@contextmanager
def loading_universal(engine: Any) -> Iterator[None]:
    """Let an engine read the universal format inside the context.

    It is what the JSON's {"checkpoint": {"load_universal": true}} sets; of the run's own later loads it must not hold.
    """
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False


def mend_stage3(engine: Any, decays: list[float]) -> None:
    """Undo two faults of the ZeRO-3 loader of universal checkpoints.

    All parameters share one step counter, which each of them raises, and all groups get the weight decay of the first.
    """
    adam = engine.optimizer.optimizer
    for state in adam.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    for group, decay in zip(adam.param_groups, decays, strict=True):
        group["weight_decay"] = decay


def min_loss_scale(engine: Any) -> float:
    """Return what fp16's dynamic loss scale cannot fall below."""
    return float(engine._config.float16_config.min_loss_scale)


def forget_first_step(optimizer: Any) -> None:
    """Undo the step with zero gradients that DeepSpeed's half-precision optimizer without ZeRO takes when it is made.

    Left alone, it counts as Adam's first step, and the first real update is a quarter smaller than with ZeRO.
    """
    if not isinstance(optimizer, FP16_UnfusedOptimizer):
        return
    optimizer.optimizer.state.clear()
    for master, parameter in _pairs(optimizer):
        master.data.copy_(parameter)


def reduce_nothing_alone(engine: Any) -> None:
    """Keep the engine of a single rank without ZeRO from summing its gradients with those of no other rank.

    DeepSpeed copies all of them into one tensor, reduces that, and copies them back.
    """
    if engine.dp_world_size == 1 and not engine.zero_optimization():
        engine.enable_backward_allreduce = False


def hand_over_whole_gradients(engine: Any) -> None:
    """Let the engine of a single rank under ZeRO 1 or 2 take its gradients as autograd leaves them.

    DeepSpeed copies each of them into a bucket as soon as it is there, sums the bucket with that of no other rank, and
    copies each one twice more: a hook in Python and three launches for every parameter. Its epilogue then reads them
    from where they were in the first place, and so do `step`, norms and checks for overflow. Accumulation over
    micro-batches stays its own. Offloading, gradients accumulated or sent in another precision than the weights', and
    Muon keep its way.
    """
    optimizer = engine.optimizer
    if not isinstance(optimizer, DeepSpeedZeroOptimizer) or engine.dp_world_size > 1:
        return
    moves_gradients = optimizer.cpu_offload or optimizer.has_moe_layers or optimizer.zenflow or optimizer.overlap_comm
    dtypes = {optimizer.gradient_accumulation_dtype, *optimizer.ipg_buckets}
    if moves_gradients or dtypes != {optimizer.dtype} or "muon" in type(optimizer.optimizer).__name__.lower():
        return
    for hook in optimizer._grad_acc_hooks:
        hook.remove()
    optimizer._grad_acc_hooks = []
    optimizer.reduce_ipg_grads = _nothing
    optimizer.reduce_ready_partitions_and_remove_grads = _nothing


def _nothing(*_: Any, **__: Any) -> None:
    """Stand in for what a single rank has no use for."""


def place_weights_once(engine: Any) -> None:
    """Keep ZeRO 1 and 2 from making views of its flat weights anew after every step where the weights are such views.

    DeepSpeed itself doubts in a comment that it needs them: they are four views in Python for each parameter.
    """
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        optimizer._update_model_bit16_weights = partial(_place_moved_weights, optimizer)


def _place_moved_weights(optimizer: Any, group: int) -> None:
    """Stand in for ZeRO's `_update_model_bit16_weights`: flat weights move whole, and the first one tells of all."""
    first, offset = optimizer.round_robin_bit16_groups[group][0], optimizer.round_robin_bit16_offsets[group][0]
    if first.data_ptr() != optimizer.bit16_groups_flat[group][offset:].data_ptr():
        DeepSpeedZeroOptimizer._update_model_bit16_weights(optimizer, group)


def clip_at_once(engine: Any) -> None:
    """Let an engine take the norm of its gradients in a few launches and clip by it without waiting for the device.

    DeepSpeed takes the norm of every gradient by itself, and asks the device for each group of parameters whether the
    norm is finite. One that is not becomes infinite here as there: clipping by it leaves nothing that is finite. The
    engines of ZeRO 1 and 2 and those of fp32 weights are changed; offloading and ZeRO 3 keep their norms elsewhere.
    """
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        if not (optimizer.cpu_offload or optimizer.has_moe_layers):
            optimizer.scaled_global_norm = partial(_norm_at_once, optimizer)
            optimizer.unscale_and_clip_grads = partial(_clip_without_asking, optimizer)
    elif not (engine.zero_optimization() or engine.fp16_enabled() or engine.bfloat16_enabled()):
        engine.clip_fp32_gradients = partial(_clip_whole_gradients, engine)


def _norm_at_once(optimizer: Any, norm_type: int = 2) -> Tensor:
    """Stand in for ZeRO's `scaled_global_norm`: the norm of all ranks' gradients, infinite if it is no number."""
    parts = [part for group in optimizer.averaged_gradients.values() for part in group or () if part is not None]
    own = [part for part in parts if not getattr(part, "_zero_padding", False)]
    total = torch.zeros((), dtype=torch.float32, device=optimizer.device)
    if own:
        total = torch.stack(torch._foreach_norm(own, norm_type, dtype=torch.float32)).square().sum()
    if dist.get_world_size(optimizer.dp_process_group) > 1:
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=optimizer.dp_process_group)
    return total.sqrt_().nan_to_num_(nan=math.inf, posinf=math.inf)


def _clip_without_asking(optimizer: Any, gradients: list[Tensor], total_norm: Tensor | None) -> None:
    """Stand in for ZeRO's `unscale_and_clip_grads`, of which it is the arithmetic without the question."""
    scale, most = optimizer.loss_scale, optimizer.clip_grad
    if not most and scale == 1.0:
        vars(optimizer.optimizer).pop("grad_scale", None)  # of a step before, when the loss scale was another
        return
    taken: tuple[Tensor | None, Tensor] | None = getattr(optimizer, "_tinybert_ds_divisor", None)
    if taken is None or total_norm is None or taken[0] is not total_norm:  # it is called for each group of parameters
        divisor = torch.full((), scale, dtype=torch.float32, device=optimizer.device)
        if most:
            assert total_norm is not None
            divisor *= (total_norm / scale + 1e-6).div_(most).clamp_(min=1.0)
        taken = optimizer._tinybert_ds_divisor = (total_norm, divisor)
    _divide(gradients, taken[1], optimizer.optimizer)


def _divide(gradients: list[Tensor], divisor: Tensor, optimizer: Any) -> None:
    """Divide gradients by a scalar, or let the optimizer do so in its next step.

    A fused Adam divides by its `grad_scale` while it reads them (`torch.amp` hands over loss scales so): no pass over
    all gradients for that.
    """
    if isinstance(optimizer, torch.optim.Adam) and optimizer.defaults["fused"]:
        vars(optimizer)["grad_scale"] = divisor
    else:
        torch._foreach_mul_(gradients, divisor.reciprocal())


def _clip_whole_gradients(engine: Any) -> None:
    """Stand in for the engine's `clip_fp32_gradients`; `get_global_grad_norm` returns the norm that it took."""
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = total_norm(gradients)
    _divide(gradients, (norm + 1e-6).div_(engine.gradient_clipping()).clamp_(min=1.0), engine.optimizer)
    engine._global_grad_norm = norm


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of all gradients as float32; `torch.nn.utils` asks each one's for its device, too."""
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)))


def float32_masters(optimizer: Any) -> dict[int, Tensor]:
    """Return the float32 masters that the optimizer without ZeRO keeps, by the id of their half-precision parameter."""
    unfused = isinstance(optimizer, FP16_UnfusedOptimizer)
    return {id(parameter): master for master, parameter in _pairs(optimizer)} if unfused else {}


def _pairs(optimizer: FP16_UnfusedOptimizer) -> list[tuple[Tensor, Tensor]]:
    groups = zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True)
    return [pair for fp32, fp16 in groups for pair in zip(fp32, fp16, strict=True)]
