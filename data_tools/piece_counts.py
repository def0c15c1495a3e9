"""How often each token of a vocabulary stands in shards and texts, counted input by input by any number of processes.

W tokens of the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_tools.input_files import TextInput, find_inputs, open_input
from data_tools.sentence_encoder import SentenceEncoder
from data_tools.text_units import Problems, UnreadableInputError
from tinybert_ds.data.indexed import token_dtype
from tinybert_ds.data.manifest import MANIFEST_NAME, open_corpus
from tinybert_ds.errors import DataError
from tinybert_ds.progress import progress_bar
from tinybert_ds.shared_work.claims import POLL_SECONDS, Claims, Record
from tinybert_ds.shared_work.derived import map_array, save_array

_TOKENS_AT_ONCE = 1 << 22
_PART_BYTES = 1 << 26

Counts = NDArray[np.int64]
"""(W,)"""


class Input(NamedTuple):
    """A shard, or a text."""

    name: str
    state: tuple[int, int]  # what shows without reading it that it is still the same: bytes, time of the last change
    tally: Callable[[], tuple[Counts, int]]  # its tokens, and how many places of it could not be read


def find_counted(
    corpus: Sequence[str], tokenizer_json: str, fingerprint: str, size: int, *, text_field: str, skip: bool
) -> list[Input]:
    """Return what there is to count.

    Args:
        corpus: Directories of shards; files, directories and patterns of texts.
        tokenizer_json: Of the tokeniser that texts are read with.
        fingerprint: Of the same; shards must have been made with it.
        size: W.
        skip: Whether what cannot be read is left out.

    Raises:
        DataError: Shards of another tokeniser, unfinished ones, or a text that is not there.
    """
    shards = [Path(given) for given in corpus if (Path(given) / MANIFEST_NAME).is_file()]
    texts = [given for given in corpus if not (Path(given) / MANIFEST_NAME).is_file()]
    inputs = [item for directory in shards for item in _shards(directory, fingerprint, size)]
    encoder = SentenceEncoder(tokenizer_json, token_dtype(size)) if texts else None
    for item in find_inputs(texts, judge=not skip) if texts else ():
        assert item.path is not None
        assert encoder is not None
        count = partial(_count_text, item, encoder, size, text_field, skip=skip)
        inputs.append(Input(item.name, _state(item.path), count))
    return inputs


def count_pieces(directory: Path, inputs: Sequence[Input], size: int, *, shown: bool) -> tuple[Counts, int]:
    """Count all inputs, together with whoever else counts into the same directory; return the sums.

    What is counted already, of inputs that have not changed since, is not counted again.

    Args:
        directory: Where counts are kept meanwhile; it is there.
        shown: Whether a bar shows how far all are.

    Raises:
        DataError: An input cannot be read.
        FileNotFoundError: The directory has gone: others have finished everything.
    """
    claims = Claims(directory)
    numbered = {f"input-{number:05d}": item for number, item in enumerate(inputs)}

    def record(name: str) -> Record | None:
        found = claims.record(name)
        same = found is not None and found["state"] == list(numbered[name].state)
        return found if same and (directory / f"{name}.npy").is_file() else None

    def work(name: str) -> Record:
        counts, skipped = numbered[name].tally()
        save_array(directory / f"{name}.npy", counts)
        bar.update()
        return {"state": numbered[name].state, "skipped": skipped}

    pending = sum(record(name) is None for name in numbered)
    with progress_bar(total=pending, desc="counting tokens", unit="input", shown=shown) as bar:
        claims.share(numbered, work, record=record)
    total, skipped = np.zeros(size, dtype=np.int64), 0
    for name in numbered:
        while (found := record(name)) is None:  # another process writes it anew
            time.sleep(POLL_SECONDS)
        total += map_array(directory / f"{name}.npy")
        skipped += found["skipped"]
    return total, skipped


def _shards(directory: Path, fingerprint: str, size: int) -> list[Input]:
    corpus = open_corpus(directory)
    if corpus.manifest.tokenizer_fingerprint != fingerprint:
        raise DataError(
            f"the shards in {directory} were made with another tokeniser than that of --model; give shards of the "
            "untrimmed vocabulary, or the text that they were made of"
        )

    def count(number: int) -> tuple[Counts, int]:
        tokens, total = corpus.shards[number].tokens, np.zeros(size, dtype=np.int64)
        for begin in range(0, len(tokens), _TOKENS_AT_ONCE):
            total += np.bincount(tokens[begin : begin + _TOKENS_AT_ONCE], minlength=size)
        return total, 0

    return [
        Input(f"{directory}/{shard.name}", _state(directory / f"{shard.name}.bin"), partial(count, number))
        for number, shard in enumerate(corpus.manifest.shards)
    ]


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _count_text(
    item: TextInput, encoder: SentenceEncoder, size: int, text_field: str, *, skip: bool
) -> tuple[Counts, int]:
    total, problems = np.zeros(size, dtype=np.int64), Problems(skip)
    try:
        reader = open_input(item, _PART_BYTES, text_field)
        part, ended = 0, False
        while not ended:
            for unit in reader.read(part, problems):
                tokens, _ = encoder.encode([line for line in unit.lines if line])
                total += np.bincount(tokens, minlength=size)
            part, ended = part + 1, reader.ended
        reader.close()
    except UnreadableInputError:
        if not skip:
            raise
        return np.zeros(size, dtype=np.int64), 1
    return total, sum(problems.counts.values())
