"""Tiny random classifiers of many families, each with a tokeniser of its own class, as transformers would save them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertTokenizer,
    AutoModelForSequenceClassification,
    BertTokenizer,
    BigBirdTokenizer,
    FunnelConfig,
    FunnelTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RemBertTokenizer,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from tests.support.models import VOCABULARY, tiny_model

LABELS = ("bad", "good")
_CLS_SEP = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
_S = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _pieces(special: list[str]) -> list[tuple[str, float]]:
    words = [word for word in VOCABULARY if word.isalpha()]
    return (
        [(token, 0.0) for token in special]
        + [("▁", -9.0)]
        + [piece for word in words for piece in ((f"▁{word}", -4.0), (word, -5.0))]
    )


def _word_pieces(names: Mapping[str, str]) -> dict[str, int]:
    return {names.get(token, token): number for number, token in enumerate(VOCABULARY)}


def _byte_level() -> dict[str, int]:
    return {token: number for number, token in enumerate([*_S, *sorted(pre_tokenizers.ByteLevel.alphabet())])}


def _generic(names: list[str] | None = None) -> PreTrainedTokenizerFast:
    """A WordPiece tokeniser of the class that takes tokenizer.json as it is, with BERT's template."""
    vocabulary = _word_pieces({})
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    named: dict[str, Any] = {"model_input_names": names} if names else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name}_token": token for name, token in special.items()}, **named
    )


def _bert() -> Any:
    return BertTokenizer(vocab=_word_pieces({}))


def _xlm_roberta() -> Any:
    return XLMRobertaTokenizer(vocab=_pieces(_S))


TOKENIZERS: Mapping[str, Callable[[], Any]] = {
    "bert": _bert,
    "roberta": lambda: RobertaTokenizer(vocab=_byte_level(), merges=[]),
    "xlm-roberta": _xlm_roberta,
    "albert": lambda: AlbertTokenizer(vocab=_pieces(_CLS_SEP)),
    "big_bird": lambda: BigBirdTokenizer(vocab=_pieces(["<pad>", "</s>", "<s>", "<unk>", "[CLS]", "[SEP]", "[MASK]"])),
    "rembert": lambda: RemBertTokenizer(vocab=_pieces(["<pad>", "[CLS]", "<unk>", "[SEP]", "[MASK]"])),
    "funnel": lambda: FunnelTokenizer(
        vocab=_word_pieces({"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<cls>", "[SEP]": "<sep>", "[MASK]": "<mask>"})
    ),
    "mpnet": lambda: MPNetTokenizer(
        vocab=_word_pieces({"[PAD]": "<pad>", "[UNK]": "[UNK]", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>"})
    ),
    "generic": _generic,
    "generic with types": lambda: _generic(["input_ids", "token_type_ids", "attention_mask"]),
}

FAMILIES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "bert", {}),
    "bert, generic tokeniser": ("bert", "generic", {}),
    "bert, generic tokeniser with types": ("bert", "generic with types", {}),
    "multilingual minilm": ("bert", "xlm-roberta", {"pad_token_id": 0}),
    "electra": ("electra", "bert", {}),
    "ernie": ("ernie", "bert", {}),
    "distilbert": ("distilbert", "bert", {}),
    "mobilebert": ("mobilebert", "bert", {}),
    "nomic_bert": ("nomic_bert", "bert", {}),
    "convbert": ("convbert", "bert", {"type_vocab_size": 2, "embedding_size": 48}),
    "squeezebert": (
        "squeezebert",
        "bert",
        {"embedding_size": 48, **{f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention")}},
    ),
    "roberta": ("roberta", "roberta", {}),
    "xlm-roberta": ("xlm-roberta", "xlm-roberta", {}),
    "longformer": (
        "longformer",
        "roberta",
        {"attention_window": 8, "pad_token_id": 1, "max_position_embeddings": 66, "type_vocab_size": 1},
    ),
    "mpnet": ("mpnet", "mpnet", {"max_position_embeddings": 66}),
    "albert": ("albert", "albert", {}),
    "big_bird": ("big_bird", "big_bird", {"attention_type": "original_full"}),
    "rembert": ("rembert", "rembert", {"input_embedding_size": 24, "output_embedding_size": 24}),
    "deberta-v2": ("deberta-v2", "generic with types", {"type_vocab_size": 2}),
    "nystromformer": ("nystromformer", "generic", {"num_landmarks": 64, "segment_means_seq_len": 64}),
    "modernbert": (
        "modernbert",
        "generic",
        {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    ),
    "funnel": ("funnel", "funnel", {"block_sizes": [2, 2], "n_head": 4, "d_model": 48, "d_head": 12, "d_inner": 64}),
}
"""Name -> architecture, tokeniser, and what makes it tiny."""


def family_directory(directory: Path, name: str, **changes: Any) -> Path:
    """Write a random classifier of a family with its tokeniser; return the directory."""
    model_type, tokenizer_name, values = FAMILIES[name]
    tokenizer = TOKENIZERS[tokenizer_name]()
    size = max(tokenizer.get_vocab().values()) + 1
    if model_type == "funnel":  # which counts its layers in blocks
        config = FunnelConfig(vocab_size=size, num_labels=len(LABELS), **values)
        config.id2label = dict(enumerate(LABELS))
        model: Any = AutoModelForSequenceClassification.from_config(config)
    else:
        model = tiny_model(model_type, labels=LABELS, **{"vocab_size": size, **values, **changes})
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
