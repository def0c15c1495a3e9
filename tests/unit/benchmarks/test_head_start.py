from tests.benchmarks.head_start import held_out, reached

LINES = [
    {"step": 1, "attention_loss": 9.0, "hidden_loss": 2.0},
    {"step": 50, "eval_attention_loss": 5.0, "eval_hidden_loss": 0.4},
    {"step": 100, "eval_attention_loss": 3.0, "eval_hidden_loss": 0.6},
    {"step": 150, "eval_attention_loss": 3.0, "eval_hidden_loss": 0.5},
]


def test_a_start_is_caught_up_with_where_every_loss_is():
    found = held_out(LINES)
    assert found == {50: (5.0, 0.4), 100: (3.0, 0.6), 150: (3.0, 0.5)}
    assert reached((3.0, 0.5), found) == 150
    assert reached((5.0, 0.4), found) == 50
    assert reached((3.0, 0.4), found) is None
