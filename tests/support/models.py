"""Tiny random models and a tiny WordPiece tokeniser: directories that the commands take, made in milliseconds.

`model_directory` is the usual one: a BERT of 4 layers, width 48, 4 heads with its tokeniser. Everything is seeded.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertTokenizerFast,
    PreTrainedModel,
)

from tinybert_ds.types import Batch, Counts

WORDS = """
the a an and or of to in on it is was not very good bad film story plot actor music dull bright long short
we you they he she saw liked hated found one two three day night city river house road ##s ##ed ##ing
""".split()
VOCABULARY = tuple(
    dict.fromkeys(
        (
            *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
            *string.ascii_lowercase,
            *(f"##{letter}" for letter in string.ascii_lowercase),
            *string.digits,
            *(f"##{digit}" for digit in string.digits),
            *".,!?'-",
            *WORDS,
        )
    )
)
VOCAB_SIZE = len(VOCABULARY)

ARCHITECTURES: Mapping[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66},
    "xlm-roberta": {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66},
    "camembert": {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66},
    "electra": {"embedding_size": 24},
    "ernie": {},
    "albert": {"embedding_size": 24},
    "distilbert": {},
    "mobilebert": {"embedding_size": 24, "true_hidden_size": 24, "intra_bottleneck_size": 24, "trigram_input": True},
    "nomic_bert": {},
}
"""The architectures whose attention can be captured, with what makes each of them tiny."""


def write_tokenizer(directory: Path, *, vocabulary: Sequence[str] = VOCABULARY) -> None:
    """Write a lower-casing WordPiece tokeniser: vocab.txt, tokenizer.json, tokenizer_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab_file = directory / "vocab.txt"
    vocab_file.write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(vocab_file), do_lower_case=True).save_pretrained(directory)


def tiny_config(model_type: str = "bert", **changes: Any) -> Any:
    """Return a config of 4 layers, width 48, 4 heads and our vocabulary, without dropout."""
    values = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **ARCHITECTURES.get(model_type, {}),
        **changes,
    }
    if model_type == "distilbert":
        names = {"hidden_size": "dim", "intermediate_size": "hidden_dim", "hidden_dropout_prob": "dropout"}
        names |= {"num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        names |= {"attention_probs_dropout_prob": "attention_dropout"}
        values = {names.get(key, key): value for key, value in values.items()}
    return AutoConfig.for_model(model_type, **values)


def tiny_model(
    model_type: str = "bert", *, labels: Sequence[str] | None = None, seed: int = 0, scale: float = 4.0, **changes: Any
) -> PreTrainedModel:
    """Return a random model in eval mode, with a classification head if `labels` are given.

    Args:
        scale: Factor on all matrices, so that attention is far from uniform and layers differ visibly.
    """
    config = tiny_config(model_type, **changes)
    auto_class: Any = AutoModel
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: index for index, name in enumerate(labels)}
        auto_class = AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto_class.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model


def model_directory(
    directory: Path,
    *,
    model_type: str = "bert",
    labels: Sequence[str] | None = None,
    seed: int = 0,
    vocabulary: Sequence[str] = VOCABULARY,
    **changes: Any,
) -> Path:
    """Write a random model with its tokeniser; return the directory."""
    model = tiny_model(model_type, labels=labels, seed=seed, vocab_size=len(vocabulary), **changes)
    model.save_pretrained(directory)
    write_tokenizer(directory, vocabulary=vocabulary)
    return directory


def masked_lm_directory(
    directory: Path, *, seed: int = 0, vocabulary: Sequence[str] = VOCABULARY, **changes: Any
) -> Path:
    """Write a random BERT with its head for masked words and its tokeniser; return the directory."""
    config = tiny_config(vocab_size=len(vocabulary), **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)  # biases count too
    model.save_pretrained(directory)
    write_tokenizer(directory, vocabulary=vocabulary)
    return directory


def config_directory(directory: Path, **changes: Any) -> Path:
    """Write a student's config.json alone: 2 layers, width 24, 4 heads unless changed; return the directory."""
    changes = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32, **changes}
    tiny_config(**changes).save_pretrained(directory)
    return directory


def published_directory(
    directory: Path,
    *,
    version: int = 1,
    teacher_hidden_size: int = 48,
    labels: int = 0,
    zip_format: bool = False,
    changes: Mapping[str, Tensor | None] | None = None,
) -> tuple[Path, PreTrainedModel]:
    """Write a directory in the format of the published TinyBERTs: 2 layers, width 24, 4 heads.

    Args:
        version: 1: one projection `fit_dense`; 2: `fit_denses.N` for the three states.
        labels: Outputs of a fine-tuned `classifier`; 0: the general model.
        zip_format: As torch writes since 1.6; False is the format of the time.
        changes: Weights to add or replace, or with None to leave out.

    Returns:
        The directory and the model whose weights it holds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = [f"class {index}" for index in range(labels)] or None
    size = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32}
    model = tiny_model(labels=names, seed=7, **size)
    prefix = "" if labels else "bert."
    state = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(8)
    for name in ["fit_dense"] if version == 1 else [f"fit_denses.{index}" for index in range(3)]:
        state[f"{name}.weight"] = torch.randn(teacher_hidden_size, 24, generator=generator)
        state[f"{name}.bias"] = torch.randn(teacher_hidden_size, generator=generator)
    state["cls.predictions.bias"] = torch.zeros(VOCAB_SIZE)
    state["cls.seq_relationship.weight"] = torch.zeros(2, 24)
    for key, value in (changes or {}).items():
        state.pop(key, None)
        if value is not None:
            state[key] = value
    torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
    keys = ("hidden_act", "initializer_range", "max_position_embeddings", "num_attention_heads", "type_vocab_size")
    content = {key: getattr(model.config, key) for key in keys}
    content |= {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "vocab_size": VOCAB_SIZE, **size}
    content |= {"cell": {}, "emb_size": 24, "structure": [], "pre_trained": "", "training": ""}
    (directory / "config.json").write_text(json.dumps(content), encoding="utf-8")
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return directory, model


def random_batch(lengths: Sequence[int], *, seed: int = 0, pad_id: int = 0, pad_to: int | None = None) -> Batch:
    """Return a batch of random tokens, none of them special, with rows of these lengths and labels 0."""
    width = pad_to or max(lengths)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCAB_SIZE, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    segments = (torch.arange(width) >= torch.tensor(lengths)[:, None] // 2).long() * mask
    return Batch(
        input_ids=torch.where(mask.bool(), ids, pad_id),
        attention_mask=mask,
        token_type_ids=segments,
        labels=torch.zeros(len(lengths), dtype=torch.long),
        sample_ids=torch.arange(len(lengths)),
        counts=Counts(
            rows=float(len(lengths)), tokens=float(sum(lengths)), token_pairs=float(sum(n * n for n in lengths))
        ),
    )
