import pytest

from tinybert_ds.arguments import FinetuneArguments, parse_arguments
from tinybert_ds.stages.entry import wants_cpu


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
