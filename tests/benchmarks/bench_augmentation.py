"""Data augmentation against the published script's method: rows per second of one core, and peak memory.

    python tests/benchmarks/bench_augmentation.py [--original PATH] [--rounds 5] [--rows 8] [--train_file FILE]

The published method takes one masked word per forward, computes the whole vocabulary at every place, sorts it all, and
searches near words by one float64 product and one full sort for each; here it is written anew, around the same weights,
once as published (autograd records every forward) and once without. `--original PATH` adds the script of a checkout.
Ours is what a worker of data_tools/data_augmentation.py does, in bfloat16 on a CPU that has instructions for it. All
take the same rows in turn, on one thread. The masked language model is of BERT-base's size; weights, vocabulary, word
vectors and texts are random unless --tokenizer, --glove_embs and --train_file (a file in SST-2's layout) give real
ones; speed does not depend on what words mean. There are 400,000 word vectors of dimension 300, as in GloVe's smallest
files. Pairs share their first texts by threes, as MNLI's share premises, and are in random order. Writes
results/augmentation.csv and prints a table.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import logging
import math
import multiprocessing
import random
import shutil
import string
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_tools.augment_rows import AugmentationSettings, Block, RowAugmenter
from data_tools.augment_task import BLOCK_ROWS, group_by_text
from data_tools.glove import build_cache, open_cache
from data_tools.sentence_words import STOP_WORDS, SentenceSplitter, eligible_words, join_words
from tests.benchmarks.measurement import RESULTS, Row, interleave, matrix_peak, publish, rows_of, table
from tests.benchmarks.published_form import import_original
from tinybert_ds.arguments.augment import AugmentArguments
from tinybert_ds.data.tasks import TASKS
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.hardware import inference_dtype

OURS, PUBLISHED, NO_GRAD, ORIGINAL = "ours", "published method", "published method, no_grad", "published script"
CPU = torch.device("cpu")
VOCABULARY = 30_522
CANDIDATES, COPIES, PROBABILITY = 15, 20, 0.4  # as published for SST-2
DIMENSIONS = 300
MANY_VECTORS = 400_000
COMPOUND_SHARE = 0.12  # of the words of SST-2 that may be replaced, those that BERT's vocabulary cuts into pieces
STOP_WORD_SHARE = 0.4
PREMISE_WORDS, HYPOTHESIS_WORDS, ROWS_OF_A_PREMISE = 20, 10, 3  # MNLI's

Rows = list[list[str]]
"""Rows of one or two texts."""


class RandomLanguage:
    """Words, a vocabulary of BERT's size and texts of about so many words."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase), *".,!?'-"]
        taken = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *STOP_WORDS, "##ing"}
        self.words: list[str] = []
        while len(taken) < VOCABULARY:
            word = self._word(self._rng.randint(3, 9))
            if word not in taken and not word.endswith("ing"):
                self.words.append(word)
                taken.add(word)
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        rest = sorted(taken - set(special) - set(self.words))
        self.vocabulary = [*special, *rest, *self.words]
        self.compounds = [f"{word}ing" for word in self.words]
        rare = (f"{word}{letter}" for letter in string.ascii_lowercase for word in self.words)
        self.vector_words = [*self.compounds, *self.words, *itertools.islice(rare, MANY_VECTORS)]

    def text(self, length: int) -> str:
        """A text of so many words and a mark at its end."""
        stop_words = sorted(STOP_WORDS)
        words = []
        for _ in range(length):
            if self._rng.random() < STOP_WORD_SHARE:
                words.append(self._rng.choice(stop_words))
            else:
                compound = self._rng.random() < COMPOUND_SHARE
                words.append(self._rng.choice(self.compounds if compound else self.words))
        return " ".join([*words, "."])

    def pairs(self, count: int) -> list[list[str]]:
        """So many pairs, three of each first text, in random order."""
        premises = [self.text(PREMISE_WORDS) for _ in range(-(-count // ROWS_OF_A_PREMISE))]
        rows = [[premises[number // ROWS_OF_A_PREMISE], self.text(HYPOTHESIS_WORDS)] for number in range(count)]
        self._rng.shuffle(rows)
        return rows

    def _word(self, length: int) -> str:
        return "".join(self._rng.choices(string.ascii_lowercase, k=length))


def write_model(folder: Path, vocabulary: Sequence[str], tokenizer: Path | None, layers: int) -> None:
    """Write a random BERT for masked words, safetensors and .bin, with a tokeniser."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(num_hidden_layers=layers))
    model.save_pretrained(folder)
    torch.save({key: value.clone() for key, value in model.state_dict().items()}, folder / "pytorch_model.bin")
    if tokenizer is not None:
        names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
        for name in names:
            if (tokenizer / name).is_file():
                shutil.copy(tokenizer / name, folder)
        return
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)


def write_vectors(path: Path, words: Sequence[str], dimensions: int) -> None:
    """Write random word vectors as a GloVe text file."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, len(words), 1000):
            part = words[begin : begin + 1000]
            numbers = rng.integers(-9999, 9999, size=(len(part), dimensions))
            file.writelines(
                f"{word} {' '.join(f'{x / 1e4:.4f}' for x in row)}\n" for word, row in zip(part, numbers, strict=True)
            )


def settings(model: Path, vectors: Path, columns: int, dtype: torch.dtype) -> AugmentationSettings:
    """What a worker gets for SST-2 on a CPU."""
    options = AugmentArguments(
        pretrained_bert_model=str(model),
        task_name="sst-2",
        N=COPIES,
        M=CANDIDATES,
        p=PROBABILITY,
        seed=0,
        teacher_confidence=0.0,
    )
    return AugmentationSettings(options, TASKS["sst-2"], tuple(range(columns)), vectors, dtype, CPU)


def our_pass(model: Path, vectors: Path, rows: Rows, dtype: torch.dtype | None = None) -> Callable[[], object]:
    """Prepare a worker's pass over rows, in blocks as the command takes them; default: in the command's own dtype."""
    chosen = settings(model, vectors, len(rows[0]), dtype or inference_dtype(CPU))
    augmenter = RowAugmenter(chosen)
    step = BLOCK_ROWS["cpu"]
    route = torch.backends.mkldnn.matmul.fp32_precision  # what the worker has chosen

    def run() -> None:
        torch.backends.mkldnn.matmul.fp32_precision = route
        order = group_by_text(["\t".join(row) for row in rows], chosen.text_columns).tolist()
        for begin in range(0, len(rows), step):
            places = order[begin : begin + step]
            augmenter.augment(Block(begin // step, places, [rows[place] for place in places], None))

    return run


def our_peak_mib(model: Path, vectors: Path, rows: Rows) -> float:
    """The peak resident memory of this process after a worker's pass, mapped files included, in MiB."""
    torch.set_num_threads(1)
    our_pass(model, vectors, rows)()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


class PublishedMethod:
    """One word at a time, everything computed and everything sorted."""

    def __init__(self, folder: Path, words: Sequence[str], vectors: np.ndarray) -> None:
        self._model = BertForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
        self._tokenizer = load_tokenizer(folder, None)
        self._splitter = SentenceSplitter(self._tokenizer)
        self._words = list(words)
        self._places = {word: place for place, word in enumerate(self._words)}
        matrix = vectors.astype(np.float64)
        self._matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)

    def variants(self, text: str) -> list[str]:
        """The text and its different variants."""
        (sentence,) = self._splitter.split([text])
        candidates = {}
        for place in eligible_words(sentence, chinese=False):
            first, end = sentence.word_pieces[place]
            word = sentence.words[place]
            found = self._predict(sentence.piece_ids, first) if end == first + 1 else self._near(word)
            candidates[place] = found or [word]
        rng = random.Random(0)
        made = [text]
        for _ in range(COPIES):
            words = list(sentence.words)
            for place, found in candidates.items():
                if rng.random() < PROBABILITY:
                    words[place] = rng.choice(found)
            variant = join_words(words, chinese=False)
            if variant not in made:
                made.append(variant)
        return made

    def _predict(self, pieces: Sequence[int], place: int) -> list[str]:
        tokenizer = self._tokenizer
        masked = [*pieces[:place], tokenizer.mask_token_id, *pieces[place + 1 :]]
        row = [tokenizer.cls_token_id, *masked, tokenizer.sep_token_id, *pieces, tokenizer.sep_token_id]
        types = [0] * (len(pieces) + 2) + [1] * (len(pieces) + 1)
        scores = self._model(input_ids=torch.tensor([row]), token_type_ids=torch.tensor([types])).logits
        best = torch.argsort(scores[0, place + 1], descending=True)[:CANDIDATES].tolist()
        return [piece for piece in tokenizer.convert_ids_to_tokens(best) if not piece.startswith("##")]

    def _near(self, word: str) -> list[str]:
        place = self._places.get(word)
        if place is None:
            return []
        cosines = self._matrix @ self._matrix[place]
        cosines[place] = -np.inf
        return [self._words[other] for other in np.argsort(-cosines)[:CANDIDATES]]


def published_pass(method: PublishedMethod, rows: Rows, *, gradients: bool) -> Callable[[], object]:
    """Prepare the published method's pass over rows."""

    def run() -> None:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        with torch.set_grad_enabled(gradients):
            for text in itertools.chain.from_iterable(rows):
                method.variants(text)

    return run


def load_original(checkout: Path, folder: Path, glove: Path) -> Any:
    """The published script's own augmentor; it takes minutes to read the vectors."""
    vars(np).setdefault("Inf", np.inf)  # numpy 2 has taken the name away
    modeling = import_original(checkout)
    path = Path(modeling.__file__).parents[1] / "data_augmentation.py"
    spec = importlib.util.spec_from_file_location("published_data_augmentation", path)
    assert spec is not None
    assert spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    logging.getLogger().setLevel(logging.WARNING)
    script.logger.setLevel("ERROR")
    model = script.BertForMaskedLM.from_pretrained(str(folder)).eval()
    tokenizer = script.BertTokenizer.from_pretrained(str(folder))
    vectors = script.prepare_embedding_retrieval(str(glove))
    return script.DataAugmentor(model, tokenizer, *vectors, CANDIDATES, COPIES, PROBABILITY)


def original_pass(augmentor: Any, rows: Rows) -> Callable[[], object]:
    """Prepare the pass of the published script over rows."""

    def run() -> None:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        for text in itertools.chain.from_iterable(rows):
            augmentor.augment(text)

    return run


def floor_seconds(run: Callable[[], object]) -> float:
    """The time of a pass's multiplications at the speed of a square matrix product, on as many threads."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / matrix_peak(inference_dtype(CPU))


def read_texts(path: Path, rows: int) -> Rows:
    """So many texts of a file in SST-2's layout, spread over it."""
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    texts = [line.split("\t")[:1] for line in lines if line]
    return random.Random(0).sample(texts, rows)


def cases(values: argparse.Namespace, language: RandomLanguage) -> Iterator[tuple[str, Rows]]:
    """Yield name and rows of each case."""
    if values.train_file is not None:
        yield f"{values.rows} rows of {values.train_file.name}", read_texts(values.train_file, values.rows)
        return
    for length in values.lengths:
        yield f"{values.rows} texts of {length} words", [[language.text(length)] for _ in range(values.rows)]
    if values.pairs:
        name = f"{values.pairs} pairs of {PREMISE_WORDS} and {HYPOTHESIS_WORDS} words, {ROWS_OF_A_PREMISE} of a premise"
        yield name, language.pairs(values.pairs)


def measure_peak(folder: Path, vectors: np.ndarray, rows: Rows) -> Row:
    """The peak memory of a worker, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        peak = pool.submit(our_peak_mib, folder / "mlm", folder / "vectors", rows).result()
    case = f"peak of the whole process with {len(vectors):,} x {vectors.shape[1]} vectors"
    return Row("augmentation", case, OURS, OURS, 1, math.nan, math.nan, math.nan, 1.0, extra_mib=peak)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    values = parse_arguments(arguments)
    torch.set_num_threads(1)
    language = RandomLanguage(seed=0)
    measured: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "mlm", language.vocabulary, values.tokenizer, values.layers)
        glove = values.glove_embs or folder / "glove.txt"
        if values.glove_embs is None:
            write_vectors(glove, language.vector_words[:MANY_VECTORS], DIMENSIONS)
        build_cache(glove, MANY_VECTORS, folder / "vectors")
        vectors = open_cache(folder / "vectors")
        method = PublishedMethod(folder / "mlm", vectors.words, vectors.vectors)
        original = None if values.original is None else load_original(values.original, folder / "mlm", glove)
        for case, rows in cases(values, language):
            variants = {
                OURS: our_pass(folder / "mlm", folder / "vectors", rows),
                PUBLISHED: published_pass(method, rows, gradients=True),
                NO_GRAD: published_pass(method, rows, gradients=False),
            }
            if original is not None:
                variants[ORIGINAL] = original_pass(original, rows)
            seconds = interleave(variants, values.rounds)
            peers = {name: PUBLISHED for name in variants if name != PUBLISHED}
            # In float32 every product is one that the counter knows.
            floors = {OURS: floor_seconds(our_pass(folder / "mlm", folder / "vectors", rows, torch.float32))}
            measured += rows_of("augmentation", case, seconds, peers=peers, samples=len(rows), floors=floors)
        if values.memory:
            measured.append(measure_peak(folder, vectors.vectors, rows))
    publish(measured, values.out, readme=values.readme, plotted=False)
    print(table(measured))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--original", type=Path, metavar="PATH", help="checkout of the published implementation")
    add("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    add("--rows", type=int, default=8, help="texts of a pass (default: 8)")
    add("--lengths", type=int, nargs="+", default=[9, 25], help="words of the texts, a case each (default: 9 25)")
    add("--pairs", type=int, default=6, help="pairs of a pass, a case more (default: 6; 0: none)")
    add("--train_file", type=Path, metavar="FILE", help="take texts of a file in SST-2's layout instead")
    add("--tokenizer", type=Path, metavar="DIR", help="take the tokeniser of a model directory (30,522 tokens)")
    add("--glove_embs", type=Path, metavar="FILE", help="take these word vectors")
    add("--layers", type=int, default=12, help="of the masked language model (default: 12)")
    add("--no_memory", dest="memory", action="store_false", help="leave out the peak memory")
    add("--out", type=Path, default=RESULTS / "augmentation.csv", help="CSV to write")
    add("--readme", metavar="SECTION", help="put the table into this section of README.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
