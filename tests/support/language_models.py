"""Tiny random language models with a classification head, and tokenisers as such models have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tests.support.models import WORDS

LABELS = ("bad", "good")
_SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "head_dim": 12,
    "max_position_embeddings": 128,
}
LANGUAGE_MODELS: Mapping[str, dict[str, Any]] = {
    "qwen3": {"begin": None, "pad": "<|endoftext|>", "pad_token_id": None},
    "llama": {"begin": "<s>", "pad": None, "pad_token_id": None},
    "gemma": {"begin": "<bos>", "pad": "<pad>", "pad_token_id": 0},
}
"""Architecture -> what its tokeniser puts before a text, the token that it pads with, and what the config names."""


def language_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokeniser without cls and sep that pads on the left."""
    traits = LANGUAGE_MODELS[name]
    special = [token for token in (traits["pad"], traits["begin"]) if token]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator([" ".join(WORDS)], trainer)
    if traits["begin"]:
        begin = (traits["begin"], backend.token_to_id(traits["begin"]))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin[0]} $A", pair=f"{begin[0]} $A {begin[0]}:1 $B:1", special_tokens=[begin]
        )
    named = {"pad_token": traits["pad"], "bos_token": traits["begin"]}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        **{key: value for key, value in named.items() if value},
    )


def language_model_directory(directory: Path, name: str, *, scale: float = 4.0, **changes: Any) -> Path:
    """Write a random classifier of an architecture of language models with its tokeniser; return the directory."""
    tokenizer = language_tokenizer(name)
    config = AutoConfig.for_model(
        name,
        vocab_size=len(tokenizer.get_vocab()) + 8,
        **{**_SIZES, "pad_token_id": LANGUAGE_MODELS[name]["pad_token_id"], **changes},
    )
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
