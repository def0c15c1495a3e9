"""Whether the optimizer of a DeepSpeed JSON can be made: tried on one number, before any model is loaded."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.utils import logger as deepspeed_logger

_OF_DEEPSPEED = frozenset({"lr", "bias_correction", "betas", "eps", "weight_decay"})
"""What both of DeepSpeed's own Adams take, the one for GPUs and the one for offloading; neither takes amsgrad."""
_OF_MUON = frozenset({"lr", "muon_lr", "momentum", "ns_method", "betas", "eps", "weight_decay"})
_NS_METHODS = ("gram", "standard")
_STEPS = {"warmup_num_steps": 2, "total_num_steps": 4}
_CHOICES = frozenset({"torch_adam", "adam_w_mode"})  # which of them it is


def optimizer_problems(params: Mapping[str, Any], device_type: str) -> list[str]:
    """Return what is wrong with the `params` of an Adam or AdamW, one sentence each.

    Args:
        params: As in the JSON; "auto" stands for a value of the command line.
    """
    wrong = [name for name in sorted(_CHOICES & set(params)) if not isinstance(params[name], bool)]
    if wrong:
        return [f"optimizer.params.{name} is {params[name]!r:.100}; it must be true or false" for name in wrong]
    torchs = frozenset(inspect.signature(torch.optim.AdamW).parameters) - {"params"}
    known = _CHOICES | (torchs if params.get("torch_adam") else _OF_DEEPSPEED)
    if unknown := sorted(set(params) - known):
        where = ' (with "torch_adam": true also those of torch.optim.AdamW)' if unknown[0] in torchs - known else ""
        names = ", ".join(name[:100] for name in unknown[:10])
        return [f"optimizer.params: unknown {names}; known are {', '.join(sorted(known))}{where}"]
    values = {name: value for name, value in params.items() if name in torchs and value != "auto"}
    number = torch.zeros(1, requires_grad=True)
    number.grad = torch.zeros(1)
    try:
        optimizer = torch.optim.AdamW([number], **values)
        if device_type == "cpu" or not values.get("capturable"):  # which only other devices take
            optimizer.step()
    except Exception as error:  # it has seen nothing but the values of the JSON
        return [f"optimizer.params: torch.optim.AdamW {_cannot_be_made(values, error)}"]
    return []


def is_muon(config: Mapping[str, Any]) -> bool:
    """Whether the config's optimizer is Muon."""
    return config.get("optimizer", {}).get("type") == "Muon"


def muon_problems(config: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a config whose optimizer is Muon, one sentence each."""
    problems = []
    for section in ("fp16", "bf16"):
        if (config.get(section) or {}).get("enabled"):
            problems.append(f'optimizer Muon takes fp32 weights; take "torch_autocast" instead of {section}')
    if (config.get("zero_optimization") or {}).get("stage"):
        problems.append(
            "optimizer Muon goes with ZeRO 0: of a higher stage its momentum would be lost when the number of ranks "
            "changes; leave zero_optimization out"
        )
    if config.get("scheduler"):
        problems.append("optimizer Muon has two rates, and a scheduler would make them one; take --lr_schedule")
    params = config["optimizer"]["params"]
    if unknown := sorted(set(params) - _OF_MUON):
        names = ", ".join(name[:100] for name in unknown[:10])
        return [*problems, f"optimizer.params: unknown {names}; known are {', '.join(sorted(_OF_MUON))}"]
    rate, momentum = params.get("muon_lr"), params.get("momentum", 0.95)
    if not (isinstance(rate, (int, float)) and 0 < rate < math.inf):
        problems.append(f"optimizer.params.muon_lr is {rate!r:.100}; it must be a rate above 0, such as 0.005")
    if not (isinstance(momentum, (int, float)) and 0 <= momentum < 1):
        problems.append(f"optimizer.params.momentum is {momentum!r:.100}; it must be from 0 to below 1")
    if params.get("ns_method", "gram") not in _NS_METHODS:
        problems.append(f"optimizer.params.ns_method is {params['ns_method']!r:.100}; it must be gram or standard")
    adam = {name: value for name, value in params.items() if name in _OF_DEEPSPEED}
    return problems + optimizer_problems({**adam, "torch_adam": True}, "cpu")


def scheduler_problems(schedule: Any, params: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the `params` of one of DeepSpeed's schedules, one sentence each.

    All their names are known; the numbers of steps are the run's affair.
    """
    kind = params.get("warmup_type", "linear")
    if kind not in ("linear", "log"):  # for which DeepSpeed would take "log", with a warning
        return [f'scheduler.params.warmup_type is {kind!r:.100}; it must be "linear" or "log"']
    values = {name: value for name, value in params.items() if name not in _STEPS}
    taken = inspect.signature(schedule).parameters
    steps = {name: count for name, count in _STEPS.items() if name in taken}
    level = deepspeed_logger.level
    deepspeed_logger.setLevel(logging.ERROR)  # it warns that the schedule has not begun
    try:
        tried = schedule(torch.optim.AdamW([torch.zeros(1, requires_grad=True)]), **values, **steps)
        for _ in range(max(_STEPS.values())):
            tried.step()
    except Exception as error:  # as above
        return [f"scheduler.params: {schedule.__name__} {_cannot_be_made(values, error)}"]
    finally:
        deepspeed_logger.setLevel(level)
    return []


def _cannot_be_made(values: Mapping[str, Any], error: Exception) -> str:
    given = ", ".join(f"{name}={value!r:.100}" for name, value in sorted(values.items()))
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"cannot be made of {given}: {reason[:300]}; mend or remove them"
