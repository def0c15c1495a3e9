"""What a fine-tuned teacher says of augmented rows.

R rows, C classes.
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
from tinybert_ds.data.tokenizer import load_tokenizer, special_ids
from tinybert_ds.models.capture import CapturingEncoder, takes_token_types
from tinybert_ds.models.labels import match_labels
from tinybert_ds.models.pretrained import load_classifier, read_config
from tinybert_ds.models.probe import position_limit

_BATCH_ROWS = 64


class TeacherJudge:
    """Gives the probabilities of the task's labels for rows.

    Args:
        directory: of the fine-tuned teacher, with its tokeniser. Rows are cut to what it can read.
        stated_labels: names of the teacher's outputs in its order, where its config says nothing.

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
        model = load_classifier(directory, label_names=spec.label_names, role="teacher", head="required")
        self._type_vocab_size = 2 if takes_token_types(model) else 1
        self._encoder = CapturingEncoder(model, states=(), attention_layers=(), logits=True)
        self._encoder.to(device=device, dtype=dtype)
        self._tokenizer = load_tokenizer(directory, lower_case)
        limit = position_limit(model)
        self._max_seq_length = min(spec.max_seq_length, limit or spec.max_seq_length)
        self._device = device

    @torch.inference_mode()
    def probabilities(self, texts: tuple[list[str], ...]) -> NDArray[np.float32]:
        """Return (R, C) probabilities in the order of the task's labels, of R texts or pairs of texts."""
        encoded = encode(Examples(Path(), texts, None), self._tokenizer, self._max_seq_length)
        source = TaskSource(
            encoded,
            global_batch_size=_BATCH_ROWS,
            max_seq_length=self._max_seq_length,
            seed=0,
            padding="valid",
            pad_id=special_ids(self._tokenizer).pad,
            shuffle=False,
            type_vocab_size=self._type_vocab_size,
        )
        result = np.zeros((len(encoded), len(self._columns)), dtype=np.float32)
        for position in range(source.steps_in_epoch(0)):
            (batch,) = source.micro_batches(0, position, rank=0, world_size=1, accumulation=1)
            moved = batch._replace(
                input_ids=batch.input_ids.to(self._device),
                attention_mask=batch.attention_mask.to(self._device),
                token_type_ids=batch.token_type_ids.to(self._device),
            )
            logits = self._encoder(moved).logits[:, self._columns].float()
            result[batch.sample_ids.numpy()] = logits.softmax(dim=-1).cpu().numpy()
        return result
