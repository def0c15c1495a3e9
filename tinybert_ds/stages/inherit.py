"""Students started in closed form from their teacher, as directories that distillation goes on from."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel

from tinybert_ds.arguments import identity_of, parse_arguments
from tinybert_ds.arguments.inherit import InheritArguments
from tinybert_ds.data.batching import BatchSource
from tinybert_ds.data.calibration import calibration_blocks
from tinybert_ds.data.corpus import CorpusSource
from tinybert_ds.data.manifest import read_manifest
from tinybert_ds.data.tasks import find_task
from tinybert_ds.data.tokenizer import returns_token_types, tokenizer_fingerprint
from tinybert_ds.engine.ranks.process_group import run_on_main, write_on_main
from tinybert_ds.engine.run.run import Session
from tinybert_ds.errors import ConfigError, UserError, raise_all
from tinybert_ds.files import write_atomically
from tinybert_ds.hardware import inference_dtype, precision_problems
from tinybert_ds.models.build import Head, build_student, check_pair, resolve_student
from tinybert_ds.models.card import write_card
from tinybert_ds.models.embedding_rows import with_rows
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.inherit import Inheritance
from tinybert_ds.models.inherit.checks import check_inheritance
from tinybert_ds.models.inherit.sweep import Pupil
from tinybert_ds.models.pretrained import has_weights, load_encoder, load_headed, read_config
from tinybert_ds.models.run_card import START_FILE, start_card, start_command
from tinybert_ds.models.saving import save_student
from tinybert_ds.stages.corpora import check_tokens
from tinybert_ds.stages.distillation import require_same_tokenizer
from tinybert_ds.stages.general_distill import student_directories
from tinybert_ds.stages.inheritance import start_all_from_teacher, table
from tinybert_ds.stages.start import begin_evaluation
from tinybert_ds.stages.task_data import load_task
from tinybert_ds.stages.vocabulary import Vocabulary, read_vocabulary
from tinybert_ds.strict_formats import read_json
from tinybert_ds.targets import target_of

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, problems = parse_arguments(InheritArguments, argv)
    session = begin_evaluation(arguments, problems)
    world = session.world
    raise_all(precision_problems("teacher_dtype", arguments.teacher_dtype, world.device))
    vocabulary = read_vocabulary(arguments.student_tokenizer, arguments.teacher_model, arguments.lower_case)
    tokenizer = vocabulary.tokenizer
    candidates = _candidates(session, vocabulary)
    text = _text(session, vocabulary)
    for candidate in candidates:
        candidate.identity["data"] = text.fingerprint
    waiting = run_on_main(world, lambda: [number for number, each in enumerate(candidates) if not _finished(each)])
    if not waiting:
        return
    teacher = _load_teacher(arguments, text)
    types = returns_token_types(tokenizer)
    blocks = calibration_blocks(text.source, arguments.calibration_tokens, token_types=types)
    chosen = [candidates[number] for number in waiting]
    pupils = []
    for candidate in chosen:
        weights: Literal["load", "random"] = "load" if candidate.has_weights else "random"
        student = build_student(candidate.path, weights=weights, head=text.head, seed=arguments.seed)
        write_on_main(world, candidate.directory, partial(_write_record, candidate, finished=False))
        prior_weight = arguments.prior_weight if candidate.has_weights else None
        pupils.append(Pupil(student, candidate.layer_map, text.columns, prior_weight))
    dtype = inference_dtype(world.device, arguments.teacher_dtype)
    reading = with_rows(teacher, vocabulary.teacher_ids)
    made = start_all_from_teacher(reading, pupils, blocks, dtype=dtype, world=world)
    for candidate, pupil, found in zip(chosen, pupils, made, strict=True):
        write_on_main(world, candidate.directory, partial(_write, candidate, pupil, tokenizer, found, arguments))
        logger.info("student: %s", candidate.directory)


class _Candidate(NamedTuple):
    given: str  # on the command line
    path: Path
    has_weights: bool
    layer_map: tuple[int, ...]
    directory: Path
    identity: dict[str, Any]


def _candidates(session: Session[InheritArguments], vocabulary: Vocabulary) -> list[_Candidate]:
    """Find the students and check that each has a closed form."""
    arguments = session.arguments
    teacher_config = read_config(arguments.teacher_model, role="teacher")
    paths = [resolve_student(name) for name in arguments.student_model]
    teacher = model_fingerprint(arguments.teacher_model)
    candidates = []
    directories = student_directories(session.output_dir, paths)
    for given, path, directory in zip(arguments.student_model, paths, directories, strict=True):
        config = read_config(path, role="student")
        try:
            layer_map = check_pair(
                teacher_config,
                config,
                layer_map=arguments.layer_map,
                attention=False,
                padding_token=vocabulary.tokenizer.pad_token_id,
                vocab_size=vocabulary.size,
            )
            check_inheritance(teacher_config, config, layer_map)
        except UserError as error:
            if len(paths) == 1:
                raise
            raise type(error)(f"--student_model {path}: {error}") from error
        dtype = str(inference_dtype(session.world.device, arguments.teacher_dtype))
        identity = {
            "teacher": teacher,
            "student": model_fingerprint(path),
            **identity_of(arguments, {"layer_map": list(layer_map), "teacher_dtype": dtype}),
        }
        trained = path.is_dir() and has_weights(path)
        if trained:
            require_same_tokenizer(path, vocabulary.directory, arguments.lower_case)
        candidates.append(_Candidate(given, path, trained, layer_map, directory, identity))
    return candidates


class _Text(NamedTuple):
    source: BatchSource
    fingerprint: str
    columns: list[int] | None  # the teacher's output for each label of the task; None for a corpus
    head: Head | None  # of the task


def _text(session: Session[InheritArguments], vocabulary: Vocabulary) -> _Text:
    """Open the shards or the task's training rows."""
    arguments, tokenizer = session.arguments, vocabulary.tokenizer
    config = read_config(arguments.teacher_model, role="teacher")
    if arguments.data_dir is not None:
        spec = find_task(arguments.task_name, arguments.task_file)
        columns = target_of(spec).columns(spec, config, arguments.stated_labels, role="teacher")
        task = load_task(
            spec, arguments.data_dir, ("train",), tokenizer, config, arguments, session.world, unlabelled=("train",)
        )
        rows = task.source("train", 32, seed=arguments.seed, shuffle=True)
        return _Text(rows, rows.fingerprint, columns, target_of(spec).head(spec))
    directories = arguments.pregenerated_data
    lengths = {name: read_manifest(Path(name)).sampling.max_seq_len for name in directories}
    length = arguments.max_seq_length or min(lengths.values())
    corpus = CorpusSource(
        directories,
        split="train",
        eval_fraction=0.0,
        global_batch_size=32,
        max_seq_length=length,
        seed=arguments.seed,
    )
    flag = "--teacher_model" if arguments.student_tokenizer is None else "--student_tokenizer"
    size = vocabulary.size or config.vocab_size
    check_tokens(corpus, directories, vocabulary.directory, size, tokenizer_fingerprint(tokenizer), flag)
    run_on_main(session.world, lambda: corpus.samples_in_epoch(0))  # the others find its counts beside the corpus
    return _Text(corpus, f"{corpus.fingerprint} {length}", None, None)


def _load_teacher(arguments: InheritArguments, text: _Text) -> PreTrainedModel:
    if text.head is None:
        return load_encoder(arguments.teacher_model, role="teacher")
    return load_headed(arguments.teacher_model, text.head, role="teacher")


def _finished(candidate: _Candidate) -> bool:
    """Whether the student is there already.

    Raises:
        ConfigError: The directory holds another student, or files of something else.
    """
    directory, file = candidate.directory, candidate.directory / START_FILE
    if not file.is_file():
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigError(
                f"--output_dir {directory} holds something that this command did not make; give an empty or new "
                "directory (nothing was changed)"
            )
        return False
    record = read_json(file, "the record of a started student", ConfigError)
    if not isinstance(record, dict) or not isinstance(record.get("identity"), dict):
        raise ConfigError(f"{file} was not written by this command; give an empty or new directory, or delete it")
    finished = record.get("finished") is True
    differing = [name for name, value in candidate.identity.items() if record["identity"].get(name) != value]
    if differing and not finished and all(path == file for path in directory.iterdir()):
        return False  # nothing came of that one
    if differing:
        raise ConfigError(
            f"--output_dir {directory} holds a student made with another {', '.join(differing)}; give an empty or new "
            "directory (nothing was changed)"
        )
    if finished:
        logger.info("the student in %s is finished; nothing to do", directory)
    return finished


def _write(
    candidate: _Candidate, pupil: Pupil, tokenizer: Any, found: Inheritance, arguments: InheritArguments
) -> None:
    save_student(pupil.student, tokenizer, candidate.directory, projections=found.projections)
    own = replace(arguments, student_model=[candidate.given])
    _write_record(candidate, finished=False, found=found, arguments=own)
    data, lines = candidate.identity["data"], table(found, pupil.layer_map)
    card = start_card(candidate.directory, own, data, lines, anew=not candidate.has_weights)
    write_card(candidate.directory, card)
    _write_record(candidate, finished=True, found=found, arguments=own)


def _write_record(
    candidate: _Candidate,
    *,
    finished: bool,
    found: Inheritance | None = None,
    arguments: InheritArguments | None = None,
) -> None:
    candidate.directory.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"identity": candidate.identity, "finished": finished}
    if arguments is not None:
        record["command"] = start_command(arguments)
        record["made_of"] = [candidate.given, arguments.teacher_model]
    if found is not None:
        explained = {"states": found.states, "head": found.head}
        record["explained"] = {**explained, "layers": [report._asdict() for report in found.layers]}
    write_atomically(candidate.directory / START_FILE, json.dumps(record, indent=2) + "\n")
