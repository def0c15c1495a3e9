"""The flags of what is said of a model where it is given away."""

from __future__ import annotations

from dataclasses import dataclass

from tinybert_ds.arguments.option import Command, place


@dataclass(frozen=True, kw_only=True)
class Published(Command):
    """The card of the finished model, and where it is uploaded."""

    license: str | None = place(
        "License of the model for its card, by the hub's name: apache-2.0, mit, cc-by-4.0.", None, metavar="ID"
    )
    languages: list[str] = place(
        "Languages of the model for its card: en, zh, ..., or multilingual.", [], metavar="CODE"
    )
    datasets: list[str] = place(
        "Hub names of the data sets that the model learned from, for its card.", [], metavar="ID"
    )
    push_to_hub: str | None = place(
        "Upload the finished directory to this repository of the Hugging Face hub, USER/NAME, with the login of "
        "`hf auth login`; a new one is private. Several students go to one each, USER/NAME-STUDENT.",
        None,
        metavar="REPO",
    )
