"""The Triton kernels of the KL of relations compiled for GPUs that are not there: none of the dispatch's may spill."""

from __future__ import annotations

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

triton = pytest.importorskip("triton", reason="needs triton: pip install triton")

from tests.support.compiled_kernels import Usage, compile_for  # noqa: E402 - after the skip
from tests.support.kernel_matrix import MOST_SHARED_BYTES  # noqa: E402
from tinybert_ds.losses import triton_relations  # noqa: E402
from tinybert_ds.losses.triton_relation_kernel import log_sums_kernel, relation_loss_kernel  # noqa: E402

pytestmark = pytest.mark.skipif(
    not isinstance(relation_loss_kernel, triton.JITFunction), reason="TRITON_INTERPRET is set: nothing is compiled"
)

TYPES = {
    **{"student": "*bf16", "teacher": "*fp16", "real": "*i1", "log_sums": "*fp32", "coefficient": "*fp32"},
    **{"gradient": "*fp32", "values": "*fp64", "student_scaling": "fp32", "teacher_scaling": "fp32"},
}
PASSES = {
    "log-sums": (log_sums_kernel, {"VALID": False}),
    "logged": (relation_loss_kernel, {"VALID": False, "NEED_VALUE": True, "NEED_GRADIENT": True}),
    "not logged": (relation_loss_kernel, {"VALID": True, "NEED_VALUE": False, "NEED_GRADIENT": True}),
}
HEAD_SIZES = list(itertools.product((8, 32, 64), (16, 32, 64, 128)))
"""A student's and a teacher's head size for each pair of blocks."""
EXTREMES = ((8, 16), (64, 128))
USUAL = list(itertools.product(EXTREMES, PASSES, (80, 90)))
ALL = [*USUAL, *itertools.product((sizes for sizes in HEAD_SIZES if sizes not in EXTREMES), ["logged"], (80, 90))]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return a function from configurations to what each takes, compiled anew by two processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield lambda chosen: dict(zip(chosen, pool.map(compile_pass, *zip(*chosen, strict=True)), strict=True))


@pytest.fixture(scope="module")
def usages(compiled):
    """Return what each usual configuration takes."""
    return compiled(USUAL)


def compile_pass(head_sizes, name, capability) -> Usage:
    """Compile one kernel for relation heads of these sizes and for GPUs of a compute capability."""
    kernel, needs = PASSES[name]
    options = triton_relations.compile_options(*head_sizes)
    compiler = {name: options.pop(name) for name in ("enable_fp_fusion", "num_warps", "num_stages")}
    constants = {**options, **needs}
    types = {name: TYPES.get(name, "i32") for name in kernel.arg_names if name not in constants}
    return compile_for(kernel, types, constants, capability, **compiler)


def fits(usage: Usage) -> bool:
    """Whether no register is spilled, and the shared memory is at most what every GPU has."""
    return usage.stack_bytes == 0 and usage.shared_bytes <= MOST_SHARED_BYTES


@pytest.mark.parametrize("configuration", USUAL, ids=str)
def test_no_usual_configuration_spills_registers_or_exceeds_shared_memory(configuration, usages):
    assert fits(usages[configuration])


@pytest.mark.exhaustive
def test_no_configuration_spills_registers_or_exceeds_shared_memory(compiled):
    usages = compiled(ALL)
    assert not {configuration: usage for configuration, usage in usages.items() if not fits(usage)}


def test_a_wider_student_would_spill(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert compile_pass((128, 128), "logged", 90).stack_bytes > 0


def test_the_compiled_configurations_are_all_that_the_dispatch_knows():
    def blocks(student, teacher):
        return tuple(list(triton_relations.compile_options(student, teacher).items())[3:])

    widest = triton_relations.MAX_STUDENT_HEAD, triton_relations.MAX_TEACHER_HEAD
    known = {blocks(*pair) for pair in itertools.product(*(range(1, size + 1) for size in widest))}
    assert known == {blocks(*pair) for pair in HEAD_SIZES}
