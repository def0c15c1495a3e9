"""The teacher of the prediction stage: looked up where its logits are kept, asked anew for every batch otherwise."""

from __future__ import annotations

import logging
from functools import partial
from typing import cast

from transformers import PreTrainedTokenizerFast

from tinybert_ds.arguments import TaskDistillArguments
from tinybert_ds.data.batching import RowLayout
from tinybert_ds.data.row_padding import prepare_to_read
from tinybert_ds.engine.other_tokens import reading_own_rows
from tinybert_ds.engine.run.plan import count_steps
from tinybert_ds.engine.teacher import Teacher, build_teacher
from tinybert_ds.engine.teacher_cache import kept_teacher, logits_directory, logits_key
from tinybert_ds.hardware import inference_dtype
from tinybert_ds.models.capture import has_token_types
from tinybert_ds.models.compilation import compile_encoders
from tinybert_ds.models.pretrained import load_headed, read_config
from tinybert_ds.stages.evaluate import logits_encoder
from tinybert_ds.stages.task_data import TaskData
from tinybert_ds.stages.teacher_reading import read_for_teacher
from tinybert_ds.targets import target_of

logger = logging.getLogger(__name__)


def logits_teacher(
    arguments: TaskDistillArguments,
    task: TaskData,
    fingerprint: str,
    *,
    token_types: bool,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Teacher:
    """Return what gives the teacher's logits for a batch of the training split; called on all ranks.

    They are computed once for all rows and kept for other runs, unless `--no_teacher_cache` is given, the run sees no
    whole epoch, or the teacher is split among the ranks, which then have to ask it together. `token_types`: whether the
    teacher's tokeniser returns them. `tokenizer`: the teacher's, where it has one of its own, by which it reads the
    rows; logits belong to rows, whatever these are made of, or to words, and are then kept in any case.
    """
    config = read_config(cast(str, arguments.teacher_model), role="teacher")
    own, offsets = tokenizer is not None, task.splits["train"].unit_offsets
    word_by_word = own and target_of(task.spec).by_token  # the words are the same ones, the rows they stand in are not
    if tokenizer is not None:
        task = read_for_teacher(arguments, task, tokenizer, config)
    world, rows = task.world, task.splits["train"]
    source = task.source("train", arguments.train_batch_size, seed=arguments.seed, shuffle=True)
    steps = count_steps(source, max_steps=arguments.max_steps, num_epochs=arguments.num_train_epochs)
    in_lockstep = arguments.teacher_engine == "zero3" and world.size > 1  # the ranks' shares of the rows are not
    # Decided by the command alone: a run's numbers must not change on resume because another one has filled the cache.
    live = partial(_live_teacher, arguments, task, token_types)
    asked_anew = arguments.no_teacher_cache or in_lockstep or steps < source.steps_in_epoch(0)
    if asked_anew and not word_by_word:
        layout = RowLayout("valid", task.max_seq_length, task.pad_id)
        return reading_own_rows(live(), rows, layout, world.device) if own else live()
    key = logits_key(
        teacher=fingerprint,
        data=rows.fingerprint,
        max_seq_length=task.max_seq_length,
        dtype=str(inference_dtype(world.device, arguments.teacher_dtype)),
        types=token_types if rows.has_second_segments and has_token_types(config) else None,
        padding=(task.pad_id, config.pad_token_id),
        rotary=getattr(config, "rope_parameters", None) is not None,
    )
    directory = logits_directory(task.cache_home, key)
    batches_of = partial(task.source, "train", seed=0, shuffle=False)
    return kept_teacher(directory, rows.num_units, live, batches_of, world, offsets=offsets)


def _live_teacher(arguments: TaskDistillArguments, task: TaskData, token_types: bool) -> Teacher:
    device = task.world.device
    head = target_of(task.spec).head(task.spec)
    model = load_headed(cast(str, arguments.teacher_model), head, role="teacher")
    prepare_to_read(model, task.pad_id)
    encoder = logits_encoder(model, task, token_types=token_types)
    if arguments.compile:
        compile_encoders((encoder,), device)
    dtype = inference_dtype(device, arguments.teacher_dtype)
    logger.info("teacher in %s", dtype)
    return build_teacher(encoder, dtype, arguments.teacher_engine)
