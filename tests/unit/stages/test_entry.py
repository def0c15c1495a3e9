import pytest
import torch.distributed as dist

from tinybert_ds.arguments import FinetuneArguments, parse_arguments
from tinybert_ds.stages import entry
from tinybert_ds.stages.entry import run, wants_cpu


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], False),
        (["--no_cuda"], True),
        (["--no_cuda", "--seed", "1"], True),
        (["--no_cuda=true"], True),
        (["--no_cuda=False"], False),
        (["--no_cuda", "False"], False),
        (["--no_cuda", "yes"], True),
        (["--no-cuda"], True),
        (["--no_cuda", "--no_cuda=0"], False),
        (["--output_dir", "no_cuda"], False),
    ],
)
def test_no_cuda_is_understood_in_every_way_that_a_flag_is_written(words, wanted):
    assert wants_cpu(words) is wanted
    parsed, _ = parse_arguments(
        FinetuneArguments, [*words, "--model", "m", "--data_dir", "d", "--output_dir", "o"], "x"
    )
    assert parsed.no_cuda is wanted, "the arguments must say the same"


@pytest.mark.parametrize(("backend", "left"), [("nccl", 1), ("gloo", 0)])
def test_a_run_that_has_ended_leaves_the_group_of_nccl(backend, left, monkeypatch):
    destroyed = []
    monkeypatch.setattr(entry, "ignore_requests", lambda: None)  # of this process, and of all that it starts later
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: destroyed.append(1))
    run(lambda: None)
    assert len(destroyed) == left
