from __future__ import annotations

import numpy as np

from tinybert_ds.data.rows import Spans, Template, join_spans, pair_first_lengths, pair_spans
from tinybert_ds.data.samples import Samples

TEXT = np.arange(1000, 2000)
TEMPLATE = Template((1,), (2, 3), (4, 5, 6))


def gather(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([TEXT[begin : begin + n] for begin, n in zip(starts, lengths, strict=True)])


def test_a_row_is_its_spans_with_the_special_tokens_around_and_between():
    spans = Spans(np.array([10, 50, 7, 30, 90]), np.array([2, 1, 3, 1, 2]), np.array([2, 1, 2]))
    rows = [
        [1, 1010, 1011, 2, 3, 1050, 4, 5, 6],
        [1, 1007, 1008, 1009, 4, 5, 6],
        [1, 1030, 2, 3, 1090, 1091, 4, 5, 6],
    ]
    assert spans.row_lengths(TEMPLATE).tolist() == [9, 7, 9]
    assert spans.tokens(TEMPLATE, gather).tolist() == [token for row in rows for token in row]
    assert spans.of(np.array([2, 0])).tokens(TEMPLATE, gather).tolist() == rows[2] + rows[0]
    both = join_spans([spans.of(np.array([1])), spans.of(np.array([0, 2]))])
    assert both.tokens(TEMPLATE, gather).tolist() == rows[1] + rows[0] + rows[2]


def test_empty_special_tokens_are_no_trouble():
    spans = Spans(np.array([10, 50]), np.array([2, 1]), np.array([2]))
    assert spans.tokens(Template((), (), ()), gather).tolist() == [1010, 1011, 1050]


def test_samples_are_rows_of_one_span_or_two_whose_first_part_is_of_type_0():
    samples = Samples(*(np.array(x) for x in ([0, 1], [0, 0], [10, 50], [2, 4], [70, 54], [3, 0])))
    spans = pair_spans(samples)
    assert [part.tolist() for part in spans] == [[10, 70, 50], [2, 3, 4], [2, 1]]
    assert pair_first_lengths(samples, TEMPLATE).tolist() == [1 + 2 + 2, 1 + 4 + 3]
