import logging

import numpy as np

from tinybert_ds.export.peak_memory import peak_mib


def test_a_process_that_fails_is_told_of_and_has_no_peak(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = peak_mib("onnx", tmp_path / "gone.onnx", {"input_ids": np.ones((1, 4), dtype=np.int64)}, 1)
    assert found is None
    assert "gone.onnx is not measured" in caplog.text
    assert "ended with code 1" in caplog.text
