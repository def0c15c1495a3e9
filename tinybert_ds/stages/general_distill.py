"""General distillation: a student learns from a pre-trained teacher on unlabelled text (arXiv 1909.10351, 3.2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel

from tinybert_ds.arguments import GeneralDistillArguments, identity_of, parse_arguments, renamed
from tinybert_ds.data.batching import BatchSource
from tinybert_ds.data.calibration import calibration_blocks
from tinybert_ds.data.tokenizer import returns_token_types, tokenizer_fingerprint
from tinybert_ds.engine.checkpoints.store import CHECKPOINT_DIRECTORY
from tinybert_ds.engine.loop import train
from tinybert_ds.engine.other_tokens import translated
from tinybert_ds.engine.prediction import held_out_loss
from tinybert_ds.engine.ranks.process_group import run_on_main
from tinybert_ds.engine.run.directory import RunDirectory
from tinybert_ds.engine.run.run import Session, open_run
from tinybert_ds.engine.watch.stall import DIRECTORY as STALLS
from tinybert_ds.errors import UserError
from tinybert_ds.files import refuse_foreign_files
from tinybert_ds.hardware import inference_dtype
from tinybert_ds.models.build import build_student, check_pair, find_student, svd_embeddings
from tinybert_ds.models.embedding_rows import with_rows
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.inherit.checks import check_inheritance
from tinybert_ds.models.inherit.sweep import Pupil
from tinybert_ds.models.pretrained import load_encoder, read_config
from tinybert_ds.stages.balance import balance, recorded
from tinybert_ds.stages.corpora import open_corpora, with_length
from tinybert_ds.stages.distillation import (
    Student,
    build_intermediate,
    export_student,
    relation_layers,
    require_same_tokenizer,
)
from tinybert_ds.stages.give_away import give_away, require_repositories
from tinybert_ds.stages.inheritance import started_once
from tinybert_ds.stages.start import begin_training
from tinybert_ds.stages.vocabulary import Vocabulary, read_vocabulary

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, problems = parse_arguments(GeneralDistillArguments, argv)
    session = begin_training(arguments, problems, single=len(arguments.student_model) == 1)
    world = session.world
    for line in renamed(GeneralDistillArguments, argv):
        logger.info("%s", line)
    if arguments.reduce_memory:
        logger.info("--reduce_memory means nothing any more: shards are always memory-mapped")
    teacher_config = read_config(arguments.teacher_model, role="teacher")
    vocabulary = read_vocabulary(arguments.student_tokenizer, arguments.teacher_model, arguments.lower_case)
    tokenizer = vocabulary.tokenizer
    candidates = _candidates(session, teacher_config, vocabulary)
    for candidate in candidates:
        if candidate.init == "load":
            require_same_tokenizer(candidate.path, vocabulary.directory, arguments.lower_case)
    require_repositories(session, [candidate.directory for candidate in candidates])
    vocab_size = vocabulary.size or teacher_config.vocab_size
    corpora = open_corpora(arguments, vocab_size, tokenizer_fingerprint(tokenizer), world)
    with open_run(
        session,
        {candidate.directory: {**candidate.identity, **corpora.identity} for candidate in candidates},
        title="general distillation",
        source=corpora.train,
        evaluation_steps=arguments.eval_steps or arguments.checkpoint_steps,
        total_steps=corpora.total_steps,
    ) as run:
        if not run.finished:
            teacher_model = load_encoder(arguments.teacher_model, role="teacher")
            teacher, students = build_intermediate(
                teacher_model,
                _students(session, candidates, teacher_model, corpora.train, vocabulary),
                arguments,
                max_seq_length=corpora.longest,
                world=world,
                token_types=vocabulary.teacher_types,
            )
            teacher = translated(teacher, vocabulary.teacher_ids, world.device)
            evaluate = None
            if corpora.held_out is not None:
                evaluate = partial(held_out_loss, teacher=teacher, source=corpora.held_out, world=world)
            types = vocabulary.teacher_types
            variances = balance(run, teacher, students, corpora.train, token_types=types)
            export = partial(export_student, tokenizer=tokenizer, world=world)
            for student, found in zip(students, variances, strict=True):
                run.attach(student, evaluate=evaluate, export=export, measured=recorded(found))
            train(run, teacher, overlap_teacher=arguments.overlap_teacher)
            corpora.finish_verification(run.stall.alive)
            run.finish()
    give_away(session, [candidate.directory for candidate in candidates], None)


_STARTS: dict[str | None, Literal["teacher", "svd", "random"]] = {
    "teacher": "teacher",
    "svd": "svd",
    "random": "random",
}
"""By what the identity of a run calls them."""


class _Candidate(NamedTuple):
    path: Path
    init: Literal["load", "teacher", "svd", "random"]
    layer_map: tuple[int, ...]
    relation_layers: tuple[tuple[int, int], ...]  # see `distillation.Student`
    directory: Path
    identity: dict[str, Any]  # without the data


def _candidates(
    session: Session[GeneralDistillArguments], teacher_config: Any, vocabulary: Vocabulary
) -> list[_Candidate]:
    """Find the students and check that each fits the teacher."""
    arguments, output_dir = session.arguments, session.output_dir
    weights: Literal["load", "random"] = "load" if arguments.continue_train else "random"
    paths = [find_student(name, weights=weights) for name in arguments.student_model]
    fingerprints = [model_fingerprint(path) for path in paths]
    dtype = str(inference_dtype(session.world.device, arguments.teacher_dtype))
    shared: dict[str, Any] = {"stage": "general_distill", "teacher": model_fingerprint(arguments.teacher_model)}
    if len(paths) > 1:
        shared["students"] = fingerprints  # they stand at the same step: none can join or leave
    longest = max(length for length, _ in with_length(arguments).phase_list)
    directories = student_directories(output_dir, paths)
    begun = run_on_main(session.world, lambda: [_begun_with(directory) for directory in directories])
    candidates = []
    for path, fingerprint, directory, before in zip(paths, fingerprints, directories, begun, strict=True):
        config = read_config(path, role="student")
        try:
            layer_map = check_pair(
                teacher_config,
                config,
                layer_map=arguments.layer_map,
                projection=arguments.projection,
                attention=arguments.compares_scores,
                padding_token=vocabulary.tokenizer.pad_token_id,
                sequence_length=longest,
                vocab_size=vocabulary.size,
            )
            relations = relation_layers(arguments, layer_map, teacher_config)
            init = _init(arguments, before, teacher_config, config, layer_map)
        except UserError as error:
            if len(paths) == 1:
                raise
            raise type(error)(f"--student_model {path}: {error}") from error
        comes_to = {
            "layer_map": layer_map,
            "teacher_dtype": dtype,
            "relation_layers": relations,
            "relations": arguments.relation_factors,
            "init_embeddings": "random" if init == "load" else init,
        }
        identity = {**identity_of(arguments, comes_to), **shared, "student": fingerprint}
        candidates.append(_Candidate(path, init, layer_map, relations, directory, identity))
    return candidates


def _begun_with(directory: Path) -> str | None:
    """Return how the student of the run in a directory started; None where there is no run."""
    record = RunDirectory(directory).record()
    return None if record is None else record["identity"].get("init_embeddings")


def _init(
    arguments: GeneralDistillArguments,
    before: str | None,
    teacher_config: Any,
    student_config: Any,
    layer_map: tuple[int, ...],
) -> Literal["load", "teacher", "svd", "random"]:
    """Say where a student's weights come from; `before`: how that of the run that `--output_dir` holds started.

    Raises:
        ConfigError, ModelError: --init teacher for a student that has no closed form.
    """
    if arguments.continue_train:
        return "load"
    if arguments.init in ("svd", "random"):
        return arguments.init
    if arguments.init == "auto" and before in _STARTS:
        return _STARTS[before]
    if arguments.init == "auto" and arguments.teacher_engine == "zero3":
        logger.info("the student starts from random weights: --teacher_engine zero3 says that the teacher does not fit")
        return "random"
    try:
        check_inheritance(teacher_config, student_config, layer_map)
    except UserError as error:
        if arguments.init == "teacher":
            raise
        logger.info("the student starts from random weights: %s", error)
        return "random"
    return "teacher"


def _students(
    session: Session[GeneralDistillArguments],
    candidates: Sequence[_Candidate],
    teacher: PreTrainedModel,
    source: BatchSource,
    vocabulary: Vocabulary,
) -> list[Student]:
    """Make the students and give each the weights that it starts from."""
    arguments, models = session.arguments, []
    token_types = returns_token_types(vocabulary.tokenizer)
    from_teacher = any(candidate.init in ("teacher", "svd") for candidate in candidates)
    reading = with_rows(teacher, vocabulary.teacher_ids) if from_teacher else teacher
    for candidate in candidates:
        weights: Literal["load", "random"] = "load" if candidate.init == "load" else "random"
        models.append(build_student(candidate.path, weights=weights, head=None, seed=arguments.seed))
        if candidate.init == "svd":
            svd_embeddings(reading, models[-1])
    places = [number for number, candidate in enumerate(candidates) if candidate.init == "teacher"]
    started = started_once(
        reading,
        [Pupil(models[number], candidates[number].layer_map) for number in places],
        [candidates[number].directory / CHECKPOINT_DIRECTORY for number in places],
        partial(calibration_blocks, source, arguments.calibration_tokens, token_types=token_types),
        dtype=inference_dtype(session.world.device, arguments.teacher_dtype),
        world=session.world,
    )
    projections = dict(zip(places, started, strict=True))
    return [
        Student(
            model,
            candidate.layer_map,
            candidate.path,
            projections=projections.get(number),
            token_types=token_types,
            relation_layers=candidate.relation_layers,
        )
        for number, (candidate, model) in enumerate(zip(candidates, models, strict=True))
    ]


def student_directories(output_dir: Path, students: Sequence[Path]) -> list[Path]:
    """Return where each student goes: one alone to `output_dir` itself, several to directories of their names in it.

    A student is called as its directory, or its config file without ".json" where that has a name of its own.
    Namesakes are numbered.

    Raises:
        ConfigError: `output_dir` holds anything but those directories.
    """
    if len(students) == 1:
        return [output_dir]
    names: list[str] = []
    for student in students:
        own_name = student.suffix == ".json" and student.name != "config.json"
        base = student.stem if own_name else (student.parent if student.suffix == ".json" else student).resolve().name
        numbered = (f"{base}-{number}" for number in count(2))
        names.append(next(name for name in chain([base], numbered) if name not in names))
    found = output_dir.iterdir() if output_dir.is_dir() else ()
    own = (*names, STALLS)
    foreign = (path.name for path in found if path.name not in own and not path.name.startswith("."))
    refuse_foreign_files(output_dir, foreign, f"is for the students {', '.join(names)} and holds other things")
    return [output_dir / name for name in names]
