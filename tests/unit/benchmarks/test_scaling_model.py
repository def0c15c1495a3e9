import pytest

from tests.benchmarks.scaling_model import Link, Measured, describe, model, passes, rounds


@pytest.mark.parametrize(
    ("operation", "ranks", "sent", "few", "around"),
    [
        ("all_reduce", 2, 1.0, 2, 2),
        ("all_reduce", 8, 1.75, 6, 14),
        ("all_gather_into_tensor", 8, 0.875, 3, 7),
        ("reduce_scatter_tensor", 64, 63 / 64, 6, 63),
        ("broadcast", 512, 1.0, 9, 9),
    ],
)
def test_a_collective_sends_the_least_in_as_many_rounds_as_its_algorithm_has(operation, ranks, sent, few, around):
    assert passes(operation, ranks) == sent
    assert rounds(operation, ranks, ring=False) == few
    assert rounds(operation, ranks, ring=True) == around


def test_a_step_is_the_measured_one_and_its_communication():
    payload = {"all_reduce": (3.0, 8e9), "broadcast": (1.0, 0.0)}
    found = model(2.0, payload, rows=16, ranks=8, link=Link(1e9, 0.01))
    assert found.sent_bytes == pytest.approx(14e9)
    assert found.communication_s == pytest.approx(14 + (3 * 6 + 3) * 0.01)
    assert found.step_s == pytest.approx(16.21)
    assert found.samples_per_s == pytest.approx(8 * 16 / 16.21)
    assert found.efficiency == pytest.approx(2 / 16.21)


def test_what_was_measured_is_told_beside_what_is_modelled():
    payload = {"all_reduce": (2.0, 2.0**20)}
    pair = Measured(3.0, 0.5, payload)
    text = describe(2, Measured(2.0, 0.0, {}), pair, [model(2.0, payload, 16, 2, Link(2.0**20, 0.0))])
    assert "one rank 2.000 s a step" in text
    assert "2 all_reduce of 1.00 MiB in all" in text
    assert "| 2 | 1.00 | 2.0 | 1.0000 | 3.000 | 10.7 | 66.7% |" in text
