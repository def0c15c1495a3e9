"""General distillation: a student learns from a pre-trained teacher on unlabelled text (arXiv 1909.10351, 3.2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tinybert_ds.arguments import GeneralDistillArguments
from tinybert_ds.data.corpus import CorpusSource
from tinybert_ds.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from tinybert_ds.engine.loop import Evaluation
from tinybert_ds.engine.prediction import mean_loss
from tinybert_ds.engine.teacher import teacher_dtype
from tinybert_ds.errors import ConfigError
from tinybert_ds.models.build import build_student, check_pair, find_student
from tinybert_ds.models.fingerprint import model_fingerprint
from tinybert_ds.models.pretrained import load_encoder, read_config
from tinybert_ds.stages.distillation import build_intermediate, export_student
from tinybert_ds.stages.session import Models, begin, run_stage

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    session = begin(GeneralDistillArguments, argv, "general_distill.py")
    arguments, world = session.arguments, session.world
    if arguments.reduce_memory:
        logger.info("--reduce_memory means nothing any more: shards are always memory-mapped")
    weights: Literal["load", "random"] = "load" if arguments.continue_train else "random"
    student_path = find_student(arguments.student_model, weights=weights)
    student_config = read_config(student_path, role="student")
    teacher_config = read_config(arguments.teacher_model, role="teacher")
    layer_map = check_pair(
        teacher_config, student_config, layer_map=arguments.layer_map, projection=arguments.projection
    )
    tokenizer = load_tokenizer(arguments.teacher_model, arguments.lower_case)
    source = _corpus(arguments, "train", teacher_config)
    if source.tokenizer_fingerprint != tokenizer_fingerprint(tokenizer):
        raise ConfigError(
            f"the shards in {arguments.pregenerated_data} were made with another tokeniser than that of "
            f"--teacher_model {arguments.teacher_model}; make them anew with --bert_model {arguments.teacher_model} "
            "and the same casing flags"
        )
    held_out = _corpus(arguments, "eval", teacher_config) if arguments.eval_fraction else None

    def build() -> Models:
        teacher_model = load_encoder(arguments.teacher_model, role="teacher")
        student_model = build_student(arguments.student_model, weights=weights, head=None, seed=arguments.seed)
        module, teacher = build_intermediate(
            teacher_model,
            student_model,
            layer_map,
            arguments,
            student_directory=student_path,
            max_seq_length=arguments.max_seq_length,
            world=world,
            embeddings_from_teacher=arguments.init_embeddings == "svd",
        )

        def evaluation(engine: Any) -> Evaluation | None:
            if held_out is None:
                return None

            def run() -> dict[str, float]:
                losses = mean_loss(engine, teacher, held_out, world)
                return {f"eval_{name}": value for name, value in losses.items()}

            return Evaluation(run=run, score=None, keep_best=lambda: None)

        return Models(
            module, teacher, evaluation, lambda engine: export_student(engine, tokenizer, session.output_dir, world)
        )

    run_stage(
        session,
        title="general distillation",
        source=source,
        identity={
            "stage": "general_distill",
            "teacher": model_fingerprint(arguments.teacher_model),
            "student": model_fingerprint(student_path),
            "data": source.fingerprint,
            "layer_map": layer_map,
            "projection": arguments.projection,
            "loss_weights": arguments.loss_weights,
            "teacher_dtype": str(teacher_dtype(arguments.teacher_dtype, world.device)),
            "padding": arguments.padding,
            "init_embeddings": arguments.init_embeddings,
        },
        evaluation_steps=arguments.eval_steps or arguments.checkpoint_steps,
        build=build,
    )


def _corpus(arguments: GeneralDistillArguments, split: Literal["train", "eval"], teacher_config: Any) -> CorpusSource:
    batch_size = arguments.train_batch_size if split == "train" else arguments.eval_batch_size
    return CorpusSource(
        Path(arguments.pregenerated_data),
        split=split,
        eval_fraction=arguments.eval_fraction,
        global_batch_size=batch_size,
        max_seq_length=arguments.max_seq_length,
        seed=arguments.seed,
        padding=arguments.padding,
        one_seq=arguments.one_seq or None,
        masked_lm_prob=arguments.masked_lm_prob,
        whole_word=arguments.do_whole_word_mask or None,
        short_seq_prob=arguments.short_seq_prob,
        max_predictions_per_seq=arguments.max_predictions_per_seq,
        type_vocab_size=getattr(teacher_config, "type_vocab_size", 0),
    )
