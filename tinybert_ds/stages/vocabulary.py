"""Which tokens a student and its teacher read: the same ones, by the same ids or by those of a part of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from tinybert_ds.data.part_vocabulary import ids_in_whole
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types, tokenizer_fingerprint

logger = logging.getLogger(__name__)


class Vocabulary(NamedTuple):
    """The tokeniser of a student, and what the teacher makes of its ids."""

    tokenizer: PreTrainedTokenizerFast
    size: int | None  # entries of the student's vocabulary where it is a part of the teacher's; None: as many
    teacher_ids: NDArray[np.int64] | None  # (size,) the teacher's id of each; None: the same ids
    teacher_types: bool  # whether the teacher's tokeniser returns token types

    @property
    def directory(self) -> str:
        return str(self.tokenizer.name_or_path)


def read_vocabulary(student: str | Path | None, teacher: str, lower_case: bool | None) -> Vocabulary:
    """Load the tokenisers of a student and its teacher, and match their tokens.

    Args:
        student: Directory of the student's tokeniser; None where it is the teacher's.

    Raises:
        ConfigError: The student's is neither the teacher's nor a part of it.
        ModelError: See `load_tokenizer`.
    """
    whole = load_tokenizer(teacher, lower_case)
    types = returns_token_types(whole)
    if student is None:
        return Vocabulary(whole, None, None, types)
    own = load_tokenizer(student, lower_case)
    if tokenizer_fingerprint(own) == tokenizer_fingerprint(whole):
        return Vocabulary(own, None, None, types)
    ids = ids_in_whole(own, whole)
    logger.info(
        "the student's vocabulary is a part of its teacher's: %s of %s tokens, which the teacher reads by its own ids",
        f"{len(ids):,}",
        f"{len(whole.get_vocab()):,}",
    )
    return Vocabulary(own, len(ids), ids, types)
