"""The DeepSpeed JSON: how to run. Values that the command line owns are `"auto"` in it and filled here.

Every contradiction between the JSON, the arguments and the machine is gathered and reported once, before any model is
loaded. Keys: https://www.deepspeed.ai/docs/config-json/ for the installed version.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.lr_schedules import WarmupCosineLR, WarmupDecayLR, WarmupLR
from pydantic import ValidationError

from tinybert_ds.arguments import TrainingArguments
from tinybert_ds.arguments.option import ds_values_of, owners_of
from tinybert_ds.engine.ds_defaults import fill_defaults
from tinybert_ds.engine.optimizer_check import is_muon, muon_problems, optimizer_problems, scheduler_problems
from tinybert_ds.errors import ConfigError, did_you_mean
from tinybert_ds.foreign_text import shown
from tinybert_ds.hardware import computes_bf16_itself, multiplies_fast
from tinybert_ds.strict_formats import read_json

CONFIG_DIRECTORY = Path(__file__).resolve().parents[2] / "ds_configs"

KNOWN_KEYS = frozenset(
    """train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps optimizer scheduler fp16 bf16
    torch_autocast zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer gradient_clipping
    steps_per_print wall_clock_breakdown memory_breakdown dump_state communication_data_type prescale_gradients
    gradient_predivide_factor gradient_allreduce_op disable_allgather disable_python_gc comms_logger tensorboard wandb
    csv_monitor comet flops_profiler checkpoint data_types aio log_level timers compile
    seq_parallel_communication_data_type""".split()
)

_SECTIONS = (
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "torch_autocast",
    "zero_optimization",
    "checkpoint",
    "data_types",
    "tensorboard",
    "csv_monitor",
    "flops_profiler",
    "timers",
    "timers.throughput",
)
_SECTION_OF_MODEL = {
    "DeepSpeedZeroConfig": "zero_optimization",
    "DeepSpeedBF16Config": "bf16",
    "DeepSpeedFP16Config": "fp16",
}
"""DeepSpeed names its class where the user knows the section."""
_SCHEDULERS = {schedule.__name__: schedule for schedule in (WarmupLR, WarmupDecayLR, WarmupCosineLR)}
_BFLOAT16 = ("bfloat16", "bf16", "torch.bfloat16")

_OWNED = owners_of(TrainingArguments)
"""Key -> the flags that it follows from."""

_SCHEDULE = "scheduler.params."

_OUTPUTS = {
    "tensorboard.output_path": "tensorboard",
    "csv_monitor.output_path": "deepspeed_csv",
    "flops_profiler.output_file": "flops_profile.txt",
}
"""Where DeepSpeed writes, inside --output_dir, when the JSON has the section and says "auto"."""


def default_config_path(device_type: str, *, fp16: bool, wide: bool = False) -> Path:
    """The shipped config that fits this machine.

    Args:
        wide: On a CPU, fp32 products whatever it multiplies fast: what runs of earlier versions were begun with.
    """
    if device_type == "cpu":
        narrow = multiplies_fast(torch.bfloat16, torch.device("cpu")) and not wide
        return CONFIG_DIRECTORY / ("zero0_autocast_bf16.json" if narrow else "zero0_fp32.json")
    bf16 = computes_bf16(device_type) and not fp16
    return CONFIG_DIRECTORY / ("zero2_bf16.json" if bf16 else "zero2_fp16.json")


def computes_bf16(device_type: str) -> bool:
    """Whether an accelerator has bf16 of its own: V100 and T4 compute it by way of fp32, and fp16 fast."""
    if device_type == "cuda":
        return computes_bf16_itself()
    return bool(get_accelerator().is_bf16_supported())


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a DeepSpeed JSON; return it (empty when unreadable) and what is wrong with it as a document."""
    if not path.is_file():
        shipped = ", ".join(sorted(p.name for p in CONFIG_DIRECTORY.glob("*.json")))
        return {}, [f"--deepspeed_config {path} is not a file; shipped ones in ds_configs/: {shipped}"]
    try:
        config = read_json(path, "--deepspeed_config")
    except ConfigError as error:
        return {}, [str(error)]
    if not isinstance(config, dict):
        return {}, [f"{path} holds a {type(config).__name__}; a DeepSpeed config is a JSON object"]
    problems = []
    for key in sorted(set(config) - KNOWN_KEYS):
        near = did_you_mean(key, KNOWN_KEYS)
        problems.append(
            f"{path}: unknown key {_shown(key)}{near}; DeepSpeed would ignore or refuse it: mend or remove it"
        )
    return config, problems


def resolve_config(
    config: dict[str, Any], arguments: TrainingArguments, *, world_size: int, device_type: str
) -> tuple[dict[str, Any], list[str]]:
    """Fill what the arguments own and check what is left.

    Returns:
        The config for `deepspeed.initialize` (a scheduler's step counts are still "auto": see `fill_schedule`) and
        every problem found, one sentence each.
    """
    config = _without_nulls(config)
    problems = _misshapen(config)
    if problems or min(arguments.train_batch_size, arguments.gradient_accumulation_steps) < 1:  # the latter is told
        return config, problems
    parts = world_size * arguments.gradient_accumulation_steps
    micro_batch_size, remainder = divmod(arguments.train_batch_size, parts)
    if remainder or not micro_batch_size:
        problems.append(_indivisible(arguments, world_size))
    problems += _fill_optimizer(config, device_type)
    values = {**ds_values_of(arguments), "scheduler.params.warmup_min_lr": 0.0}
    owned = {key: value for key, value in values.items() if not key.startswith(_SCHEDULE)}
    owned["train_micro_batch_size_per_gpu"] = micro_batch_size
    if config.get("scheduler"):
        if arguments.lr_schedule != "auto":
            problems.append(
                f"--lr_schedule {arguments.lr_schedule} and the scheduler {config['scheduler']['type']} of the "
                "DeepSpeed config are two schedules; drop one of them"
            )
        takes = _scheduler_parameters(config)
        problems += _unknown_scheduler_parameters(config)
        if arguments.max_steps:  # otherwise the data says how many steps there are, and `fill_schedule` is later
            warmup_steps = int(arguments.warmup * arguments.max_steps)
            counts = {"total_steps": arguments.max_steps, "warmup_steps": warmup_steps}
            problems += fill_schedule(copy.deepcopy(config), **counts)
        owned |= {key: value for key, value in values.items() if key.removeprefix(_SCHEDULE) in takes}
    problems += [problem for key, value in owned.items() for problem in _fill(config, key, value)]
    _fill_outputs(config, Path(arguments.output_dir))
    fp16 = config.get("fp16", {}).get("enabled", False)
    autos = [key for key in _remaining_autos(config) if key not in _OWNED]
    if device_type == "cpu" and (fp16 is True or any(key.startswith("fp16.") for key in autos)):
        autos = [key for key in autos if not key.startswith("fp16.")]  # whatever they were set to, it would not train
        problems.append(
            "fp16 training is not supported on this CPU; remove the section fp16 from the DeepSpeed config, or take "
            "zero1_bf16.json or zero0_fp32.json"
        )
    problems += [f'{key} is "auto" in the DeepSpeed config, but no argument owns it; give it a value' for key in autos]
    problems += _autocast_problems(config.get("torch_autocast", {}))
    if arguments.fp16 and not fp16:
        problems.append("--fp16 contradicts the DeepSpeed config, which does not enable fp16; drop one of them")
    config.setdefault("steps_per_print", 2**31 - 1)  # the loop reports by itself
    if not problems:
        fill_defaults(config, world_size=world_size)
    if not problems and config.get("scheduler"):
        scheduler = config["scheduler"]
        problems += scheduler_problems(_SCHEDULERS[scheduler["type"]], scheduler.get("params", {}))
    if not problems:
        problems += _refused_by_deepspeed(config)
    return config, problems


def _autocast_problems(autocast: dict[str, Any]) -> list[str]:
    if not autocast.get("enabled") or autocast.get("dtype") in _BFLOAT16:  # float16 would hide its loss scaling
        return []
    return [
        f'torch_autocast.dtype is {_shown(autocast.get("dtype"))} in the DeepSpeed config; only "bfloat16" is '
        "supported: give it, or take a config with fp16"
    ]


def fill_schedule(config: dict[str, Any], *, total_steps: int, warmup_steps: int) -> list[str]:
    """Fill the step counts of the JSON's own scheduler, in place; return the contradictions."""
    scheduler = config.get("scheduler")
    if not scheduler:
        return []
    problems = _fill(config, "scheduler.params.warmup_num_steps", max(warmup_steps, 2))
    if "total_num_steps" in _scheduler_parameters(config):
        problems += _fill(config, "scheduler.params.total_num_steps", total_steps)
    scheduler["params"].setdefault("warmup_type", "linear")  # DeepSpeed's own default is logarithmic
    return problems


def _without_nulls(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without the keys whose value is null: DeepSpeed takes its default for them."""
    return {
        key: _without_nulls(value) if isinstance(value, dict) else copy.deepcopy(value)
        for key, value in config.items()
        if value is not None
    }


def _scheduler_parameters(config: dict[str, Any]) -> set[str]:
    names = inspect.signature(_SCHEDULERS[config["scheduler"]["type"]].__init__).parameters
    return set(names) - {"self", "optimizer", "last_batch_iteration"}


def _unknown_scheduler_parameters(config: dict[str, Any]) -> list[str]:
    known = _scheduler_parameters(config)
    unknown = sorted(set(config["scheduler"].get("params", {})) - known)
    return [f"scheduler.params: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}"] if unknown else []


def _indivisible(arguments: TrainingArguments, world_size: int) -> str:
    """Say which batches would divide, and what would divide this one: a run that goes on must keep it."""
    batch, parts = arguments.train_batch_size, world_size * arguments.gradient_accumulation_steps
    batches = [size for size in (batch // parts * parts, batch // parts * parts + parts) if size]
    divisors = [number for number in range(1, batch + 1) if batch % number == 0] or [1]
    below = max(number for number in divisors if number <= parts)
    above = min((number for number in divisors if number >= parts), default=below)
    fitting, keeping = (" or ".join(map(str, sorted(sizes))) for sizes in ({*batches}, {below, above}))
    return (
        f"--train_batch_size {batch} does not divide over {world_size} rank(s) x "
        f"{arguments.gradient_accumulation_steps} accumulation step(s); take {fitting}, or keep it with {keeping} "
        "rank(s) x accumulation step(s)"
    )


def _misshapen(config: dict[str, Any]) -> list[str]:
    sections = [(name, _at(config, name)) for name in _SECTIONS]
    sections += [
        (f"{name}.params", config[name].get("params"))
        for name in ("optimizer", "scheduler")
        if isinstance(config.get(name), dict)
    ]
    problems = [
        f'{name} in the DeepSpeed config is {_shown(value)}; it must be a JSON object, such as {{"enabled": true}}'
        for name, value in sections
        if value is not None and not isinstance(value, dict)
    ]
    scheduler = config.get("scheduler")
    if not problems and scheduler and scheduler.get("type") not in tuple(_SCHEDULERS):
        found = _shown(scheduler.get("type"))
        problems.append(f"scheduler type {found} is not supported; take {', '.join(_SCHEDULERS)}")
    return problems


def _at(config: dict[str, Any], dotted_key: str) -> Any:
    """Return what the config holds under a key; None where there is nothing, or no section that could hold it."""
    found: Any = config
    for name in dotted_key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _fill_optimizer(config: dict[str, Any], device_type: str) -> list[str]:
    optimizer = config.setdefault("optimizer", {"type": "AdamW", "params": {"torch_adam": True, "fused": True}})
    if not isinstance(optimizer, dict) or optimizer.get("type") not in ("Adam", "AdamW", "Muon"):
        found = _shown(optimizer.get("type") if isinstance(optimizer, dict) else optimizer)
        return [
            f'optimizer type {found} is not supported here; take {{"type": "AdamW", "params": {{"lr": "auto"}}}}, or '
            "Muon as in zero0_muon_autocast_bf16.json"
        ]
    params = optimizer["params"] = optimizer.get("params") or {}
    if is_muon(config):
        return muon_problems(config)
    if device_type == "cpu":  # DeepSpeed's own Adam would compile a C++ extension for minutes
        params.setdefault("torch_adam", True)
        params.setdefault("fused", not params.get("foreach"))  # vectorised, four times as fast as torch's loop
    if problems := optimizer_problems(params, device_type):
        return problems
    if params.get("torch_adam"):  # with an offloaded optimizer DeepSpeed would insist on its compiled one
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    return []


def _fill(config: dict[str, Any], dotted_key: str, value: Any) -> list[str]:
    *sections, key = dotted_key.split(".")
    for name in sections:
        config = config.setdefault(name, {})
        if not isinstance(config, dict):
            return [f"{name} in the DeepSpeed config is {_shown(config)}; it must be a JSON object"]
    stated = config.get(key, "auto")
    config[key] = value
    if stated in ("auto", value):
        return []
    return [
        f"{dotted_key} is {_shown(stated)} in the DeepSpeed config and {value!r} from {_OWNED[dotted_key]}; set it to "
        '"auto" there or pass the same value'
    ]


def _fill_outputs(config: dict[str, Any], output_dir: Path) -> None:
    for dotted_key, name in _OUTPUTS.items():
        section, key = dotted_key.split(".")
        if config.get(section, {}).get(key) == "auto":
            config[section][key] = str(output_dir / name)


def _remaining_autos(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _remaining_autos(value, f"{prefix}{key}.")
        elif value == "auto" and key != "keep_in_fp32_modules":
            yield prefix + key


def _refused_by_deepspeed(config: dict[str, Any]) -> list[str]:
    """What DeepSpeed's own models say of the sections (misspelt keys inside them, wrong types)."""
    alone = copy.deepcopy(config)
    alone.pop("train_batch_size")  # depends on the world size, which is not known to DeepSpeed yet
    alone.pop("scheduler", None)
    try:
        DeepSpeedConfig(alone)
    except ValidationError as error:
        section = _SECTION_OF_MODEL.get(error.title, error.title)
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in (section, *item["loc"]))
            misspelt = item["type"] == "extra_forbidden"
            problems.append(
                f"unknown key {_shown(key)}; mend or remove it"
                if misspelt
                else f"{shown(key)}: {shown(item['msg'], 300)}"
            )
        return problems
    except Exception as error:  # it looks at nothing but the config, and raises whatever comes
        return [f"DeepSpeed refuses the config: {_shown(str(error), 500)}"]
    return []


def _shown(value: object, most: int = 200) -> str:
    text = json.dumps(value) if isinstance(value, bool | dict | list) else repr(value)
    return text if len(text) <= most else f"{text[:most]} ... ({len(text):,} characters)"
