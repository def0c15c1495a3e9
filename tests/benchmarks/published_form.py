"""The published implementation as the peer of the step: the user's checkout of it, or its form written anew.

Both give the raw attention scores of all layers, (B, A, S, S) each with −10000 added on padded keys, and all hidden
states, the student's through one shared projection. B batch rows, S sequence length, A attention heads, H hidden size.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
import types
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel

from tinybert_ds.types import Batch

ScoresAndStates = tuple[list[Tensor], list[Tensor]]
CUTOFF = -1e2


class MaterialisedEncoder(nn.Module):
    """A BERT that keeps whole score matrices, of transformers' own layers around an attention of the published form.

    Args:
        model: Its weights and layers; it is copied.
        projection: From the student's width to the teacher's, or None for a teacher.
    """

    def __init__(self, model: BertModel, projection: nn.Linear | None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.projection = copy.deepcopy(projection)

    def forward(self, batch: Batch) -> ScoresAndStates:
        """Return scores and states, these projected where there is a projection."""
        added = (1.0 - batch.attention_mask[:, None, None, :].to(torch.get_default_dtype())) * -10000.0
        x = self.model.embeddings(input_ids=batch.input_ids, token_type_ids=batch.token_type_ids)
        states, scores = [x], []
        for layer in self.model.encoder.layer:
            context, layer_scores = self._attend(layer.attention.self, x, added.to(x.dtype))
            attended = layer.attention.output(context, x)
            x = layer.output(layer.intermediate(attended), attended)
            states.append(x)
            scores.append(layer_scores)
        self.model.pooler(x)  # the published classes compute it in every forward
        return scores, states if self.projection is None else [self.projection(state) for state in states]

    def _attend(self, attention: Any, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.model.config.num_attention_heads
        query, key, value = (
            part(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in (attention.query, attention.key, attention.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + added
        probabilities = F.dropout(scores.softmax(dim=-1), self.model.config.attention_probs_dropout_prob, self.training)
        return (probabilities @ value).transpose(1, 2).flatten(2), scores


class OriginalEncoder(nn.Module):
    """An encoder of the published `modeling.py` with the weights of one of transformers'."""

    def __init__(self, modeling: Any, model: BertModel, projection: nn.Linear | None) -> None:
        super().__init__()
        config = modeling.BertConfig.from_dict({**model.config.to_dict(), "pre_trained": "", "training": ""})
        self.student = projection is not None
        if projection is None:
            self.encoder = modeling.BertModel(config)
            bert = self.encoder
        else:
            self.encoder = modeling.TinyBertForPreTraining(config, fit_size=projection.out_features)
            bert = self.encoder.bert
            self.encoder.fit_dense.load_state_dict(projection.state_dict())
        bert.load_state_dict(model.state_dict(), strict=False)
        missing = set(bert.state_dict()) - set(model.state_dict())
        assert not missing, f"the published class has weights that a BertModel has not: {sorted(missing)}"

    def forward(self, batch: Batch) -> ScoresAndStates:
        """Return scores and states, the student's projected."""
        output = self.encoder(batch.input_ids, batch.token_type_ids, batch.attention_mask)
        if self.student:
            scores, states = output
        else:
            states, scores, _ = output
        return scores, states


def import_original(path: Path) -> Any:
    """Import `transformer.modeling` out of a checkout of the published implementation.

    Args:
        path: The checkout, or the folder in it that holds `transformer/`.
    """
    folder = next((p for p in (path, path / "TinyBERT") if (p / "transformer" / "modeling.py").is_file()), None)
    if folder is None:
        raise SystemExit(f"--original {path} holds no transformer/modeling.py; give a checkout of the published code")
    _stand_in_for_downloader()
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("transformer.modeling")
    finally:
        sys.path.remove(str(folder))


def _stand_in_for_downloader() -> None:
    """Provide empty modules for packages that only the published code's downloader needs and that are missing."""
    for name in ("boto3", "requests", "botocore", "botocore.exceptions"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name])["ClientError"] = OSError


def build_encoder(modeling: Any | None, model: BertModel, projection: nn.Linear | None) -> nn.Module:
    """Return an encoder of the published code (`import_original`), or for None of its form."""
    if modeling is None:
        return MaterialisedEncoder(model, projection)
    return OriginalEncoder(modeling, model, projection)


def published_loss(student: ScoresAndStates, teacher: ScoresAndStates) -> Tensor:
    """Return the sum of the published losses of a student and a teacher of k times as many layers."""
    (student_scores, student_states), (teacher_scores, teacher_states) = student, teacher
    every = len(teacher_scores) // len(student_scores)
    total = torch.zeros((), dtype=student_states[0].dtype, device=student_states[0].device)
    for one, other in zip(student_scores, teacher_scores[every - 1 :: every], strict=True):
        cut = (torch.where(scores <= CUTOFF, torch.zeros_like(scores), scores) for scores in (one, other))
        total = total + F.mse_loss(*cut)
    for one, other in zip(student_states, teacher_states[::every], strict=True):
        total = total + F.mse_loss(one, other)
    return total
