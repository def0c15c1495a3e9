"""A model's card: README.md with what the hub reads at its head and what a person asks below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tinybert_ds.files import write_atomically
from tinybert_ds.foreign_text import table_cell

CARD_FILE = "README.md"
MARK = "<!-- written by tinybert-ds; your own words replace this line, and the file is then left alone -->"
"""Below the metadata of a card that may be written anew."""

_TAGS = ("tinybert-ds", "knowledge-distillation")


@dataclass(frozen=True)
class Figure:
    """A metric on a split of a task."""

    metric: str
    value: float
    task: str
    split: str
    rows: int | None = None
    standard_error: float | None = None
    file: str = ""  # of an exported model
    of_datasets: bool = True  # whether its rows are of the card's `datasets`


@dataclass(frozen=True)
class Card:
    """What is said of a model.

    Args:
        pipeline_tag: What the hub offers to do with it.
        base_model: Hub names of what it was made of, where they are known.
        datasets: Hub names of what it learned from, where they are known.
        sections: Heading -> Markdown, in their order.
    """

    name: str
    pipeline_tag: str
    license: str | None = None
    language: Sequence[str] = ()
    base_model: Sequence[str] = ()
    datasets: Sequence[str] = ()
    library_name: str = "transformers"
    figures: Sequence[Figure] = ()
    sections: Mapping[str, str] = field(default_factory=dict)


def write_card(directory: Path, card: Card) -> None:
    """Write the card of a directory; one that somebody has edited, or brought, stays as it is."""
    if not has_own_card(directory):
        write_atomically(directory / CARD_FILE, render_card(card))


def has_own_card(directory: Path) -> bool:
    """Whether a directory has a card that somebody has edited, or brought."""
    path = directory / CARD_FILE
    return path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def render_card(card: Card) -> str:
    """Return the text of README.md."""
    metadata = ModelCardData(
        language=list(card.language) or None,
        license=card.license,
        library_name=card.library_name,
        pipeline_tag=card.pipeline_tag,
        base_model=list(card.base_model) or None,
        datasets=list(card.datasets) or None,
        metrics=list(dict.fromkeys(figure.metric for figure in card.figures)) or None,
        tags=list(_TAGS),
        model_name=card.name,
        eval_results=[_result(figure, card) for figure in card.figures] or None,
    )
    sections = [f"## {heading}\n\n{text.strip()}\n" for heading, text in card.sections.items() if text.strip()]
    body = "\n".join([MARK, "", f"# {table_cell(card.name)}", "", *sections])
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n{body}"))


def read_base_model(directory: Path) -> tuple[str, ...]:
    """Return the hub names that a directory's own card gives for what it was made of; none without a card.

    Somebody else's card may say anything there, such as the path of a directory: only NAME and USER/NAME are names.
    """
    path = directory / CARD_FILE
    if not path.is_file():
        return ()
    try:
        card = ModelCard(path.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True)
    except (ValueError, TypeError, yaml.YAMLError):  # somebody else's file, of which nothing but a name is wanted
        return ()
    found = card.data.get("base_model")
    return tuple(name for name in (found if isinstance(found, list) else [found]) if _is_hub_name(name))


def _is_hub_name(name: object) -> bool:
    if not isinstance(name, str):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def figures_table(figures: Sequence[Figure]) -> str:
    """Return the figures as Markdown."""
    lines = ["| task | split | rows | metric | value | standard error |", "|---|---|---:|---|---:|---:|"]
    for figure in figures:
        rows = "" if figure.rows is None else f"{figure.rows:,}"
        error = "" if figure.standard_error is None else f"{figure.standard_error:.4f}"
        metric = f"{figure.metric} ({figure.file})" if figure.file else figure.metric
        where = f"{table_cell(figure.task)} | {table_cell(figure.split)}"
        lines.append(f"| {where} | {rows} | {metric} | {figure.value:.4f} | {error} |")
    return "\n".join(lines)


def _result(figure: Figure, card: Card) -> EvalResult:
    return EvalResult(
        task_type=card.pipeline_tag,
        dataset_type=card.datasets[0] if card.datasets and figure.of_datasets else figure.task,
        dataset_name=figure.task,
        dataset_split=figure.split,
        metric_type=figure.metric,
        metric_name=f"{figure.metric} of {figure.file}" if figure.file else figure.metric,
        metric_value=figure.value,
    )
