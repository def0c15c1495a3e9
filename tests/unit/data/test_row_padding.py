"""What rows of language models are padded with."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from tinybert_ds.data.row_padding import choose_padding
from tinybert_ds.data.task_batches import EncodedExamples


def test_padding_that_the_config_does_not_name_is_no_token_that_a_row_ends_with():
    rows = EncodedExamples(np.array([5, 0, 7, 1]), np.array([0, 2, 4]), np.array([2, 2], dtype=np.int32), None)
    unnamed = SimpleNamespace(get_text_config=lambda: SimpleNamespace(pad_token_id=None))
    named = SimpleNamespace(get_text_config=lambda: SimpleNamespace(pad_token_id=1))
    assert choose_padding(named, SimpleNamespace(pad_token_id=None), [rows]) == 1
    assert choose_padding(unnamed, SimpleNamespace(pad_token_id=9), [rows]) == 9
    assert choose_padding(unnamed, SimpleNamespace(pad_token_id=1), [rows]) == 2
