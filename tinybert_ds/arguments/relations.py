"""The flags of relations between tokens (MiniLMv2, arXiv 2012.15828)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tinybert_ds.arguments.option import Command, result
from tinybert_ds.errors import ConfigError

WITH_LAYERS = ("general", "intermediate", "joint")
_relation = partial(result, stage=WITH_LAYERS, later=True)
_COMPARED = {"qq": "queries", "kk": "keys", "vv": "values"}


@dataclass(frozen=True, kw_only=True)
class AttentionLoss(Command):
    """What of the attention layers is compared."""

    attention_loss: Literal["scores", "relations", "relations_kl"] = _relation(
        "scores: attention scores head by head, as published; relations: products of queries with queries, keys with "
        "keys and values with values, by squared differences; relations_kl: MiniLMv2's divergence of their softmax. "
        "Relations need no equal number of heads.",
        "scores",
    )
    relations: str = _relation(
        "Which relations, with weights or without: qq (queries), kk (keys), vv (values), such as qq=1,kk=1,vv=2.",
        "qq,kk,vv",
        resolved=True,
    )
    relation_heads: int | None = _relation(
        "Parts that queries, keys and values of both models are cut into; it divides both widths. Default: the largest "
        "such number up to 48.",
        None,
        least=1,
    )
    relation_layers: str | None = _relation(
        "Student layers and the teacher layers that they imitate, counted from 1, such as 2:6,4:11; or map: all, as "
        "--layer_map says. Default: the student's last layer and the teacher's last but one.",
        None,
        resolved=True,
    )

    @property
    def relation_factors(self) -> dict[str, float]:
        """Weights of `--relations`, by the names of `objective.Relations`.

        Raises:
            ConfigError: It is no list of relations.
        """
        factors = dict.fromkeys(_COMPARED.values(), 0.0)
        words = [word.strip().partition("=") for word in self.relations.split(",")]
        names = [name.strip() for name, _, _ in words]
        try:
            for name, equals, weight in words:
                factors[_COMPARED[name.strip()]] = float(weight) if equals else 1.0
        except (KeyError, ValueError):
            names = []
        weights = factors.values()
        if len(set(names)) < len(words) or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ConfigError(
                f"--relations is {self.relations}; give some of {', '.join(_COMPARED)}, each once and with a weight of "
                "0 or more or none, such as qq=1,kk=1,vv=2"
            )
        return factors

    @property
    def relation_pairs(self) -> tuple[tuple[int, int], ...] | None:
        """(student layer, teacher layer) of `--relation_layers`, from 1; None for the default, empty for "map".

        Raises:
            ConfigError: It is no list of pairs.
        """
        if self.relation_layers is None:
            return None
        if self.relation_layers.strip().lower() == "map":
            return ()
        words = [word.split(":") for word in self.relation_layers.split(",")]
        try:
            pairs = tuple((int(student), int(teacher)) for student, teacher in words)
        except ValueError:
            pairs = ()
        students = [student for student, _ in pairs]
        if not pairs or min(min(pair) for pair in pairs) < 1 or students != sorted(set(students)):
            raise ConfigError(
                f"--relation_layers is {self.relation_layers}; give STUDENT:TEACHER layers from 1 on, each student "
                "layer once and in order, such as 2:6,4:11; or map"
            )
        return pairs

    def problems(self) -> list[str]:
        found = super().problems()
        for name in ("relation_factors", "relation_pairs"):
            try:
                getattr(self, name)
            except ConfigError as error:
                found.append(str(error))
        if self.attention_loss == "scores":
            given = {
                "relations": self.relations != "qq,kk,vv",
                "relation_heads": self.relation_heads is not None,
                "relation_layers": self.relation_layers is not None,
            }
            found += [
                f"--{name} is for relations between tokens; add --attention_loss relations or relations_kl, or leave "
                "it out"
                for name, stated in given.items()
                if stated
            ]
        return found
