"""What a student of sentence vectors minimises: one or several distances from its teacher's vectors.

B rows, V width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinybert_ds.losses.vectors import vector_angle, vector_distance, vector_relations
from tinybert_ds.models.sentence.head import SentenceHead
from tinybert_ds.types import Batch, EncoderOutput, LossTerms

Gather = Callable[[Tensor], Tensor]
"""From this rank's rows (B, X) to those of all ranks, one rank's behind the other's; called on all of them."""


class VectorWeights(NamedTuple):
    """Factors of the terms of `VectorObjective`; a term of weight 0 is not computed."""

    l2: float = 1.0
    cosine: float = 0.0
    relation: float = 0.0


class VectorObjective(nn.Module):
    """The teacher's sentence vectors, by their distance, their direction, and their relations to each other.

    Args:
        head: From the student's last state to its vectors, in the width of the teacher's; trained here.
        gather: For relations; None: there is one rank.
    """

    def __init__(self, head: SentenceHead, *, weights: VectorWeights, gather: Gather | None = None) -> None:
        super().__init__()
        assert any(weights), "every term has weight 0"
        self.head = head
        self.weights = weights
        self._gather: Gather = gather or (lambda rows: rows)

    def forward(self, student: EncoderOutput, teacher: EncoderOutput | None, batch: Batch) -> LossTerms:
        """Return "loss", "l2_loss", "cosine_loss", "relation_loss" (those with a weight) and the vectors as "logits".

        Without a teacher the vectors alone. Distances are those from the vectors before their length is made 1: to be
        near the teacher's is what gives them their length.
        """
        (state,) = student.hidden_states
        unfinished = self.head.unfinished(state, batch.attention_mask)
        vectors = self.head.finish(unfinished).detach()
        if teacher is None:
            return {"logits": vectors}
        assert teacher.logits is not None
        targets, rows = teacher.logits.to(unfinished.dtype), batch.counts.rows
        terms: LossTerms = {}
        if self.weights.l2:
            terms["l2_loss"] = vector_distance(unfinished, targets, denominator=rows)
        if self.weights.cosine:
            terms["cosine_loss"] = vector_angle(unfinished, targets, denominator=rows)
        if self.weights.relation:
            terms["relation_loss"] = self._relations(unfinished, targets, batch)
        factors = [factor for factor in self.weights if factor]
        total = torch.stack([term * factor for term, factor in zip(terms.values(), factors, strict=True)]).sum()
        return {"loss": total, **{name: term.detach() for name, term in terms.items()}, "logits": vectors}

    def _relations(self, vectors: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        width = vectors.shape[1]
        own = (batch.sample_ids >= 0).to(vectors.dtype)[:, None]  # filler rows are nobody's relations
        units = [F.normalize(part.detach(), dim=-1) for part in (vectors, targets)]
        everywhere = self._gather(torch.cat([*units, own], dim=1))
        everywhere = everywhere[everywhere[:, -1] > 0]
        return vector_relations(
            vectors, targets, everywhere[:, :width], everywhere[:, width:-1], denominator=batch.counts.rows
        )
