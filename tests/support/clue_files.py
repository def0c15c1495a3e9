"""The files of CLUE as the benchmark distributes them, quirks included, with texts of our own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
_NOUN = {"span1_text": "小明", "span1_index": 0, "span2_text": "他", "span2_index": 4}

CLUE_FILES: Mapping[str, tuple[str, Sequence[Row], Sequence[str], Sequence[tuple[str, ...]]]] = {
    "afqmc": (
        "train.json",
        [
            {"sentence1": "花呗怎么还", "sentence2": "花呗如何还款", "label": "1"},
            {"sentence1": "借呗在哪", "sentence2": '花呗"能用"吗', "label": "0"},
        ],
        ["similar", "different"],
        [("花呗怎么还", "花呗如何还款"), ("借呗在哪", '花呗"能用"吗')],
    ),
    "tnews": (
        "train.json",
        [
            {"label": "102", "label_desc": "news_entertainment", "sentence": "电影上映", "keywords": "电影,演员"},
            {"label": "114", "label_desc": "news_stock", "sentence": "股票涨了", "keywords": ""},
            {"label": "news_game", "sentence": "新游戏", "keywords": ""},
        ],
        ["102", "114", "116"],
        [("电影上映",), ("股票涨了",), ("新游戏",)],
    ),
    "iflytek": (
        "train.json",
        [
            {"label": "110", "label_des": "社区超市", "sentence": "买菜"},
            {"label": 7, "label_des": "", "sentence": "导航"},
        ],
        ["110", "7"],
        [("买菜",), ("导航",)],
    ),
    "cmnli": (
        "train.json",
        [
            {"sentence1": "天气好", "sentence2": "下雨", "label": "contradiction"},
            {"sentence1": "天气好", "sentence2": "有人在家", "label": "neutral"},
            {"sentence1": "不清楚", "sentence2": "不知道", "label": "-"},
        ],
        ["contradiction", "neutral"],
        [("天气好", "下雨"), ("天气好", "有人在家")],
    ),
    "ocnli": (
        "train.50k.json",
        [
            {
                **{"level": "easy", "sentence1": "对,对", "sentence2": "是的", "label": "entailment"},
                **{f"label{n}": None for n in range(5)},
                **{"genre": "phone", "prem_id": "phone_1", "id": 0},
            },
            {
                **{"level": "hard", "sentence1": "也许", "sentence2": "一定", "label": "-"},
                **{f"label{n}": "neutral" for n in range(5)},
                **{"genre": "tv", "prem_id": "tv_2", "id": 1},
            },
            {
                "level": "hard",
                "sentence1": "春天",
                "sentence2": "冬天",
                "label": "contradiction",
                "genre": "tv",
                "id": 2,
            },
        ],
        ["entailment", "contradiction"],
        [("对,对", "是的"), ("春天", "冬天")],
    ),
    "cluewsc2020": (
        "train.json",
        [
            {"target": _NOUN, "idx": 0, "label": "true", "text": "小明说今他会来"},
            {
                "target": {"span1_text": "车", "span1_index": 3, "span2_text": "它", "span2_index": 0},
                "idx": 1,
                "label": False,
                "text": "它很旧车",
            },
        ],
        ["true", "false"],
        [("_小明_说今[他]会来",), ("[它]很旧_车_",)],
    ),
    "csl": (
        "train.json",
        [
            {"id": 1, "abst": "本文研究声呐", "keyword": ["水声学", "FFT"], "label": "1"},
            {"id": 2, "abst": "本文研究水稻", "keyword": ["股票"], "label": "0"},
        ],
        ["real", "forged"],
        [("水声学 FFT", "本文研究声呐"), ("股票", "本文研究水稻")],
    ),
}
"""Task -> training file, its rows, their labels as the task names them, and their texts."""


def write_clue(root: Path, names: Sequence[str] = tuple(CLUE_FILES)) -> None:
    """Write the folders of tasks: train and dev with labels, test without."""
    for name in names:
        train, rows, _, _ = CLUE_FILES[name]
        folder = root / f"{name}_public"
        folder.mkdir(parents=True)
        for file, content in ((train, rows), ("dev.json", rows), ("test.json", _unlabelled(rows))):
            lines = [json.dumps(row, ensure_ascii=False) for row in content]
            (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _unlabelled(rows: Sequence[Row]) -> list[Row]:
    kept = [{key: value for key, value in row.items() if not key.startswith("label")} for row in rows]
    return [{**row, "id": number} for number, row in enumerate(kept)]
