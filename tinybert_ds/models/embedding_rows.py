"""Models of a part of a vocabulary: the rows of the tokens that are in it, in their new order.

V tokens of the part, W of the whole, H width of the embeddings.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from tinybert_ds.errors import ModelError

_SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask", "unk", "decoder_start")


def with_rows(model: PreTrainedModel, ids: NDArray[np.int64] | None) -> PreTrainedModel:
    """Return a copy of a model that reads the tokens of a part of its vocabulary; without `ids` the model itself."""
    return model if ids is None else take_rows(copy.deepcopy(model), ids)


def take_rows(model: PreTrainedModel, ids: NDArray[np.int64]) -> PreTrainedModel:
    """Leave a model the rows of some tokens alone, in place: token i of it is what token ids[i] was.

    Embeddings, a head for masked words with its biases, and the numbers of special tokens in the config change;
    everything else is untouched, and so what the model makes of a text that both vocabularies spell alike.

    Args:
        ids: (V,) the model's ids.

    Raises:
        ModelError: A RoBERTa, whose positions are counted from the number of its padding, and another such number.
    """
    rows = torch.from_numpy(np.ascontiguousarray(ids))
    embeddings: Any = model.get_input_embeddings()
    numbers = {int(old): new for new, old in enumerate(ids)}
    _check_padding(model, numbers)
    output: Any = model.get_output_embeddings()
    size = embeddings.weight.shape[0]
    replaced = {id(embeddings.weight): _rows(embeddings.weight, rows)}
    for parameter in () if output is None else output.parameters():  # a bias may also belong to the head around it
        if id(parameter) not in replaced and len(parameter) == size:
            replaced[id(parameter)] = _rows(parameter, rows)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in replaced:
                setattr(module, name, replaced[id(parameter)])
    embeddings.num_embeddings = len(ids)
    if embeddings.padding_idx is not None:
        embeddings.padding_idx = numbers.get(embeddings.padding_idx)
    if output is not None:
        output.out_features = len(ids)
    _renumber_config(model.config, numbers, len(ids))
    return model


def _rows(parameter: nn.Parameter, rows: torch.Tensor) -> nn.Parameter:
    taken = parameter.detach()[rows.to(parameter.device)].clone()
    return nn.Parameter(taken, requires_grad=parameter.requires_grad)


def _renumber_config(config: Any, numbers: Mapping[int, int], size: int) -> None:
    config.vocab_size = size
    for name in _SPECIAL:
        old = getattr(config, f"{name}_token_id", None)
        if isinstance(old, int):
            setattr(config, f"{name}_token_id", numbers.get(old))
        elif isinstance(old, list):  # several tokens may end a text
            setattr(config, f"{name}_token_id", [numbers[each] for each in old if each in numbers] or None)


def _check_padding(model: PreTrainedModel, numbers: Mapping[int, int]) -> None:
    positions = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    if padding is not None and numbers.get(padding) != padding:
        raise ModelError(
            f"{type(model).__name__} counts positions from the number of its padding, {padding}, and the part of its "
            f"vocabulary gives that token the number {numbers.get(padding)}; leave the tokens before it in the part"
        )
