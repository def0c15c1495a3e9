"""The check to run first where there is a GPU: every part of the GPU path, most valuable first, in eight minutes.

    python tests/gpu/check.py [PART ...]     # all parts, each in a process of its own with a time limit
    python tests/gpu/check.py --dry          # on a CPU: every part runs, small, in this process

Prints PASS and FAIL lines; exit code 1 if any failed. Run it from the checkout; it needs no network. Parts:
`env` versions, device, collectives, the default config; `losses` the tests marked gpu; `commands` general distillation
as users run it, gone on with, with each kind of config; `stages` those of tasks, vectors and augmentation; `step`
sequences/s with and without graphs, waits, kernels; `attention` which kernel SDPA takes; `kernels` Triton against
float64 up to rows of 8192; `layers` those of teacher and student against float64 and beside PyTorch's; `precision` fp16
and bf16 against fp32; `ranks` two ranks where there are two GPUs.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gpu.commands import part_commands, part_stages
from tests.gpu.layers import part_layers
from tests.gpu.step import Check, build_step, part_step

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {
    "env": 25,
    "losses": 55,
    "commands": 115,
    "stages": 95,
    "step": 50,
    "attention": 20,
    "kernels": 30,
    "layers": 25,
    "precision": 30,
    "ranks": 35,
}
"""Seconds of each part; 480 in all."""
NO_TESTS = 5  # pytest's exit code where all are left out


def part_env(check: Check) -> None:
    """Versions, the device, collectives of one rank, and the default config."""
    import deepspeed  # noqa: PLC0415
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    from tests.benchmarks.bench_step import joined_world  # noqa: PLC0415
    from tinybert_ds.engine.ds_config import default_config_path  # noqa: PLC0415
    from tinybert_ds.versions import requirements, version_problems  # noqa: PLC0415

    found = f"torch {torch.__version__}, transformers {transformers.__version__}, deepspeed {deepspeed.__version__}"
    problems = version_problems(requirements())
    check.say("versions", not problems, "; ".join(problems) or found)
    world = joined_world()
    check.say("device", world.device.type == check.device, str(world.device))
    if not check.dry:
        properties = torch.cuda.get_device_properties(0)
        print(properties.name, properties.total_memory >> 20, "MiB, cuDNN", torch.backends.cudnn.version(), flush=True)
    number = torch.ones((), device=world.device)
    torch.distributed.all_reduce(number)
    gathered: list[Any] = [None]
    torch.distributed.all_gather_object(gathered, {"a": 1})
    check.say("collectives", float(number) == 1 and gathered == [{"a": 1}], torch.distributed.get_backend())
    name = default_config_path(world.device.type, fp16=False).name
    expected = ("zero0",) if check.dry else ("zero2_bf16" if torch.cuda.get_device_capability() >= (8, 0) else "zero2",)
    check.say("default config", name.startswith(expected), name)


def part_losses(check: Check) -> None:
    """The tests that need a GPU."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "--tb=short", "tests/numerics/test_gpu.py"]
    words += ["--collect-only"] if check.dry else []
    code = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=check.dry, check=False).returncode
    check.say("tests marked gpu", code == 0 or (check.dry and code == NO_TESTS), f"exit code {code}")


def part_attention(check: Check) -> None:
    """Which of SDPA's kernels takes heads of 64 and 26, with a mask of padding and without; math keeps the scores."""
    import torch  # noqa: PLC0415

    from tinybert_ds import hardware  # noqa: PLC0415
    from tinybert_ds.models import fused_attention  # noqa: PLC0415

    layer = torch.nn.Module()
    layer.is_causal = False
    chosen: list[int] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Any, key: Any, value: Any, **options: Any) -> Any:
        how = {name: options[name] for name in ("attn_mask", "dropout_p", "scale")}
        chosen.append(int(torch._fused_sdp_choice(query, key, value, **how)))
        return plain(query, key, value, **options)

    with (
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", spy),
        mock.patch.object(hardware, "CUDA", check.device),
        mock.patch.object(fused_attention, "triton_is_installed", return_value=not check.dry),
    ):
        for head, dtype, trains in ((64, torch.float16, False), (26, torch.bfloat16, True), (26, torch.float32, True)):
            for masked in (False, True):
                shape = (2, 8, 12, head) if check.dry else (256, 128, 12, head)
                kind = {"device": check.device, "dtype": torch.float32 if check.dry else dtype}
                heads = [torch.randn(shape, **kind).transpose(1, 2).requires_grad_(trains) for _ in "qkv"]
                mask = heads[0].new_zeros(shape[0], 1, 1, shape[1]) if masked else None
                attend = functools.partial(
                    fused_attention.fused_sdpa, layer, *heads, mask, dropout=0.1 if trains else 0.0
                )

                def run(attend: Callable[..., Any] = attend, trains: bool = trains) -> None:
                    output, _ = attend()
                    if trains:
                        output.float().sum().backward()

                run()
                text = f"kernel {chosen[-1]} (0 math, 1 flash, 2 efficient, 3 cuDNN), {check.milliseconds(run):.2f} ms"
                check.say(f"attention, heads of {head} {dtype}, masked {masked}", check.dry or chosen[-1] != 0, text)


def part_kernels(check: Check) -> None:
    """The losses in Triton against float64, and beside the forms of matrix products."""
    import torch  # noqa: PLC0415

    from tests.support.numerics import attention_case, relative_error  # noqa: PLC0415

    shapes = ((2, 24, 26, 64),) if check.dry else ((256, 128, 26, 64), (8, 2048, 26, 64), (1, 8192, 26, 64))
    shapes += () if check.dry else ((256, 128, 64, 64), (256, 128, 16, 32))
    for rows, length, student, teacher in shapes:
        lengths = [max(1, length - 7 * (row % 9)) for row in range(rows)]
        case = attention_case(heads=12, length=length, head_sizes=(student, teacher), lengths=lengths)
        case = case.to(torch.bfloat16)
        few = case.rows(slice(0, max(1, 4096 // length))).to(torch.float64)
        exact = few.loss_and_gradients(1.0, backend="tiled", denominator=1e6)
        moved = case._replace(**{name: getattr(case, name).detach().to(check.device) for name in case._fields[:5]})
        moved = moved.to(torch.bfloat16)
        backend = "gram" if check.dry else "triton"
        part = moved.rows(slice(0, max(1, 4096 // length))).to(torch.bfloat16)
        found = part.loss_and_gradients(1.0, backend=backend, denominator=1e6)
        errors = relative_error(found[0].cpu(), exact[0]), relative_error([g.cpu() for g in found[1:]], exact[1:])
        times = {
            name: check.milliseconds(functools.partial(moved.loss_and_gradients, backend=name, denominator=1e6))
            for name in (backend, "gram")
        }
        text = f"errors {errors[0]:.1e} and {errors[1]:.1e}; ms {times}"
        check.say(f"attention loss {rows, length, student, teacher}", errors[0] < 2e-4 and errors[1] < 2**-7, text)
    for widths in ((26, 96),) if check.dry else ((312, 768), (768, 768)):
        check_hidden_loss(check, *((2, 24) if check.dry else (256, 128)), *widths)


def check_hidden_loss(check: Check, rows: int, length: int, student_width: int, teacher_width: int) -> None:
    """The hidden loss of one state by its kernel, against float64 on the CPU and beside chunks."""
    import torch  # noqa: PLC0415

    from tests.support.hidden import hidden_case  # noqa: PLC0415
    from tests.support.numerics import mask_of, relative_error  # noqa: PLC0415
    from tinybert_ds.losses import hidden_state_loss  # noqa: PLC0415

    sizes = rows, length, student_width, teacher_width
    case = [tensor.bfloat16() for tensor in hidden_case("weight and bias", 1.0, sizes) if tensor is not None]
    mask = mask_of([max(1, length - 7 * (row % 9)) for row in range(rows)], length)

    def run(backend: str, tensors: list[Any], mask: Any) -> list[Any]:
        inputs = [tensor.detach().requires_grad_(place != 1) for place, tensor in enumerate(tensors)]
        loss = hidden_state_loss(*inputs, mask, backend=backend, denominator=1e6)
        return [loss, *torch.autograd.grad(loss, (inputs[0], *inputs[2:]))]

    exact = run("reference", [tensor.double() for tensor in case], mask)
    moved = [tensor.to(check.device) for tensor in case], mask.to(check.device)
    for backend in ("chunked",) if check.dry else ("triton", "chunked"):
        found = [tensor.cpu() for tensor in run(backend, *moved)]
        errors = relative_error(found[0], exact[0]), relative_error(found[1:], exact[1:])
        time_ms = check.milliseconds(functools.partial(run, backend, *moved))
        text = f"errors {errors[0]:.1e} and {errors[1]:.1e}; {time_ms:.3f} ms"
        check.say(f"hidden loss {sizes} {backend}", errors[0] < 1e-5 and errors[1] < 2**-7, text)


def part_precision(check: Check) -> None:
    """The losses of 30 steps in bf16 and fp16 beside those of fp32, from the same start."""
    configs = {"fp32": "zero0_fp32.json", "bf16": "zero2_bf16.json", "fp16": "zero2_fp16.json"}
    steps, curves = (3, {}) if check.dry else (30, {})
    for name, config in list(configs.items())[: 2 if check.dry else None]:
        how = {"teacher_dtype": "float32" if name == "fp32" else "float16", "rows": 64}
        run, engine = build_step(check, config=config, dropout=0.0, **how)
        curves[name] = [run(need_value=True) for _ in range(steps)]
        last, first = curves[name][-1], curves[name][0]
        beside = last / curves["fp32"][-1]
        good = math.isfinite(last) and last < first and abs(beside - 1) < 0.05
        text = f"{first:.4f} to {last:.4f}, {beside:.4f} of fp32's, {engine.skipped_steps} steps skipped"
        check.say(f"30 steps in {name}", good, text)


def part_ranks(check: Check) -> None:
    """Two ranks, where there are two GPUs."""
    import torch  # noqa: PLC0415

    if check.dry or torch.cuda.device_count() < 2:
        check.say("two ranks", True, "left out: there are no two GPUs")
        return
    words = ["-m", "pytest", "-q", "-x", "tests/distributed/test_ranks.py"]
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    finished = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=False)
    check.say("two ranks", finished.returncode == 0, f"{finished.returncode}")


PARTS: dict[str, Callable[[Check], None]] = {
    "env": part_env,
    "losses": part_losses,
    "commands": part_commands,
    "stages": part_stages,
    "step": part_step,
    "attention": part_attention,
    "kernels": part_kernels,
    "layers": part_layers,
    "precision": part_precision,
    "ranks": part_ranks,
}
"""Most valuable first."""
assert list(PARTS) == list(LIMITS)


def run_part(name: str, *, dry: bool) -> int:
    """Run a part here; return how many of its lines failed."""
    check = Check(dry=dry)
    try:
        PARTS[name](check)
    except Exception:  # whatever it is, the other parts are to run
        check.say(name, False, traceback.format_exc()[-2000:])
    return check.failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Check the GPU path.", allow_abbrev=False)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(LIMITS)}; default: all")
    parser.add_argument("--dry", action="store_true", help="run every part small, on the CPU, in this process")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    values = parser.parse_args(arguments)
    if unknown := sorted(set(values.parts) - set(PARTS)):
        parser.error(f"unknown part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if values.part:
        return min(1, run_part(values.part, dry=False))
    os.environ["DS_ACCELERATOR"] = "cpu" if values.dry else "cuda"
    failed, begin = 0, time.monotonic()
    for name in values.parts or PARTS:
        started = time.monotonic()
        if values.dry:
            failed += run_part(name, dry=True)
        else:
            command = [sys.executable, __file__, "--part", name]
            process = subprocess.Popen(command, start_new_session=True)
            try:
                failed += process.wait(LIMITS[name]) != 0
            except subprocess.TimeoutExpired:
                failed += 1
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                process.wait()
                print(f"FAIL {name}: longer than {LIMITS[name]} s", flush=True)
        now = time.monotonic()
        print(f"== {name}: {now - started:.0f} s, {now - begin:.0f} s in all", flush=True)
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main())
