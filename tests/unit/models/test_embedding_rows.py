"""A model of a part of its vocabulary makes of texts what the whole one makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from tests.support.models import ARCHITECTURES, VOCAB_SIZE, tiny_config, tiny_model
from tinybert_ds.errors import ModelError
from tinybert_ds.models.embedding_rows import take_rows, with_rows

KEPT = np.array([0, 1, 2, 3, 4, *range(30, 60)])
ROWS = torch.tensor([[2, 7, 20, 33, 3, 1, 1], [2, 9, 10, 11, 12, 30, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_a_model_of_some_rows_gives_the_states_of_the_whole_one_on_its_tokens(model_type):
    whole = tiny_model(model_type)
    ids = torch.from_numpy(KEPT)[ROWS]
    padding = whole.config.pad_token_id
    rows = torch.where(MASK.bool(), ROWS, padding)
    ids = torch.where(MASK.bool(), ids, padding)
    with torch.no_grad():
        expected = whole(input_ids=ids, attention_mask=MASK).last_hidden_state
        part = with_rows(whole, KEPT)
        found = part(input_ids=rows, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(found[MASK.bool()], expected[MASK.bool()], rtol=0, atol=1e-6)
    assert part.config.vocab_size == len(KEPT)
    assert whole.config.vocab_size == VOCAB_SIZE
    assert with_rows(whole, None) is whole


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta"])
def test_a_head_for_masked_words_keeps_the_scores_of_the_tokens_and_stays_tied(model_type):
    changes = {"pad_token_id": 1, "max_position_embeddings": 66} if model_type == "xlm-roberta" else {}
    whole = AutoModelForMaskedLM.from_config(tiny_config(model_type, **changes)).eval()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        expected = whole(input_ids=torch.from_numpy(KEPT)[ROWS[1:]]).logits[..., KEPT]
        part = take_rows(whole, KEPT)
        torch.testing.assert_close(part(input_ids=ROWS[1:]).logits, expected, rtol=0, atol=1e-5)
    assert part.get_output_embeddings().weight is part.get_input_embeddings().weight


def test_the_numbers_of_special_tokens_in_the_config_are_those_of_the_part():
    model = tiny_model(cls_token_id=2, sep_token_id=40, eos_token_id=[40, 100], bos_token_id=None)
    config = take_rows(model, KEPT).config
    assert (config.pad_token_id, config.cls_token_id, config.sep_token_id) == (0, 2, 15)
    assert config.eos_token_id == [15]
    assert config.bos_token_id is None


def test_padding_from_whose_number_positions_are_counted_cannot_move():
    model = tiny_model("roberta")
    with pytest.raises(ModelError, match="counts positions from the number of its padding, 1"):
        take_rows(model, np.array([1, 2, 3]))
