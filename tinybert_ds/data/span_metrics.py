"""The metrics of SQuAD: exact match and F1 of normalised answers, and the threshold from which there is no answer.

Source: Rajpurkar et al. 2016 (arXiv 1606.05250, section 6.1) and 2018 (arXiv 1806.03822); the official scripts do the
same. Q questions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return an answer in lower case, without ASCII punctuation and articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(found: str, right: str) -> float:
    """Return 1 where two answers are the same when they are normalised, else 0."""
    return float(normalised(found) == normalised(right))


def token_f1(found: str, right: str) -> float:
    """Return the F1 of the words of two normalised answers; where one has none, whether both have none."""
    ours, theirs = normalised(found).split(), normalised(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def best_of(measure: Callable[[str, str], float], found: str, right: Sequence[str]) -> float:
    """Return the highest value of a metric over all right answers; where there is none, "" is right."""
    return max(measure(found, answer) for answer in ([text for text in right if normalised(text)] or [""]))


def best_null_threshold(
    margins: NDArray[np.floating], answered: NDArray[np.floating], unanswered: NDArray[np.floating]
) -> float:
    """Return the margin above which "no answer" is the best answer to all questions together.

    Args:
        margins: (Q,) by how much "no answer" scores higher than the best span.
        answered: (Q,) the metric of the best span.
        unanswered: (Q,) that of no answer.
    """
    order = np.argsort(margins, kind="stable")
    sorted_margins = margins[order]
    gains = np.concatenate([[0.0], np.cumsum((answered - unanswered)[order])])
    edges = np.concatenate([[sorted_margins[0] - 1], (sorted_margins[1:] + sorted_margins[:-1]) / 2])
    edges = np.append(edges, sorted_margins[-1] + 1)
    between_equals = np.append(np.concatenate([[False], sorted_margins[1:] == sorted_margins[:-1]]), False)
    return float(edges[int(np.where(between_equals, -np.inf, gains).argmax())])
