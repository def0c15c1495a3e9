"""Small tokenisers of every kind whose vocabularies can be trimmed, learnt from a text in milliseconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.models import WORDS

_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
_SYLLABLES = ("ba", "be", "lo", "mi", "ner", "to", "stra", "quen", "sing", "ed", "ly", "çao", "über", "日本", "電")


def sentences(count: int, *, seed: int = 0) -> list[str]:
    """Return sentences of words, a few of them everywhere and most of them rare."""
    rng = random.Random(seed)
    made = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(400)]
    words = [word for word in WORDS if not word.startswith("##")] * 4 + made
    return [" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(count)]


def _template(cls: str, sep: str, ids: Mapping[str, int], *, types: bool) -> Any:
    one = 1 if types else 0
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:{one} {sep}:{one}" if types else f"{cls} $A {sep} {sep} $B {sep}",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )


def _finish(backend: Tokenizer, special: Mapping[str, str], *, types: bool) -> PreTrainedTokenizerFast:
    named = {f"{name}_token": token for name, token in special.items()}
    named.setdefault("cls_token", special.get("bos", ""))
    named.setdefault("sep_token", special.get("eos", ""))
    backend.post_processor = _template(
        named["cls_token"], named["sep_token"], backend.get_vocab(with_added_tokens=True), types=types
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **named)


def _word_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        sentences(300), trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(_BERT.values()))
    )
    return _finish(backend, _BERT, types=True)


def _unigram() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(
        sentences(300),
        trainers.UnigramTrainer(vocab_size=400, special_tokens=list(_ROBERTA.values()), unk_token="<unk>"),
    )
    return _finish(backend, _ROBERTA, types=False)


def _byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(_ROBERTA.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(sentences(300), trainer)
    return _finish(backend, _ROBERTA, types=False)


def _character_bpe() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [*_ROBERTA.values(), *(f"<0x{value:02X}>" for value in range(256))]
    backend.train_from_iterator(sentences(300), trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    return _finish(backend, _ROBERTA, types=False)


KINDS: Mapping[str, Callable[[], PreTrainedTokenizerFast]] = {
    "WordPiece": _word_piece,
    "Unigram": _unigram,
    "byte-level BPE": _byte_level,
    "BPE with bytes for the unknown": _character_bpe,
}
