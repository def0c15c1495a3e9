"""What a fine-tuned teacher says of augmented rows.

R rows, C classes.

Whether a variant stays must not depend on how the work is divided, on any machine. In half precision a row's
probabilities depend on what else is in its batch, and they differ from one kind of CPU or GPU to the next. So half
precision decides only where it is far from the threshold; what is near is asked again in float32, and there what is
nearer than float32 can tell counts as sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tinybert_ds.data.task_batches import TaskSource, encode
from tinybert_ds.data.task_files import Examples
from tinybert_ds.data.task_spec import TaskSpec
from tinybert_ds.data.tokenizer import load_tokenizer, returns_token_types, special_ids
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.labels import match_labels
from tinybert_ds.models.packed_linear import pack_linear_layers
from tinybert_ds.models.pretrained import load_classifier, read_config
from tinybert_ds.models.probe import position_limit
from tinybert_ds.types import move

_BATCH_ROWS = 64
NEAR = 0.5
"""Log-odds from the threshold within which half precision does not decide. In a MiniLM of six layers whose log-odds
were ±4, bfloat16 was off by 0.08 (root mean square) and by 0.28 at most, on 800 sentences of SST-2."""
FLOAT32_NOISE = 1e-6
"""Of a probability. A confidence of 1 is otherwise reached or missed by the order of a sum."""


class TeacherJudge:
    """Gives the probabilities of the task's labels for rows.

    Args:
        directory: of the fine-tuned teacher, with its tokeniser. Rows are cut to what it can read.
        stated_labels: names of the teacher's outputs in its order, where its config says nothing.
        dtype: of the teacher. Unless it is float32, a second copy in float32 decides about near ties.

    Raises:
        ModelError: no teacher of this task there.
    """

    def __init__(
        self,
        directory: str | Path,
        spec: TaskSpec,
        *,
        lower_case: bool | None,
        stated_labels: Sequence[str] | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        config = read_config(directory, role="teacher")
        self._columns = list(match_labels(config, spec.label_names, spec.label_aliases, stated_labels))
        self._tokenizer = load_tokenizer(directory, lower_case)
        types = returns_token_types(self._tokenizer)

        def teacher_in(precision: torch.dtype) -> CapturingEncoder:
            model = load_classifier(directory, label_names=spec.label_names, role="teacher", head="required")
            encoder = CapturingEncoder(model, states=(), attention_layers=(), logits=True, token_types=types)
            encoder.to(device=device, dtype=precision)
            pack_linear_layers(encoder, device)
            return encoder

        self._encoder = teacher_in(dtype)
        self._exact = self._encoder if dtype is torch.float32 else teacher_in(torch.float32)
        limit = position_limit(self._encoder.model)
        self._max_seq_length = min(spec.max_seq_length, limit or spec.max_seq_length)
        self._device = device

    def probabilities(self, texts: tuple[list[str], ...], *, near: float | None = None) -> NDArray[np.float32]:
        """Return (R, C) probabilities in the order of the task's labels, of R texts or pairs of texts.

        Args:
            texts: the rows; what is given together is computed together.
            near: a threshold. Rows whose likeliest label has a probability near it are judged in float32.
        """
        result = self._judged(self._encoder, texts)
        if near is not None and self._exact is not self._encoder:
            close = np.flatnonzero(is_near(result, near))
            if len(close):
                result[close] = self._judged(self._exact, tuple([column[row] for row in close] for column in texts))
        return result

    @torch.inference_mode()
    def _judged(self, encoder: CapturingEncoder, texts: tuple[list[str], ...]) -> NDArray[np.float32]:
        encoded = encode(Examples(Path(), texts, None), self._tokenizer, self._max_seq_length)
        source = TaskSource(
            encoded,
            global_batch_size=_BATCH_ROWS,
            max_seq_length=self._max_seq_length,
            seed=0,
            padding="valid",
            pad_id=special_ids(self._tokenizer).pad,
            shuffle=False,
        )
        result = np.zeros((len(encoded), len(self._columns)), dtype=np.float32)
        for position in range(source.steps_in_epoch(0)):
            (batch,) = source.micro_batches(0, position, rank=0, world_size=1, accumulation=1)
            logits = encoder(move(batch, self._device)).logits[:, self._columns].float()
            result[batch.sample_ids.numpy()] = logits.softmax(dim=-1).cpu().numpy()
        return result


def is_near(probabilities: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Return for each row (R, C) whether its likeliest label is too near a threshold for half precision to decide."""
    if threshold <= 0:
        return np.zeros(len(probabilities), dtype=bool)
    ordered = np.sort(probabilities.astype(np.float64), axis=1)
    with np.errstate(divide="ignore"):  # not 1 minus the likeliest: that is 0 long before the others are
        log_odds = np.log(ordered[:, -1]) - np.log(ordered[:, :-1].sum(axis=1))
    return np.abs(log_odds - np.log(threshold / max(1 - threshold, FLOAT32_NOISE))) < NEAR


def is_sure(probabilities: NDArray[np.float32], threshold: float) -> bool:
    """Return whether the likeliest label (C,) reaches a threshold, as far as float32 can tell."""
    return float(probabilities.max()) >= threshold - FLOAT32_NOISE
