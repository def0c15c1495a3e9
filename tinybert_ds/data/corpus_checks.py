"""What a corpus and the arguments of a run must fulfil before samples can be made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tinybert_ds.data.blocks import Selection, is_held_out
from tinybert_ds.data.manifest import TOKENIZER_NAME, Corpus, Sampling, continuations, tokens_of
from tinybert_ds.data.masking import Masking
from tinybert_ds.data.tokenizer import SpecialIds
from tinybert_ds.data.word_list import load_word_list
from tinybert_ds.errors import ConfigError, DataError, raise_all

_DOCUMENTS_AT_ONCE = 1 << 16


def check_one_tokenizer(corpora: Sequence[Corpus]) -> None:
    """Raise `DataError` unless all corpora were made with one tokeniser."""
    for corpus in corpora[1:]:
        if corpus.manifest.tokenizer_fingerprint != corpora[0].manifest.tokenizer_fingerprint:
            raise DataError(
                f"the corpora {str(corpora[0].directory)!r} and {str(corpus.directory)!r} were made with different "
                "tokenisers. Prepare both with the same --bert_model and casing."
            )


def check_one_sampling(corpora: Sequence[Corpus], stated: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where the manifests make samples in different ways and the run does not say which.

    Args:
        stated: what the run says of the fields of `Sampling`; None: nothing.
    """
    first = corpora[0]
    problems = []
    for corpus in corpora[1:]:
        for name, value in asdict(corpus.manifest.sampling).items():
            own = getattr(first.manifest.sampling, name)
            if value != own and stated[name] is None:
                problems.append(
                    f"{name} is {own} in the manifest of {str(first.directory)!r} and {value} in that of "
                    f"{str(corpus.directory)!r}; say which with the training command's flag, or prepare both alike"
                )
    raise_all(problems, ConfigError)


def check_arguments(
    sampling: Sampling,
    special: SpecialIds,
    *,
    split: str,
    eval_fraction: float,
    global_batch_size: int,
    max_samples: int | None,
) -> None:
    """Raise one `ConfigError` with everything that is out of range."""
    overhead = len(special.prefix) + len(special.middle) + len(special.suffix)
    problems = []
    if not 0 <= eval_fraction < 1:
        problems.append(f"eval_fraction is {eval_fraction}; it must be at least 0 and below 1")
    if split == "eval" and eval_fraction == 0:
        problems.append("eval_fraction is 0: no document is held out to evaluate on. Give a fraction such as 0.005")
    if global_batch_size < 1:
        problems.append(f"the global batch has {global_batch_size} rows; it needs at least 1")
    if max_samples is not None and max_samples < 1:
        problems.append(f"max_samples is {max_samples}; it must be at least 1")
    if sampling.max_seq_len < overhead + 2:
        problems.append(
            f"the sequence length is {sampling.max_seq_len}; {overhead} special tokens and two of the text need "
            f"at least {overhead + 2}"
        )
    if not 0 <= sampling.masked_lm_prob < 1:
        problems.append(f"masked_lm_prob is {sampling.masked_lm_prob}; it must be at least 0 and below 1")
    if not 0 <= sampling.short_seq_prob <= 1:
        problems.append(f"short_seq_prob is {sampling.short_seq_prob}; it must be from 0 to 1")
    if sampling.max_predictions_per_seq < 0:
        problems.append(f"max_predictions_per_seq is {sampling.max_predictions_per_seq}; it must not be negative")
    if sampling.masked_lm_prob > 0 and special.mask is None:
        problems.append("masked_lm_prob is above 0, but the tokeniser has no mask token. Set masked_lm_prob to 0")
    raise_all(problems, ConfigError)


def check_documents(
    corpora: Sequence[Corpus], selections: Sequence[Selection], eval_fraction: float, sampling: Sampling
) -> None:
    """Raise `DataError` unless there are documents to train on, and two of them when second segments are exchanged."""
    total = sum(corpus.manifest.documents for corpus in corpora)
    training, needed = 0, 1 if sampling.one_seq or sampling.full_sentences else 2
    for corpus, selection in zip(corpora, selections, strict=True):
        for begin in range(0, corpus.manifest.documents, _DOCUMENTS_AT_ONCE):
            documents = np.arange(begin, min(begin + _DOCUMENTS_AT_ONCE, corpus.manifest.documents))
            training += int((~is_held_out(documents, selection.held_out_below)).sum())
            if training >= needed and (total > 1 or eval_fraction == 0):
                return
    names = ", ".join(repr(str(corpus.directory)) for corpus in corpora)
    held_out = "" if eval_fraction == 0 else f", and --eval_fraction {eval_fraction} holds out at least one of them"
    raise DataError(
        f"the corpus {names} has {total} document{'s' * (total != 1)}{held_out}; random second sentences need two "
        "documents to train on. Give --one_seq and --eval_fraction 0, or separate the documents of the text by blank "
        "lines and prepare it again."
    )


def make_masking(corpus: Corpus, sampling: Sampling, word_list: str | None = None) -> Masking | None:
    """How tokens are masked; None when nothing is.

    Args:
        word_list: See `load_word_list`.

    Raises:
        ConfigError, DataError: whole words are wanted, but the vocabulary does not mark them and no list has them.
    """
    special = corpus.manifest.special_ids
    words = None if word_list is None else load_word_list(word_list, tokens_of(corpus.directory))
    if sampling.masked_lm_prob == 0 or special.mask is None:
        return None
    is_special = np.zeros(special.vocab_size, dtype=bool)
    is_special[list(special.all_special)] = True
    continuation = None
    if sampling.whole_word:
        tokenizer_json = (corpus.directory / TOKENIZER_NAME).read_text(encoding="utf-8")
        continuation = continuations(tokenizer_json, special.vocab_size, listed=words is not None)
    return Masking(
        probability=sampling.masked_lm_prob,
        max_predictions=sampling.max_predictions_per_seq,
        mask_id=special.mask,
        special=is_special,
        replacements=np.flatnonzero(~is_special).astype(np.int64),
        continuation=continuation,
        words=words if sampling.whole_word else None,
    )
