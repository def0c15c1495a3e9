"""A sentence encoder that is exported: pooling, dense layers and normalisation are a part of it, its texts scored pairs
or plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from tinybert_ds.arguments.export import ExportModelArguments
from tinybert_ds.data.batching import RowLayout
from tinybert_ds.data.sts import StsPairs, read_sts
from tinybert_ds.data.task_batches import EncodedExamples, encode
from tinybert_ds.data.task_files import Examples
from tinybert_ds.data.texts import find_texts, read_texts
from tinybert_ds.data.tokenizer import returns_token_types, special_ids
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.errors import ConfigError, DataError
from tinybert_ds.export.vectors import VectorModel
from tinybert_ds.models.capture import takes_token_types
from tinybert_ds.models.pretrained import Role, load_encoder, read_config, weights_bytes
from tinybert_ds.models.probe import position_limit, require_positions
from tinybert_ds.models.sentence.directory import has_modules
from tinybert_ds.models.sentence.head import SentenceHead
from tinybert_ds.stages.export_subject import USUAL_LENGTH, Subject, input_names, noise, some_rows, subject_name
from tinybert_ds.stages.sentence_encoders import read_sentence_directory

_READ = 10_000
"""Texts that are looked at, the first ones of the files."""
_MEASURED = 1_000
"""Texts of these that figures are of, where there are no scored pairs."""
_TRAINING_SHARES = 3
"""Parts of `--calibration_rows`: one fixes scales, two choose layers."""


def is_sentence_encoder(arguments: ExportModelArguments) -> bool:
    """Whether a model is exported for its vectors.

    Raises:
        ConfigError: It is a classifier, and texts are given.
    """
    if arguments.data_dir:
        return False
    names = _heads(arguments.model, "model")
    for_texts = [flag for flag in ("sts", "texts") if getattr(arguments, flag)]
    if names:
        if for_texts:
            raise ConfigError(
                f"--{' and --'.join(for_texts)} is for sentence encoders, and {arguments.model} has a head "
                f"({', '.join(names)}); give its task (--data_dir with --task_name or --task_file), or an encoder"
            )
        return False
    return has_modules(arguments.model) or bool(for_texts)


def _heads(directory: str, role: Role) -> list[str]:
    """The architectures of a model directory that give no vectors."""
    names = map(str, read_config(directory, role=role).architectures or ())
    return [name for name in names if name.endswith("Classification")]


def load_vector_subject(directory: str, arguments: ExportModelArguments, world: World, *, role: Role) -> Subject:
    """Load a sentence encoder in float32 and tokenise what it is measured on: scored pairs, else texts, else noise.

    Raises:
        ConfigError, DataError, ModelError: A module or a prompt that is not understood, files that cannot be read.
    """
    if role == "teacher" and (heads := _heads(directory, role)):
        raise ConfigError(f"--teacher {directory} has a head ({', '.join(heads)}); give a sentence encoder")
    encoder = read_sentence_directory(directory, None, role=role)
    prompt, tokenizer, modules = encoder.prompt(None), encoder.tokenizer, encoder.modules
    length = min(arguments.max_seq_length or encoder.max_seq_length, encoder.max_seq_length)
    if arguments.max_seq_length is not None and arguments.max_seq_length > length and role == "model":
        raise ConfigError(
            f"--max_seq_length {arguments.max_seq_length}: {directory} cuts texts to {length} tokens; lower it, or "
            "leave it out"
        )
    if "lasttoken" in modules.pooling and tokenizer.padding_side == "left":
        raise ConfigError(
            f"{directory} pools the last token of rows that its tokeniser pads on the left; rows of an exported graph "
            'are padded on the right: write "padding_side": "right" in its tokenizer_config.json if its vectors stay '
            "the same"
        )

    def encoded(texts: Sequence[str]) -> EncodedExamples:
        return encode(Examples(Path(), ([prompt + text for text in texts],), None), tokenizer, length)

    pairs = _pairs(arguments)
    rows: EncodedExamples | None = None
    training: EncodedExamples | None = None
    if arguments.texts:
        rows, training = _parts(encoded(_texts(arguments)), arguments.calibration_rows)
    if pairs is not None:
        rows = encoded(pairs.texts.texts[0])
    if rows is None:
        rows = noise(encoder.config.vocab_size, min(length, arguments.max_seq_length or USUAL_LENGTH))
    model = load_encoder(directory, role=role)
    if position_limit(model) is not None:
        require_positions(model, length)
        # text-embeddings-inference refuses directories that leave to others what sentence-transformers finds by itself
        modules = replace(modules, max_seq_length=encoder.max_seq_length)
    head = SentenceHead(modules)
    types = returns_token_types(tokenizer) and takes_token_types(model)
    return Subject(
        name=subject_name(directory, role),
        directory=Path(directory),
        model=VectorModel(model, head).eval(),
        tokenizer=tokenizer,
        input_names=input_names(types),
        spec=None,
        split="",
        columns=tuple(range(encoder.width)),
        settings=None,
        answers="vectors",
        rows=rows,
        training_rows=training,
        layout=RowLayout("valid", length, special_ids(tokenizer).pad),
        world=world,
        size_bytes=weights_bytes(directory) + sum(weight.nbytes for weight in head.parameters()),
        modules=modules,
        pairs=pairs,
    )


def _pairs(arguments: ExportModelArguments) -> StsPairs | None:
    return read_sts([arguments.sts], arguments.sts_columns)[0] if arguments.sts else None


def _texts(arguments: ExportModelArguments) -> list[str]:
    """The first texts of the files."""
    blocks = read_texts(find_texts(arguments.texts), arguments.text_column)
    found = list(islice(chain.from_iterable(block.texts[0] for block in blocks), _READ))
    if len(found) < 2:
        raise DataError(f"--texts {' '.join(arguments.texts)}: {len(found)} texts; give at least two")
    return found


def _parts(texts: EncodedExamples, calibration_rows: int) -> tuple[EncodedExamples, EncodedExamples]:
    """Texts that are measured on, and others that scales and layers are chosen by."""
    order = np.random.default_rng(0).permutation(len(texts))
    count = min(_TRAINING_SHARES * calibration_rows, len(texts) // 2)
    return some_rows(texts, order[count : count + _MEASURED]), some_rows(texts, order[:count])
