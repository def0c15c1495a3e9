"""General distillation: a student learns from a pre-trained teacher on unlabelled text (arXiv 1909.10351, 3.2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tinybert_ds.arguments import GeneralDistillArguments
from tinybert_ds.data.tokenizer import TOKENIZER_FILES, load_tokenizer, tokenizer_fingerprint
from tinybert_ds.engine.loop import Evaluation
from tinybert_ds.engine.prediction import mean_loss
from tinybert_ds.engine.teacher import teacher_dtype
from tinybert_ds.engine.watch.stall import DIRECTORY as STALLS
from tinybert_ds.errors import ConfigError, UserError
from tinybert_ds.models.build import build_student, check_pair, find_student
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import load_encoder, read_config
from tinybert_ds.stages.corpora import open_corpora
from tinybert_ds.stages.distillation import Student, build_intermediate, export_student, require_same_tokenizer
from tinybert_ds.stages.session import Learner, Models, Session, Target, begin, run_stage

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    session = begin(GeneralDistillArguments, argv, "general_distill.py")
    arguments, world = session.arguments, session.world
    if arguments.reduce_memory:
        logger.info("--reduce_memory means nothing any more: shards are always memory-mapped")
    teacher_config = read_config(arguments.teacher_model, role="teacher")
    candidates = _candidates(session, teacher_config)
    tokenizer = load_tokenizer(arguments.teacher_model, arguments.lower_case)
    for candidate in candidates:
        if candidate.weights == "load" and any((candidate.path / name).is_file() for name in TOKENIZER_FILES):
            require_same_tokenizer(
                str(candidate.path),
                tokenizer_fingerprint(load_tokenizer(candidate.path, arguments.lower_case)),
                arguments.teacher_model,
                tokenizer_fingerprint(tokenizer),
            )
    corpora = open_corpora(arguments, teacher_config, tokenizer_fingerprint(tokenizer), world)

    def build() -> Models:
        students = [
            Student(
                build_student(candidate.path, weights=candidate.weights, head=None, seed=arguments.seed),
                candidate.layer_map,
                candidate.path,
                embeddings_from_teacher=arguments.init_embeddings == "svd",
            )
            for candidate in candidates
        ]
        modules, teacher = build_intermediate(
            load_encoder(arguments.teacher_model, role="teacher"),
            students,
            arguments,
            max_seq_length=corpora.longest,
            world=world,
        )

        def evaluation(engine: Any) -> Evaluation | None:
            held_out = corpora.held_out
            if held_out is None:
                return None

            def run() -> dict[str, float]:
                losses = mean_loss(engine, teacher, held_out, world)
                return {f"eval_{name}": value for name, value in losses.items()}

            return Evaluation(run=run, score=None)

        def export(engine: Any, directory: Path) -> None:
            export_student(engine, directory, tokenizer=tokenizer, world=world)

        learners = [Learner(module, evaluation, export) for module in modules]
        return Models(teacher, learners)

    run_stage(
        session,
        title="general distillation",
        source=corpora.train,
        targets=[Target(c.directory, {**c.identity, **corpora.identity}) for c in candidates],
        evaluation_steps=arguments.eval_steps or arguments.checkpoint_steps,
        build=build,
        total_steps=corpora.total_steps,
        conclude=corpora.finish_verification,
    )


class _Candidate(NamedTuple):
    path: Path
    weights: Literal["load", "random"]
    layer_map: tuple[int, ...]
    directory: Path
    identity: dict[str, Any]  # without the data


def _candidates(session: Session[GeneralDistillArguments], teacher_config: Any) -> list[_Candidate]:
    """Find the students and check that each fits the teacher."""
    arguments, output_dir = session.arguments, session.output_dir
    weights: Literal["load", "random"] = "load" if arguments.continue_train else "random"
    paths = [find_student(name, weights=weights) for name in arguments.student_model]
    fingerprints = [model_fingerprint(path) for path in paths]
    candidates = []
    for path, fingerprint, directory in zip(paths, fingerprints, student_directories(output_dir, paths), strict=True):
        try:
            layer_map = check_pair(
                teacher_config,
                read_config(path, role="student"),
                layer_map=arguments.layer_map,
                projection=arguments.projection,
            )
        except UserError as error:
            if len(paths) == 1:
                raise
            raise type(error)(f"--student_model {path}: {error}") from error
        identity = {
            "stage": "general_distill",
            "teacher": model_fingerprint(arguments.teacher_model),
            "student": fingerprint,
            "layer_map": layer_map,
            "projection": arguments.projection,
            "loss_weights": arguments.loss_weights,
            "teacher_dtype": str(teacher_dtype(arguments.teacher_dtype, session.world.device)),
            "padding": arguments.padding,
            "init_embeddings": arguments.init_embeddings,
        }
        if len(paths) > 1:
            identity["students"] = fingerprints  # they stand at the same step: none can join or leave
        candidates.append(_Candidate(path, weights, layer_map, directory, identity))
    return candidates


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
    foreign = sorted(path.name for path in found if path.name not in own and not path.name.startswith("."))
    if foreign:
        raise ConfigError(
            f"--output_dir {output_dir} is for the students {', '.join(names)} and holds other things: "
            f"{', '.join(foreign[:5])}{' ...' if len(foreign) > 5 else ''}; give an empty or new directory "
            "(nothing was changed)"
        )
    return [output_dir / name for name in names]
