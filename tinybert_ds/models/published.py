"""The directories of the published TinyBERTs, and of other BERTs as old: a config.json that does not say `model_type`.

They hold a `vocab.txt` and a `pytorch_model.bin` with BERT's keys, pre-training heads (`cls.*`), a `classifier` if
fine-tuned, and the projections of general distillation: `fit_dense` in the first version (one for all states),
`fit_denses.N` in the second (one for each state, embeddings included).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from tinybert_ds.errors import ModelError
from tinybert_ds.models.directory import require_fetched
from tinybert_ds.models.foreign import foreign_code

WEIGHTS_FILE = "pytorch_model.bin"
_PROJECTION = re.compile(r"(?:module\.)?fit_dense(?:s\.(\d+))?\.(weight|bias)")
_STATED_BY_BERT = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def published_config(content: Mapping[str, Any]) -> BertConfig | None:
    """Read a config.json without `model_type` as BERT's.

    Returns:
        The config without the keys that no BERT knows (cell, emb_size, structure, ...), or None where `model_type` is
        there or BERT's own keys are not.
    """
    if "model_type" in content or any(key not in content for key in _STATED_BY_BERT):
        return None
    known = {field.name for field in fields(BertConfig)} | {"id2label", "label2id", "problem_type", "pooler_relu"}
    return BertConfig(**{key: value for key, value in content.items() if key in known})


def read_bin(path: Path) -> dict[str, Tensor]:
    """Read a .bin of tensors, weights only: nothing in it is executed.

    Raises:
        ModelError: No such file, or not one of tensors alone.
    """
    content = _read(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} holds more than named tensors; give a plain state dict or a model.safetensors")
    return content


def wrapping_name(path: Path) -> str | None:
    """Return the key of a .bin under which its weights stand, such as "state_dict"; None where they stand on top."""
    content = _read(path)
    if not isinstance(content, dict):
        return None
    tensors = {
        key: sum(isinstance(item, Tensor) for item in value.values())
        for key, value in content.items()
        if isinstance(value, dict)
    }
    return max(tensors, key=lambda key: tensors[key]) if any(tensors.values()) else None


def _read(path: Path) -> Any:
    require_fetched([path])
    advice = "copy it again from its source, or convert it to model.safetensors"
    with foreign_code(f"{path} cannot be read as a file of tensors", advice):
        # Files written before torch 1.6 are no zip archives and cannot be memory-mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def published_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Take the projections out of a published state dict.

    Returns:
        "N.weight" (H_teacher, H_student) and "N.bias" (H_teacher,) for the student states N, or only N = 0 for one
        projection that all states share; None where there is none.
    """
    found = {}
    for key, value in state.items():
        match = _PROJECTION.fullmatch(key)
        if match:
            found[f"{match[1] or 0}.{match[2]}"] = value.clone().float()
    return found or None


def apply_pooler_relu(model: PreTrainedModel) -> None:
    """Put the ReLU after the pooler's tanh that the published fine-tuned TinyBERTs were trained with, in place.

    The config then says `"pooler_relu": true`, and our loading functions put it in again; transformers alone does not.

    Raises:
        ModelError: Not a BERT classifier.
    """
    if not isinstance(model, BertForSequenceClassification):
        raise ModelError(
            f"--pooler_relu is for the published fine-tuned TinyBERTs, which are BERTs; {type(model).__name__} has no "
            "such pooler: leave the flag out"
        )
    pooler = model.bert.pooler
    if not isinstance(pooler.activation, nn.Sequential):
        pooler.activation = nn.Sequential(nn.Tanh(), nn.ReLU())
    model.config.pooler_relu = True
