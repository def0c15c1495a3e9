"""The Triton kernel compiled ahead of time for GPUs that are not there: no configuration of the dispatch may spill."""

from __future__ import annotations

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

triton = pytest.importorskip("triton", reason="needs triton: pip install triton")

from tests.support.compiled_kernels import Usage, compile_for  # noqa: E402 - after the skip
from tinybert_ds.losses.triton_attention import MAX_HEAD, compile_options  # noqa: E402
from tinybert_ds.losses.triton_kernel import attention_loss_kernel  # noqa: E402

pytestmark = pytest.mark.skipif(
    not isinstance(attention_loss_kernel, triton.JITFunction), reason="TRITON_INTERPRET is set: nothing is compiled"
)

HEAD_SIZES = {"3L_192": (16, 32), "4L_312": (26, 64), "6L_768": (64, 64)}
"""A student's and a teacher's head size for each pair of blocks: 32 and 32, 32 and 64, 64 and 64 columns."""
STEPS = {
    "logged, published padding": {"VALID": False, "NEED_VALUE": True, "NEED_GRADIENT": True},
    "not logged": {"VALID": True, "NEED_VALUE": False, "NEED_GRADIENT": True},
}
CAPABILITIES = (80, 90)
CONFIGURATIONS = list(itertools.product(HEAD_SIZES, STEPS, CAPABILITIES))


@pytest.fixture(scope="module")
def usages(tmp_path_factory):
    """Return the usage of every configuration, compiled anew by two processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            sizes, steps, capabilities = zip(*CONFIGURATIONS, strict=True)
            found = pool.map(
                compile_kernel, [HEAD_SIZES[size] for size in sizes], [STEPS[step] for step in steps], capabilities
            )
            return dict(zip(CONFIGURATIONS, found, strict=True))


def argument_type(name: str) -> str:
    """Return the type of a kernel's argument as `launch` passes it, for a bfloat16 student of a float16 teacher."""
    by_name = {"real": "*i1", "coefficient": "*fp32", "statistics": "*fp64"}
    by_name |= {"query_gradient": "*fp32", "key_gradient": "*fp32"}
    by_name |= {f"student_{part}": "*bf16" for part in ("query", "key")}
    by_name |= {f"teacher_{part}": "*fp16" for part in ("query", "key")}
    by_name |= {f"{model}_scaling": "fp32" for model in ("student", "teacher")}
    return by_name.get(name, "i32")


def compile_kernel(head_sizes, needs, capability, **changes) -> Usage:
    """Compile the kernel for SDPA's layout of such heads and for GPUs of a compute capability."""
    options = compile_options(*head_sizes)
    num_warps = options.pop("num_warps")
    constants = {**options, **needs}
    types = {name: argument_type(name) for name in attention_loss_kernel.arg_names if name not in constants}
    strides = {f"{model}_head_stride": size for model, size in zip(("student", "teacher"), head_sizes, strict=True)}
    aligned = [name for name, size in strides.items() if size % 16 == 0]
    changes = {"num_warps": num_warps, **changes}
    return compile_for(attention_loss_kernel, types, constants, capability, aligned=aligned, **changes)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_no_configuration_spills_registers_or_exceeds_shared_memory(configuration, usages):
    assert usages[configuration].stack_bytes == 0
    assert usages[configuration].shared_bytes <= 163 * 1024  # of an A100; an H100 has 227 KiB


def test_a_kernel_with_too_few_registers_is_seen_to_spill(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert compile_kernel(HEAD_SIZES["3L_192"], STEPS["not logged"], 80, maxnreg=64).stack_bytes > 0


def test_the_compiled_configurations_are_all_that_the_dispatch_knows():
    sizes = range(1, MAX_HEAD + 1)
    known = {tuple(list(compile_options(student, teacher).items())[2:]) for student in sizes for teacher in sizes}
    assert known == {tuple(list(compile_options(*pair).items())[2:]) for pair in HEAD_SIZES.values()}
