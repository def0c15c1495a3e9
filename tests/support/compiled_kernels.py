"""Triton kernels compiled ahead of time for GPUs that are not there."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


class Usage(NamedTuple):
    """What a compiled kernel takes."""

    stack_bytes: int  # of each thread: what does not fit into its registers
    shared_bytes: int
    registers: int  # of each thread
    warpgroup_products: int  # of Hopper's own kind, in the code


def compile_for(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    *,
    aligned: Collection[str] = (),
    **options: Any,
) -> Usage:
    """Compile a kernel for NVIDIA GPUs of a compute capability and return what it takes.

    Args:
        types: the type of each argument that is no constant, as `launch` passes it; pointers are aligned to 16 bytes.
        constants: the compile-time arguments.
        aligned: integer arguments that 16 divides.
        options: of the compiler, such as num_warps.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in aligned
    }
    source = ASTSource(kernel, signature, dict(constants), attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    # LLVM has put a handler there that ends the process without a word; Python ignores the signal and raises OSError,
    # as the tests of full disks that may follow in this process expect.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (figures,) = [line for line in usage.splitlines() if "REG:" in line]
    fields = dict(field.split(":") for field in figures.split() if field.startswith(("REG:", "STACK:", "LOCAL:")))
    spilled, products = int(fields["STACK"]) + int(fields["LOCAL"]), compiled.asm["ptx"].count("wgmma.mma_async")
    return Usage(spilled, compiled.metadata.shared, int(fields["REG"]), products)
