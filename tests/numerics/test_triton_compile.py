"""The Triton kernels compiled ahead of time for GPUs that are not there: nothing that the dispatch takes may spill."""

from __future__ import annotations

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor

import pytest

triton = pytest.importorskip("triton", reason="needs triton: pip install triton")

from tests.benchmarks.kernel_usage import programs  # noqa: E402 - after the skip
from tests.support.kernel_matrix import (  # noqa: E402
    HEAD_SIZES,
    MOST_SHARED_BYTES,
    Build,
    all_builds,
    compile_build,
    usual_builds,
)
from tinybert_ds.losses import triton_attention  # noqa: E402
from tinybert_ds.losses.precomputed import Needs  # noqa: E402
from tinybert_ds.losses.triton_kernel import attention_loss_kernel  # noqa: E402

pytestmark = pytest.mark.skipif(
    not isinstance(attention_loss_kernel, triton.JITFunction), reason="TRITON_INTERPRET is set: nothing is compiled"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return a function from builds to what each takes, compiled anew by two processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield lambda builds: dict(zip(builds, pool.map(compile_build, builds), strict=True))


@pytest.fixture(scope="module")
def usages(compiled):
    """Return what each usual build takes."""
    return compiled(usual_builds())


@pytest.mark.parametrize("build", usual_builds(), ids=str)
def test_no_usual_build_spills_registers_or_exceeds_shared_memory(build, usages):
    assert usages[build].stack_bytes == 0
    assert usages[build].shared_bytes <= MOST_SHARED_BYTES


@pytest.mark.parametrize("sizes", [(26, 64), (64, 64)], ids=str)
def test_most_steps_launch_hopper_s_own_products_and_three_programs_run_beside(sizes, usages):
    build = Build("attention", sizes, ("bf16", "fp16"), value=False, gradient=True, valid=True, capability=90)
    assert usages[build].warpgroup_products > 0
    assert programs(build, usages[build]) == 3


@pytest.mark.exhaustive
def test_nothing_that_the_dispatch_may_choose_spills_or_exceeds_shared_memory(compiled):
    usages = compiled(all_builds())
    assert len(usages) > 200
    assert not {build: usage for build, usage in usages.items() if usage.stack_bytes}
    assert not {build: usage for build, usage in usages.items() if usage.shared_bytes > MOST_SHARED_BYTES}


def test_a_kernel_with_too_few_registers_is_seen_to_spill(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    build = Build("attention", (16, 32), ("bf16", "fp16"), False, True, True, 80)
    assert compile_build(build, maxnreg=64).stack_bytes > 0


def test_a_file_that_grows_too_large_after_a_kernel_was_compiled_is_an_error_and_not_the_end(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    compile_build(usual_builds()[0])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            (tmp_path / "file").write_bytes(bytes(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_compiled_head_sizes_are_all_blocks_that_the_dispatch_knows():
    def blocks(*heads):
        options = triton_attention.compile_options(*heads, Needs(True, True), (9, 0))
        return tuple(list(options.items())[3:])

    small, widest = triton_attention.SMALL_HEAD, triton_attention.MAX_HEAD
    known = {blocks(s, t) for s in range(1, small + 1) for t in range(1, triton_attention.MAX_TEACHER_HEAD + 1)}
    known |= {blocks(s, t) for s in range(small + 1, widest + 1) for t in range(1, widest + 1)}
    assert known == {blocks(*pair) for pair in HEAD_SIZES}
