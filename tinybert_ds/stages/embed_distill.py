"""Distillation of sentence vectors: a student learns its teacher's, on texts without labels (arXiv 2509.12539)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from tinybert_ds.arguments import identity_of, parse_arguments
from tinybert_ds.arguments.embed import EmbedDistillArguments
from tinybert_ds.data.sts import StsPairs, read_sts
from tinybert_ds.data.tokenizer import tokenizer_fingerprint
from tinybert_ds.engine.loop import evaluate, train
from tinybert_ds.engine.prediction import Model, held_out_loss
from tinybert_ds.engine.ranks.process_group import World
from tinybert_ds.engine.run.run import Session, open_run
from tinybert_ds.engine.teacher import Teacher, build_teacher
from tinybert_ds.engine.teacher_cache import cached_teacher
from tinybert_ds.hardware import inference_dtype
from tinybert_ds.models.compilation import compile_encoders
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import load_encoder
from tinybert_ds.models.sentence.head import SentenceEncoder, SentenceHead
from tinybert_ds.models.sentence.modules import SentenceModules
from tinybert_ds.models.student import count_parameters
from tinybert_ds.stages.embed_data import EmbedData, open_data, vectors_teacher
from tinybert_ds.stages.embed_student import (
    Candidate,
    Wanted,
    build_sentence_student,
    choose_modules,
    find_candidate,
    fit_modules,
    start_model,
)
from tinybert_ds.stages.evaluate import write_results
from tinybert_ds.stages.give_away import give_away, require_repositories
from tinybert_ds.stages.sentence_encoders import (
    SentenceDirectory,
    export_sentence_student,
    judge_likeness,
    last_state_encoder,
    length_limit,
    read_sentence_directory,
)
from tinybert_ds.stages.start import begin_training

logger = logging.getLogger(__name__)

MEAN = SentenceModules(("mean",))
"""What stands behind the transformer of a student whose teacher is a column."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, problems = parse_arguments(EmbedDistillArguments, argv)
    session = begin_training(arguments, problems)
    require_repositories(session, [session.output_dir])
    teacher = None  # where it is a column
    if arguments.teacher_model is not None:
        teacher = read_sentence_directory(arguments.teacher_model, arguments.lower_case, role="teacher")
    prompt = "" if teacher is None else teacher.prompt(arguments.prompt_name)
    candidate = find_candidate(arguments, teacher)
    pairs = read_sts(arguments.sts, arguments.sts_columns)
    limit = length_limit(candidate.config, candidate.tokenizer)
    data = open_data(arguments, teacher, candidate.tokenizer, limit, prompt=prompt, world=session.world)
    wanted = Wanted(*data.column_kind(), MEAN) if teacher is None else Wanted(*teacher.vectors, teacher.modules)
    modules = choose_modules(arguments, wanted, candidate, data.max_seq_length)
    with open_run(
        session,
        {session.output_dir: _identity(session, teacher, candidate, modules, data, prompt)},
        title="distillation of vectors",
        source=data.train,
        evaluation_steps=arguments.eval_step if pairs or data.held_out is not None else None,
    ) as run:
        if not run.finished:
            teacher_model = functools.cache(partial(load_encoder, arguments.teacher_model or "", role="teacher"))
            model = start_model(arguments, candidate, teacher_model, data, session.world)
            taught = _teacher(session, teacher, candidate, teacher_model, data, prompt)
            if not modules.layers:
                modules = fit_modules(
                    arguments,
                    candidate,
                    model,
                    modules,
                    taught,
                    data,
                    normalised=wanted.normalised,
                    world=session.world,
                )
            student = build_sentence_student(arguments, candidate, model, modules, data, session.world)
            run.attach(
                student,
                evaluate=_evaluation(session, candidate, taught, data, pairs, prompt),
                export=partial(
                    export_sentence_student, tokenizer=candidate.tokenizer, modules=modules, world=session.world
                ),
            )
            if not run.students[0].state.step:
                evaluate(run.students[0], session.world)  # the closed form alone
            train(run, taught, overlap_teacher=arguments.overlap_teacher)
            run.finish()
        write_results(session.output_dir, run.results[0], session.world)
    give_away(session, [session.output_dir], None)


def _identity(
    session: Session[EmbedDistillArguments],
    teacher: SentenceDirectory | None,
    candidate: Candidate,
    modules: SentenceModules,
    data: EmbedData,
    prompt: str,
) -> dict[str, Any]:
    arguments = session.arguments
    comes_to = {
        "teacher_dtype": None
        if teacher is None
        else str(inference_dtype(session.world.device, arguments.teacher_dtype)),
        "pooling": list(modules.pooling),
        "init_embeddings": candidate.init,
        "layer_map": list(candidate.layer_map),
    }
    return {
        **identity_of(arguments, comes_to),
        "stage": "embed_distill",
        "teacher": "a column" if teacher is None else teacher.fingerprint(),
        "student": model_fingerprint(candidate.path),
        "prompt": prompt,
        **data.identity,
    }


def _teacher(
    session: Session[EmbedDistillArguments],
    teacher: SentenceDirectory | None,
    candidate: Candidate,
    teacher_model: Callable[[], PreTrainedModel],
    data: EmbedData,
    prompt: str,
) -> Teacher:
    """Return what gives the teacher's vectors for a batch; called on all ranks."""
    arguments, world = session.arguments, session.world
    if teacher is None:
        return cached_teacher(data.column, world.device)
    same = tokenizer_fingerprint(candidate.tokenizer) == tokenizer_fingerprint(teacher.tokenizer)
    live = partial(_live_teacher, arguments, teacher, teacher_model, world)
    return vectors_teacher(arguments, data, teacher, live, same_tokenizer=same, prompt=prompt, world=world)


def _live_teacher(
    arguments: EmbedDistillArguments,
    teacher: SentenceDirectory,
    teacher_model: Callable[[], PreTrainedModel],
    world: World,
) -> Teacher:
    model = teacher_model()
    encoder = last_state_encoder(model, teacher.tokenizer, teacher.max_seq_length)
    if arguments.compile:
        compile_encoders((encoder,), world.device)
    dtype = inference_dtype(world.device, arguments.teacher_dtype)
    logger.info("teacher %.2f M parameters, in %s", count_parameters(model) / 1e6, dtype)
    return build_teacher(SentenceEncoder(encoder, SentenceHead(teacher.modules)), dtype, arguments.teacher_engine)


def _evaluation(
    session: Session[EmbedDistillArguments],
    candidate: Candidate,
    teacher: Teacher,
    data: EmbedData,
    pairs: Sequence[StsPairs],
    prompt: str,
) -> Callable[[Model], dict[str, float]] | None:
    """Return what judges the student while it trains; None where there is nothing to judge it by."""
    arguments, held_out = session.arguments, data.held_out

    def judge(model: Model) -> dict[str, float]:
        results = {} if held_out is None else held_out_loss(model, teacher, held_out, session.world)
        likeness = judge_likeness(
            model,
            pairs,
            candidate.tokenizer,
            prompt=prompt,
            max_seq_length=data.max_seq_length,
            batch_size=arguments.eval_batch_size,
            world=session.world,
        )
        return results | likeness

    return judge if pairs or held_out is not None else None
