"""Every way in which the dispatch may compile the kernels of losses and layers, and what each takes.

A `Build` names what differs; `compile_build` compiles it for a GPU that is not there. Head sizes and widths stand for
all that share their blocks: a pair for each block full, and pairs that leave some of it empty or are odd.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.support.compiled_kernels import Usage, compile_for
from tinybert_ds.losses import triton_attention, triton_hidden
from tinybert_ds.losses.precomputed import Needs
from tinybert_ds.losses.triton_hidden_kernel import hidden_residual_kernel
from tinybert_ds.losses.triton_kernel import attention_loss_kernel
from tinybert_ds.losses.triton_split_kernel import split_gradients_kernel, split_grams_kernel
from tinybert_ds.models import triton_heads, triton_layer_norm
from tinybert_ds.models.triton_heads_kernel import resize_heads_kernel
from tinybert_ds.models.triton_layer_norm_kernel import layer_norm_gradients_kernel, layer_norm_kernel

KERNELS = {
    "attention": attention_loss_kernel,
    "parts, Gram matrices": split_grams_kernel,
    "parts, gradients": split_gradients_kernel,
    "hidden": hidden_residual_kernel,
    "layer norm": layer_norm_kernel,
    "layer norm, gradients": layer_norm_gradients_kernel,
    "heads": resize_heads_kernel,
}
CAPABILITIES = (80, 90)
MORE_CAPABILITIES = (*CAPABILITIES, 120)
ALL_NEEDS = ((True, True), (False, True), (True, False))
"""Of value and gradient."""
HEAD_SIZES = ((16, 32), (26, 64), (64, 64), (26, 128))
"""Of student and teacher: a pair for each combination of blocks."""
MORE_HEAD_SIZES = ((32, 32), (26, 26), (8, 40), (32, 64), (48, 64), (26, 96), (32, 128))
WIDTHS = ((312, 768), (768, 1024), (100, 300))
ROW_WIDTHS = ((312,), (768,))
MORE_ROW_WIDTHS = ((100,), (1024,), (2048,), (4096,))
RESIZED = ((26, 32), (32, 26))
MORE_RESIZED = ((5, 8), (100, 104), (260, 264))
DTYPES = (("bf16", "fp16"), ("bf16", "bf16"), ("fp16", "fp16"), ("fp16", "bf16"))
MOST_SHARED_BYTES = 99 * 1024
"""Of GPUs of compute capability 8.6, 8.9 and 12.0, which have least; an A100 has 163 KiB, an H100 227."""


class Build(NamedTuple):
    """A kernel as it is compiled for some problem."""

    kernel: str
    sizes: tuple[int, ...]  # heads, or widths, of student and teacher; a layer norm's rows; heads before and after
    dtypes: tuple[str, ...]
    value: bool
    gradient: bool  # of a layer norm whose output is the value: what its gradients need is kept
    valid: bool
    capability: int


def usual_builds() -> list[Build]:
    """Return a build of each kernel and each combination of blocks, on a step that is logged, which needs most, and
    those of the losses on other steps, for the usual sizes."""
    usual = [
        *(("attention", sizes) for sizes in HEAD_SIZES),
        *((name, (26, 64)) for name in ("parts, Gram matrices", "parts, gradients")),
        ("hidden", WIDTHS[0]),
    ]
    found = [Build(*what, DTYPES[0], True, True, True, sm) for what, sm in itertools.product(usual, CAPABILITIES)]
    often = [("attention", (26, 64)), ("attention", (64, 64)), ("hidden", WIDTHS[0])]
    found += [Build(*what, DTYPES[0], False, True, True, sm) for what, sm in itertools.product(often, CAPABILITIES)]
    return found + layer_builds(ROW_WIDTHS, RESIZED, ("bf16",))


def layer_builds(
    widths: Sequence[tuple[int, ...]], resized: Sequence[tuple[int, ...]], dtypes: Sequence[str]
) -> list[Build]:
    """Return the builds of layer norms of some widths, what is added to their rows included, and of heads."""
    found = []
    for dtype, capability in itertools.product(dtypes, CAPABILITIES):
        for sizes in widths:
            found += [Build("layer norm", sizes, (dtype,), True, kept, True, capability) for kept in (True, False)]
            found.append(Build("layer norm, gradients", sizes, (dtype,), False, True, True, capability))
        found += [Build("heads", sizes, (dtype,), True, False, True, capability) for sizes in resized]
    return found


def all_builds() -> list[Build]:
    """Return every build: all needs and both paddings for the usual dtypes, one of the others' steps for each."""
    found = []
    for capability, (student, teacher) in itertools.product(MORE_CAPABILITIES, (*HEAD_SIZES, *MORE_HEAD_SIZES)):
        sizes = (student, teacher)
        for needs, valid in itertools.product(ALL_NEEDS, (True, False)):
            found.append(Build("attention", sizes, DTYPES[0], *needs, valid, capability))
        found += [Build("attention", sizes, dtypes, True, True, True, capability) for dtypes in DTYPES[1:]]
        found += [Build("parts, gradients", sizes, DTYPES[0], *needs, True, capability) for needs in ALL_NEEDS]
        for value in (True, False):
            found.append(Build("parts, Gram matrices", sizes, DTYPES[0], value, True, True, capability))
    for capability, sizes, dtypes in itertools.product(MORE_CAPABILITIES, WIDTHS, (*DTYPES, ("bf16", "fp32"))):
        for needs, valid in itertools.product(ALL_NEEDS, (True, False)):
            found.append(Build("hidden", sizes, dtypes, *needs, valid, capability))
    return found + layer_builds((*ROW_WIDTHS, *MORE_ROW_WIDTHS), (*RESIZED, *MORE_RESIZED), ("bf16", "fp16"))


def compile_build(build: Build, **changes: Any) -> Usage:
    """Compile a build, with changes to the compiler's options, and return what it takes."""
    kernel: Any = KERNELS[build.kernel]
    options = _constants(build)
    own = (*triton_attention.COMPILER, "num_warps", "num_stages", "maxnreg")
    compiler = {name: options.pop(name) for name in own if name in options}
    constants = {name: value for name, value in options.items() if name in kernel.arg_names}
    types = {name: _type_of(name, build) for name in kernel.arg_names if name not in constants}
    return compile_for(kernel, types, constants, build.capability, **(compiler | changes))


def warps_of(build: Build) -> int:
    """Return how many warps a program of a build has."""
    return int(_constants(build)["num_warps"])


def _constants(build: Build) -> dict[str, Any]:
    if build.kernel == "heads":
        return triton_heads.compile_options(*build.sizes)
    if build.kernel.startswith("layer norm"):
        return {**triton_layer_norm.compile_options(*build.sizes), "ADDS": True, "KEEPS": build.gradient}
    return _hidden_constants(build) if build.kernel == "hidden" else _attention_constants(build)


def _attention_constants(build: Build) -> dict[str, Any]:
    """Return the compile-time arguments for heads as SDPA hands them out, twelve to a row."""
    student, teacher = (triton_attention.unit_of((12 * size, size)) for size in build.sizes)
    return {
        **triton_attention.compile_options(
            *build.sizes, Needs(build.value, build.gradient), divmod(build.capability, 10)
        ),
        **{"STUDENT_UNIT": student, "TEACHER_UNIT": teacher, "GRADIENT_UNIT": student},
        **{"VALID": build.valid, "NEED_VALUE": build.value, "NEED_GRADIENT": build.gradient},
    }


def _hidden_constants(build: Build) -> dict[str, Any]:
    return {
        **triton_hidden.compile_options(divmod(build.capability, 10)),
        **{"STUDENT_WIDTH": build.sizes[0], "TEACHER_WIDTH": build.sizes[1]},
        **{"HAS_BIAS": True, "VALID": build.valid, "NEED_VALUE": build.value},
        **{"NEED_RESIDUALS": build.gradient, "NEED_BIAS": build.gradient},
    }


def _type_of(name: str, build: Build) -> str:
    """Return the type of a kernel's argument as `launch` passes it."""
    if build.kernel.startswith("layer norm"):
        own = f"*{build.dtypes[0]}"
        return {"tokens": "i32", "eps": "fp32", "statistics": "*fp32", "sums": "*fp32"}.get(name, own)
    if build.kernel == "heads":
        return "i32" if name == "heads" else f"*{build.dtypes[0]}"
    student, teacher = build.dtypes
    types = {"real": "*i1", "coefficient": "*fp32", "statistics": "*fp64", "grams": "*fp32", "squares": "*fp64"}
    alone = build.valid and not build.value  # the kernel rounds gradients itself then
    types |= dict.fromkeys(("query_gradient", "key_gradient"), f"*{student}" if alone else "*fp32")
    types["bias_sums"] = "*fp32"
    types |= dict.fromkeys(("student_query", "student_key", "student", "weight", "bias", "residuals"), f"*{student}")
    types |= dict.fromkeys(("teacher_query", "teacher_key", "teacher"), f"*{teacher}")
    types |= dict.fromkeys(("student_scaling", "teacher_scaling"), "fp32")
    return types.get(name, "i32")
