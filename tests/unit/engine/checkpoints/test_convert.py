import pytest

from tinybert_ds.engine.checkpoints.convert import Layout, must_convert
from tinybert_ds.errors import CheckpointError


@pytest.mark.parametrize(
    ("found", "wanted", "converted"),
    [
        ((2, 2, "float32"), (2, 2, "float32"), False),
        ((2, 2, "float32"), (1, 1, "float32"), True),
        ((1, 1, "bfloat16"), (2, 1, "bfloat16"), True),
        ((2, 3, "float32"), (4, 3, "float32"), True),
        ((2, 0, "float32"), (1, 0, "float32"), False),
    ],
)
def test_a_checkpoint_is_cut_anew_only_where_its_layout_is_another(found, wanted, converted):
    assert must_convert(Layout(*found), Layout(*wanted), "step-7") is converted


@pytest.mark.parametrize("wanted", [(2, 3, "float32"), (2, 0, "float32"), (2, 2, "bfloat16")])
def test_a_layout_that_cannot_be_reached_is_refused_with_both(wanted):
    with pytest.raises(CheckpointError, match=rf"written with 2 rank\(s\), ZeRO stage 2, float32.*{wanted[2]}"):
        must_convert(Layout(2, 2, "float32"), Layout(*wanted), "step-7")
