"""Evaluation of sentence encoders: likeness of sentence pairs, and retrieval of documents, sharded over the ranks.

Q queries, N documents of a block, V width of the vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.arguments import parse_arguments
from tinybert_ds.arguments.embed import EmbedEvaluateArguments
from tinybert_ds.data.retrieval import Ranking, RetrievalSet, ndcg, open_retrieval
from tinybert_ds.data.sts import read_sts
from tinybert_ds.engine.prediction import Model
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import ConfigError
from tinybert_ds.models.pretrained import Role
from tinybert_ds.stages.evaluate import require_results_directory, write_results
from tinybert_ds.stages.sentence_encoders import (
    SentenceDirectory,
    as_model,
    encode_texts,
    judge_likeness,
    load_sentence_encoder,
    read_sentence_directory,
)
from tinybert_ds.stages.start import begin_evaluation

logger = logging.getLogger(__name__)

KEPT = 100
"""Documents that are kept of each ranking; ten are judged."""

_QUERY_PROMPTS = ("query",)
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, problems = parse_arguments(EmbedEvaluateArguments, argv)
    session = begin_evaluation(arguments, problems)
    world = session.world
    require_results_directory(session.output_dir)
    pairs = read_sts(arguments.sts, arguments.sts_columns)
    sets = [open_retrieval(directory, arguments.retrieval_split) for directory in arguments.retrieval]
    directories = [read_sentence_directory(arguments.model, arguments.lower_case, role="model")]
    if arguments.document_model is not None:
        directories.append(read_sentence_directory(arguments.document_model, arguments.lower_case, role="teacher"))
    _require_one_width(directories)
    roles: tuple[Role, ...] = ("model", "teacher")
    encoders = [_load(directory, role, world) for directory, role in zip(directories, roles, strict=False)]
    queries, documents = encoders[0], encoders[-1]
    results = judge_likeness(
        queries.model,
        pairs,
        queries.directory.tokenizer,
        prompt=queries.directory.prompt(None),
        max_seq_length=queries.directory.max_seq_length,
        batch_size=arguments.eval_batch_size,
        world=world,
    )
    for one in sets:
        ranking = rank_documents(one, queries, documents, batch_size=arguments.eval_batch_size, world=world)
        results[f"eval_{one.name}_ndcg@10"] = ndcg(one.judgements, ranking)
    write_results(session.output_dir, results, world)


class Encoder(NamedTuple):
    """A loaded sentence encoder."""

    directory: SentenceDirectory
    model: Model

    def vectors(
        self, texts: Sequence[str], prompts: Sequence[str], *, batch_size: int, world: World
    ) -> NDArray[np.float32]:
        """Return vectors (N, V) of length 1, behind the first of some prompts that the encoder has, or its own."""
        name = next((prompt for prompt in prompts if prompt in self.directory.modules.prompts), None)
        prompt, length = self.directory.prompt(name), self.directory.max_seq_length
        vectors = encode_texts(
            self.model,
            [prompt + text for text in texts],
            self.directory.tokenizer,
            max_seq_length=length,
            batch_size=batch_size,
            world=world,
        )
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def rank_documents(
    one: RetrievalSet, queries: Encoder, documents: Encoder, *, batch_size: int, world: World
) -> Ranking:
    """Return the documents that are nearest to each query by cosine; the same on all ranks.

    A document of a query's own name is left out, as in BEIR: there queries are documents in some sets.

    Args:
        queries, documents: The encoders of both, which may be one; the vectors of theirs have one width.
    """
    names = list(one.queries)
    wanted = queries.vectors(list(one.queries.values()), _QUERY_PROMPTS, batch_size=batch_size, world=world)
    ids: list[str] = []
    best = np.zeros((len(names), 0), dtype=np.float32)
    best_places = np.zeros((len(names), 0), dtype=np.int64)
    for block_ids, texts in one.documents():
        vectors = documents.vectors(texts, _DOCUMENT_PROMPTS, batch_size=batch_size, world=world)
        places = np.broadcast_to(np.arange(len(ids), len(ids) + len(block_ids)), (len(names), len(block_ids)))
        ids += block_ids
        scores = np.concatenate([best, wanted @ vectors.T], axis=1)
        all_places = np.concatenate([best_places, places], axis=1)
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :KEPT]
        best, best_places = np.take_along_axis(scores, kept, 1), np.take_along_axis(all_places, kept, 1)
        logger.info("%s: %s documents are encoded", one.name, f"{len(ids):,}")
    return {
        name: {
            ids[place]: float(score)
            for place, score in zip(best_places[row], best[row], strict=True)
            if ids[place] != name
        }
        for row, name in enumerate(names)
    }


def _load(directory: SentenceDirectory, role: Role, world: World) -> Encoder:
    encoder = load_sentence_encoder(directory, directory.max_seq_length, role=role)
    return Encoder(directory, as_model(encoder.to(world.device)))


def _require_one_width(directories: Sequence[SentenceDirectory]) -> None:
    widths = [directory.width for directory in directories]
    if len(set(widths)) > 1:
        raise ConfigError(
            f"the vectors of --model have width {widths[0]}, those of --document_model {widths[1]}: they cannot be "
            "compared; give the teacher whose vectors the student has learned"
        )
