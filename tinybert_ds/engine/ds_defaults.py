"""Settings of DeepSpeed whose own defaults cost a step time without changing what is learned.

Seen in DeepSpeed 0.19.8. A value that the JSON states is kept, and what it costs is told; but for `overlap_comm`, which
means nothing to a single rank.
"""

from __future__ import annotations

import copy
from typing import Any

TIMER = "timers.throughput.enabled"
CHECK = "bf16.check_grad_overflow"

_COSTS = {
    TIMER: "DeepSpeed waits for the device twice a step to time it; the log has samples/s without that",
    CHECK: "DeepSpeed looks through every gradient by itself, hundreds of launches and a wait a step; a gradient norm "
    "that is not finite ends the run anyway",
}


def fill_defaults(config: dict[str, Any], *, world_size: int) -> None:
    """Switch off, in place, what DeepSpeed does by default and a run has no use for.

    Args:
        world_size: With one rank there is nothing to overlap: the second bucket of gradients would only take memory.
    """
    config.setdefault("timers", {}).setdefault("throughput", {}).setdefault("enabled", False)
    if config.get("bf16", {}).get("enabled"):
        config["bf16"].setdefault("check_grad_overflow", False)
    zero = config.get("zero_optimization", {})
    if world_size == 1 and zero.get("stage") in (1, 2):
        zero["overlap_comm"] = False


def costly_settings(config: dict[str, Any]) -> list[str]:
    """Return a sentence about each setting of a filled config that costs time and gives nothing here."""
    stated = {
        TIMER: config.get("timers", {}).get("throughput", {}).get("enabled"),
        CHECK: config.get("bf16", {}).get("enabled") and config["bf16"].get("check_grad_overflow"),
    }
    return [f"{key} is true in the DeepSpeed config: {_COSTS[key]}" for key, value in stated.items() if value]


def fitted_buckets(config: dict[str, Any], num_parameters: int) -> dict[str, Any]:
    """Return the config with gradient buckets no larger than all gradients: ZeRO 1 and 2 allocate them whole."""
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2) or not isinstance(zero.get("reduce_bucket_size"), int | float):
        return config
    config = copy.deepcopy(config)
    size = config["zero_optimization"]["reduce_bucket_size"]
    config["zero_optimization"]["reduce_bucket_size"] = int(min(size, max(1, num_parameters)))
    return config
