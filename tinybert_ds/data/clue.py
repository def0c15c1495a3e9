"""The classification tasks of CLUE in the files that the benchmark distributes: JSON lines, labels by id or by name.

Source: arXiv 2004.05986 and the benchmark's own readers; all are judged by accuracy. Lengths are those of its PyTorch
baselines. Classes that the files number are named where the benchmark says what the numbers mean; the 119 of IFLYTEK
and the codes of TNEWS stand for themselves. A row of OCNLI or CMNLI on which the annotators did not agree ("-") is left
out. The test files of version 1.0, where there are others since, lie beside them as test1.0.json.
"""

from __future__ import annotations

from dataclasses import replace

from tinybert_ds.data.task_spec import SplitFile, TaskSpec

_LENGTH = 128
_NEWS = {
    **{"100": "story", "101": "culture", "102": "entertainment", "103": "sports", "104": "finance", "106": "house"},
    **{"107": "car", "108": "edu", "109": "tech", "110": "military", "112": "travel", "113": "world"},
    **{"115": "agriculture", "116": "game"},
}


def _task(
    name: str,
    texts: tuple[str, ...],
    labels: tuple[str, ...],
    *,
    numbered: bool = False,
    train: str = "train.json",
    former_test: bool = False,
) -> TaskSpec:
    """A task of CLUE; `numbered`: its files hold 0, 1, ... instead of the names."""
    splits = {
        "train": SplitFile(train, texts, "label"),
        "dev": SplitFile("dev.json", texts, "label"),
        "test": SplitFile("test.json", texts, "label", label_required=False),
    }
    if former_test:
        splits["test1.0"] = SplitFile("test1.0.json", texts, "label", label_required=False)
    return TaskSpec(
        name=name,
        directory=f"{name}_public",
        splits=splits,
        label_names=labels,
        label_aliases={str(number): label for number, label in enumerate(labels)} if numbered else {},
        metrics=("accuracy",),
        official=("accuracy",),
        max_seq_length=_LENGTH,
    )


_PAIR = ("sentence1", "sentence2")
_NLI = ("entailment", "neutral", "contradiction")

AFQMC = _task("afqmc", _PAIR, ("different", "similar"), numbered=True)
TNEWS = replace(
    _task("tnews", ("sentence",), tuple(sorted([*_NEWS, "114"])), former_test=True),
    label_aliases={"stock": "114", "news_stock": "114", **{f"news_{name}": code for code, name in _NEWS.items()}},
)
IFLYTEK = _task("iflytek", ("sentence",), tuple(map(str, range(119))))
CMNLI = replace(_task("cmnli", _PAIR, _NLI), skip_labels=("-",))
OCNLI = replace(_task("ocnli", _PAIR, _NLI, train="train.50k.json"), skip_labels=("-",))
CLUEWSC = replace(_task("cluewsc2020", ("text",), ("false", "true"), former_test=True), text_form="marked_spans")
CSL = replace(
    _task("csl", ("keyword", "abst"), ("forged", "real"), numbered=True),
    text_form="joined_keywords",
    max_seq_length=256,
)

CLUE_TASKS = (AFQMC, TNEWS, IFLYTEK, CMNLI, OCNLI, CLUEWSC, CSL)
"""In the benchmark's order, without its reading comprehension."""
