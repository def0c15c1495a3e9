"""How a teacher of the prediction stage reads the rows where its tokeniser is not the student's: as its own tokens.

N rows.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerFast

from tinybert_ds.arguments import TaskDistillArguments
from tinybert_ds.data.row_padding import choose_padding
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.task_tokens import judge_rows, load_rows
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types, tokenizer_fingerprint
from tinybert_ds.errors import ModelError
from tinybert_ds.stages.task_data import TaskData
from tinybert_ds.targets import target_of

logger = logging.getLogger(__name__)


def own_tokenizer(
    student: PreTrainedTokenizerFast, teacher: str, lower_case: bool | None
) -> PreTrainedTokenizerFast | None:
    """Return the teacher's tokeniser where it reads texts in another way than the student's, else None.

    Args:
        lower_case: Forced casing of both; of a teacher with a tokeniser of its own only where nothing else states it.

    Raises:
        ModelError: See `load_tokenizer`.
    """
    found = load_tokenizer(teacher, lower_case)
    if tokenizer_fingerprint(found) == tokenizer_fingerprint(student):
        return None
    if lower_case is None:
        return found
    try:
        return load_tokenizer(teacher, None)
    except ModelError:  # a vocab.txt alone: the flag is all that is known of its casing
        return found


def read_for_teacher(
    arguments: TaskDistillArguments, task: TaskData, tokenizer: PreTrainedTokenizerFast, config: Any
) -> TaskData:
    """Return the training rows of a task as the teacher's tokens, row by row those of the student.

    Args:
        config: The teacher's; one without padding gets some, which is nothing but a mark where rows end.

    Raises:
        ConfigError, DataError: See `load_rows` and `judge_rows`.
    """
    length = arguments.teacher_max_seq_length or task.max_seq_length
    rows = load_rows(
        task.spec,
        arguments.data_dir,
        "train",
        tokenizer,
        length,
        home=task.cache_home,
        first=task.world.local_rank == 0,
    )
    assert rows.num_units == task.splits["train"].num_units, "student and teacher must read the same rows, or words"
    path = task.spec.split_path(arguments.data_dir, "train")
    if warning := judge_rows(rows, tokenizer, path, allow_unknown=arguments.allow_unknown):
        logger.warning("the teacher: %s", warning)
    cut = float((rows.lengths == length).mean())
    logger.info(
        "the teacher reads the rows by its own tokeniser: %.1f tokens a row, at most %d%s",
        rows.lengths.mean(),
        length,
        f" ({cut:.1%} of the rows are as long, and may be cut)" if cut else "",
    )
    return replace(
        task,
        splits={"train": rows},
        max_seq_length=length,
        pad_id=choose_padding(config, tokenizer, [rows]),
        token_types=returns_token_types(tokenizer),
    )


def reading_problems(
    arguments: TaskDistillArguments, spec: TaskSpec, tokenizer: PreTrainedTokenizerFast | None, world_size: int
) -> list[str]:
    """Return what keeps a teacher with a tokeniser of its own from answering about the tokens of the student's rows."""
    unit = target_of(spec).unit
    if tokenizer is None or unit == "row":
        return []
    found = f"--teacher_model {arguments.teacher_model} has a tokeniser of its own"
    if unit == "piece":
        return [
            f"{found}, and task {spec.name} is answered with tokens of a context, which both must read alike; give a "
            "teacher with the student's tokeniser"
        ]
    together = arguments.teacher_engine == "zero3" and world_size > 1
    given = {"--no_teacher_cache": arguments.no_teacher_cache, "--teacher_engine zero3": together}
    return [
        f"{flag} asks the teacher about the student's batches, but {found}, by which the sentences of task {spec.name} "
        "fall into other rows; what it says of all words is kept beforehand instead: leave the flag out"
        for flag, is_given in given.items()
        if is_given
    ]


def length_problems(arguments: TaskDistillArguments, tokenizer: PreTrainedTokenizerFast | None) -> list[str]:
    """Flags about a teacher's own tokeniser where it has none."""
    if tokenizer is not None or arguments.teacher_max_seq_length is None:
        return []
    return [
        f"--teacher_max_seq_length {arguments.teacher_max_seq_length} is for a teacher with a tokeniser of its own; "
        "there is none here: see --max_seq_length"
    ]
