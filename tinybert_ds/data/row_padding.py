"""What the rows of language models with a classification head are padded with: by it they find the end of a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinybert_ds.data.task_batches import EncodedExamples


def choose_padding(config: Any, tokenizer: PreTrainedTokenizerFast, splits: Iterable[EncodedExamples]) -> int:
    """Return the token that a model's rows are padded with.

    A model that classifies by a text's last token takes the last one that is not its padding: where its config names
    none, it must be one that no row ends with.

    Args:
        config: The model's.
        tokenizer: Its tokeniser.
        splits: All rows that it will be given, of its tokens.
    """
    stated = config.get_text_config().pad_token_id
    if stated is not None:
        return int(stated)
    last = {token for rows in splits for token in np.unique(rows.tokens[rows.offsets[1:] - 1]).tolist()}
    wanted = tokenizer.pad_token_id
    if wanted is not None and wanted not in last:
        return int(wanted)
    return next(number for number in range(len(last) + 1) if number not in last)


def marks_texts(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a tokeniser has the marks of an encoder, cls, sep and padding, which language models lack."""
    return None not in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)


def prepare_to_read(model: PreTrainedModel, padding: int) -> None:
    """Let a model that classifies by the last token know the padding, and keep nothing for tokens that never come."""
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = padding
    if getattr(config, "use_cache", False):
        config.use_cache = False
