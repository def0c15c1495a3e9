"""Tiny sentence encoders, texts and scored pairs."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.support.models import WORDS, tiny_model, write_tokenizer
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.models.sentence.directory import save_sentence_encoder
from tinybert_ds.models.sentence.modules import Dense, Layer, Normalise, SentenceModules


def sentence_directory(
    directory: Path,
    *,
    pooling: Sequence[str] = ("mean",),
    width: int | None = None,
    activation: str = "Tanh",
    normalised: bool = True,
    seed: int = 0,
    prompts: dict[str, str] | None = None,
    default_prompt: str | None = None,
    max_seq_length: int | None = 32,
    **changes: object,
) -> Path:
    """Write a random sentence encoder of 4 layers and width 48 with its tokeniser; return the directory.

    Args:
        width: Of a dense layer behind the pooling; None: there is none.
    """
    model = tiny_model(seed=seed, **changes)
    write_tokenizer(directory)
    layers: tuple[Layer, ...] = ()
    if width is not None:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(width, model.config.hidden_size * len(pooling), generator=generator) / 4
        layers = (Dense(weight, torch.randn(width, generator=generator) / 4, activation),)
    modules = SentenceModules(
        tuple(pooling),
        (*layers, *((Normalise(),) if normalised else ())),
        max_seq_length=max_seq_length,
        prompts=prompts or {},
        default_prompt=default_prompt,
    )
    save_sentence_encoder(model, load_tokenizer(directory, None), directory, modules)
    return directory


def random_texts(count: int, *, seed: int = 0) -> list[str]:
    """Return texts of 2 to 20 words."""
    rng = random.Random(seed)
    words = [word for word in WORDS if not word.startswith("##")]
    return [" ".join(rng.choices(words, k=rng.randint(2, 20))) for _ in range(count)]


def write_sts(path: Path, *, pairs: int, seed: int = 0) -> Path:
    """Write scored pairs in the columns of GLUE's STS-B: the second sentence shares a part of the first one's words."""
    rng = random.Random(seed)
    lines = ["index\tsentence1\tsentence2\tscore"]
    for number, (first, other) in enumerate(
        zip(random_texts(pairs, seed=seed), random_texts(pairs, seed=seed + 1), strict=True)
    ):
        share = rng.random()
        words = [word if rng.random() < share else rng.choice(other.split()) for word in first.split()]
        lines.append(f"{number}\t{first}\t{' '.join(words)}\t{5 * share:.3f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_retrieval(
    directory: Path,
    *,
    documents: Sequence[tuple[str, str, str]],
    queries: Sequence[tuple[str, str]],
    judgements: Sequence[tuple[str, str, int]],
) -> Path:
    """Write a retrieval set in BEIR's layout: (id, title, text), (id, text), (query, document, relevance)."""
    (directory / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": name, "title": title, "text": text}) for name, title, text in documents]
    (directory / "corpus.jsonl").write_text("\n".join(corpus) + "\n", encoding="utf-8")
    asked = [json.dumps({"_id": name, "text": text}) for name, text in queries]
    (directory / "queries.jsonl").write_text("\n".join(asked) + "\n", encoding="utf-8")
    rows = ["query-id\tcorpus-id\tscore", *(f"{query}\t{document}\t{score}" for query, document, score in judgements)]
    (directory / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return directory
