"""Values of a config.json that transformers takes and no model can be built from, or trained with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers.activations import ACT2FN

from tinybert_ds.errors import did_you_mean
from tinybert_ds.foreign_text import quoted

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_ACTIVATIONS = ("hidden_act", "activation", "hidden_activation", "activation_function")
_SHARES = ("dropout", "_prob", "layerdrop")  # parts of the names of probabilities


def content_problems(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the JSON object of a config before transformers reads it."""
    labels = content.get("id2label")
    if labels is None:
        return []
    if not isinstance(labels, Mapping):
        return [f'id2label is a {type(labels).__name__}; write an object, such as {{"0": "negative", "1": "positive"}}']
    if sorted(map(str, labels)) != sorted(map(str, range(len(labels)))):
        keys = ", ".join(map(str, labels))
        return [f"id2label has the keys {keys[:100]}; name the outputs 0 to {len(labels) - 1}, each once"]
    return []


def config_problems(config: Any) -> list[str]:
    """What is wrong with the values of a config, one sentence each."""
    problems = []
    for name in _SIZES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value < 1:
            problems.append(f"{name} is {value}; it must be at least 1")
    for name in _ACTIVATIONS:
        value = getattr(config, name, None)
        if isinstance(value, str) and value not in ACT2FN:
            near = did_you_mean(value[:80], ACT2FN)
            problems.append(f"{name} is {quoted(value)}{near}; transformers knows {', '.join(sorted(ACT2FN))}")
    for name, value in sorted(config.to_dict().items()):
        if not isinstance(value, float):
            continue
        if any(part in name for part in _SHARES):
            if not 0 <= value <= 1:
                problems.append(f"{name} is {value}; it must be from 0 to 1")
        elif math.isnan(value):
            problems.append(f"{name} is NaN; it must be a number")
    return problems
