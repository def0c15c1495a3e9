"""Files of scored sentence pairs (STS): likeness of vectors is judged by its rank correlation with the scores.

N pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinybert_ds.data.metrics import spearman
from tinybert_ds.data.task_files import Examples, read_split
from tinybert_ds.data.task_spec import SplitFile, TaskSpec
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.foreign_text import without_compression

_SPLIT = "dev"


@dataclass(frozen=True)
class StsPairs:
    """The pairs of a file and their scores."""

    name: str
    texts: Examples  # (2N) the first sentences of all pairs, then the second ones
    scores: NDArray[np.float32]  # (N,)

    def judge(self, vectors: NDArray[np.float32]) -> float:
        """Return Spearman's correlation of the scores with the cosines of vectors (2N, V), 0 where it is undefined."""
        return spearman(self.scores, cosines(vectors[: len(self.scores)], vectors[len(self.scores) :]))


def read_sts(files: Sequence[str | Path], columns: Sequence[str]) -> list[StsPairs]:
    """Read files of scored pairs; each is called as its file, with the folder's name where two are called alike.

    Args:
        columns: Of the two sentences and the score.

    Raises:
        ConfigError: Two files that cannot be told apart.
        DataError: A file is not there, or a row holds no texts or no number as a score; names file, line and column.
    """
    paths = [Path(file) for file in files]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DataError(f"--sts {', '.join(missing)} does not exist; give files of scored sentence pairs")
    names = _names(paths)
    return [_read(path, name, columns) for path, name in zip(paths, names, strict=True)]


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each pair of vectors (N, V)."""
    one, other = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.sum(one * other, axis=1) / np.maximum(lengths, 1e-30)


def _read(path: Path, name: str, columns: Sequence[str]) -> StsPairs:
    first, second, score = columns
    layout = SplitFile(str(path), (first, second), score)
    spec = TaskSpec(name=name, splits={_SPLIT: layout}, metrics=("spearman",), official=("spearman",))
    examples = read_split(spec, path.parent, _SPLIT)
    assert examples.labels is not None
    texts = [text for column in examples.texts for text in column]
    return StsPairs(name, Examples(path, (texts,), None), examples.labels.astype(np.float32))


def _names(paths: Sequence[Path]) -> list[str]:
    stems = [without_compression(path).stem for path in paths]
    again = Counter(stems)
    names = [
        stem if again[stem] == 1 else f"{path.resolve().parent.name}_{stem}"
        for stem, path in zip(stems, paths, strict=True)
    ]
    if len(set(names)) < len(names):
        raise ConfigError(f"--sts: {', '.join(map(str, paths))} are called alike; give files of different names")
    return names
