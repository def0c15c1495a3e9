"""Words of a language that writes no spaces: rows of characters cut into the words of a list.

A row is cut so that its words are, all together, the likeliest by the list's frequencies; without frequencies, so that
they are as few as can be. That is the first half of what jieba does (`HMM=False`), on token ids in place of characters.
n rows, T tokens of all rows, S longest row, V vocabulary, L characters of the longest word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from tinybert_ds.data.order import Ints
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.foreign_text import quoted, shown

PACKAGE = "jieba"
"""As `--word_list` it stands for the dictionary of this package."""


@dataclass(frozen=True)
class WordTable:
    """A list of words over the ids of a vocabulary, as a tree of their beginnings; node 0 is the empty one."""

    keys: Ints  # (k,) node · V + id, ascending: the edges
    children: Ints  # (k,) node that an edge leads to
    costs: NDArray[np.float64]  # (nodes,) of the word that a node is; infinite where it is none
    single: NDArray[np.float64]  # (V,) cost of each token alone
    longest: int  # L
    fingerprint: str

    def continues(self, tokens: Ints, lengths: Ints) -> NDArray[np.bool_]:
        """Return (T,) which tokens of some rows (n,) go on with the word that the token before belongs to."""
        valid = np.arange(max(1, int(lengths.max()))) < lengths[:, None]
        ids = np.zeros(valid.shape, dtype=np.int64)
        ids[valid] = tokens
        chosen = self._choose(ids, valid)
        inside = np.zeros((valid.shape[0], valid.shape[1] + self.longest), dtype=bool)
        begins, rows = np.zeros(len(ids), dtype=np.int64), np.arange(len(ids))
        for _ in range(valid.shape[1]):  # word after word, of all rows together
            open_rows = begins < lengths
            if not open_rows.any():
                break
            size = np.where(open_rows, chosen[rows, np.minimum(begins, valid.shape[1] - 1)], 0)
            for offset in range(1, int(size.max())):
                inside[rows[size > offset], begins[size > offset] + offset] = True
            begins = begins + size
        return inside[:, : valid.shape[1]][valid]

    def _choose(self, ids: Ints, valid: NDArray[np.bool_]) -> Ints:
        """Length of the word that begins at each place (n, S), were it to begin there, in the best cut of the rest."""
        n, s = ids.shape
        sizes = [np.where(valid, self.single[ids], 0.0)]
        node = np.zeros((n, s), dtype=np.int64)
        for size in range(1, self.longest + 1):
            ahead = np.zeros((n, s), dtype=np.int64)
            there = np.zeros((n, s), dtype=bool)
            ahead[:, : s - size + 1], there[:, : s - size + 1] = ids[:, size - 1 :], valid[:, size - 1 :]
            node = self._step(node, ahead, there)
            if size > 1:
                sizes.append(np.where(node < 0, math.inf, self.costs[np.maximum(node, 0)]))
        best = np.zeros((n, s + self.longest))
        chosen = np.ones((n, s), dtype=np.int64)
        for place in range(s - 1, -1, -1):
            best[:, place] = sizes[0][:, place] + best[:, place + 1]
            for size in range(2, self.longest + 1):
                total = sizes[size - 1][:, place] + best[:, place + size]
                better = total <= best[:, place]  # of equally good ones the longer
                best[better, place], chosen[better, place] = total[better], size
        return chosen

    def _step(self, node: Ints, ids: Ints, there: NDArray[np.bool_]) -> Ints:
        """The nodes (n, S) that one more token leads to; -1 where there is none."""
        found = np.full(node.shape, -1, dtype=np.int64)
        asked = there & (node >= 0)
        keys = node[asked] * len(self.single) + ids[asked]
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        found[asked] = np.where(self.keys[at] == keys, self.children[at], -1)
        return found


def load_word_list(given: str, vocabulary: Mapping[str, int]) -> WordTable:
    """Read the words of a list that a vocabulary spells character by character.

    Args:
        given: A file with a word a line, and behind a space perhaps how often it is met; or `PACKAGE`.
        vocabulary: Token -> id.

    Raises:
        ConfigError: No such file, or the package is not installed.
        DataError: No line of it is a word of two characters or more that the vocabulary has.
    """
    path = _dictionary() if given == PACKAGE and not Path(given).exists() else Path(given)
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"--word_list {given} cannot be read ({error.strerror}); give a file with a word a line, or {PACKAGE}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"--word_list {given} is not UTF-8 ({error}); save it as UTF-8") from error
    counts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        word, *rest = line.split()[:2] or [""]
        if word:
            counts[word] = _count(rest, f"--word_list {given}, line {number}")
    table = _table(counts, vocabulary, xxhash.xxh3_64_hexdigest(content))
    if table is None:
        raise DataError(
            f"--word_list {given}: not one of its {len(counts):,} words is of two characters or more that are tokens "
            "of the vocabulary; is it the list, and the tokeniser, of this language?"
        )
    return table


def _dictionary() -> Path:
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ConfigError(f"--word_list {PACKAGE} needs the package {PACKAGE}: install the extra zh, or give a file")
    return Path(found.origin).parent / "dict.txt"


def _count(rest: list[str], place: str) -> int:
    """How often a word is met; 1 of one of which the list does not say it."""
    if not rest or not rest[0].isascii() or not rest[0].isdecimal():
        return 1
    if len(rest[0]) > 15:
        raise DataError(f"{place}: {quoted(shown(rest[0], 40))} is no frequency; give a whole number, or none")
    return max(1, int(rest[0]))


def _table(counts: Mapping[str, int], vocabulary: Mapping[str, int], fingerprint: str) -> WordTable | None:
    size = max(vocabulary.values()) + 1
    total = math.log(sum(counts.values()))
    single = np.full(size, total)
    edges: dict[tuple[int, int], int] = {}
    costs, longest = [math.inf], 1
    for word, count in counts.items():
        ids = [vocabulary.get(character, -1) for character in word]
        if min(ids) < 0:
            continue
        if len(ids) == 1:
            single[ids[0]] = total - math.log(count)
            continue
        node, longest = 0, max(longest, len(ids))
        for token in ids:
            child = edges.setdefault((node, token), len(costs))
            if child == len(costs):
                costs.append(math.inf)
            node = child
        costs[node] = total - math.log(count)
    if not edges:
        return None
    keys = np.fromiter((node * size + token for node, token in edges), dtype=np.int64, count=len(edges))
    children = np.fromiter(edges.values(), dtype=np.int64, count=len(edges))
    order = np.argsort(keys)
    return WordTable(keys[order], children[order], np.array(costs), single, longest, fingerprint)
