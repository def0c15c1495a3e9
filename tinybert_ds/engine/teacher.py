"""The teacher: frozen, in eval mode, in half precision where the machine has it, in DeepSpeed's inference engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import deepspeed
import torch

from tinybert_ds.errors import ConfigError
from tinybert_ds.hardware import inference_dtype
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.types import Batch, EncoderOutput

Teacher = Callable[[Batch], EncoderOutput]
TeacherDtype = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def teacher_dtype(choice: TeacherDtype, device: torch.device) -> torch.dtype:
    """The dtype the teacher runs in.

    Args:
        choice: The user's; "auto" takes fp16 on a GPU, bf16 on a CPU with bf16 instructions, fp32 elsewhere.
        device: Where it runs.

    Raises:
        ConfigError: fp16 on a CPU.
    """
    if choice == "fp16" and device.type == "cpu":
        raise ConfigError("--teacher_dtype fp16 is not supported on this CPU; take auto, bf16 or fp32")
    if choice != "auto":
        return _DTYPES[choice]
    return inference_dtype(device)


def build_teacher(encoder: CapturingEncoder, dtype: torch.dtype) -> Teacher:
    """Hand the teacher to `deepspeed.init_inference`.

    Returns:
        A function from a batch to the states, queries, keys and logits that the encoder was asked to keep. It runs
        under `no_grad`, not `inference_mode`: autograd must be able to save its outputs for the losses.
    """
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    engine = deepspeed.init_inference(encoder.eval(), dtype=dtype, replace_with_kernel_inject=False)

    def teach(batch: Batch) -> EncoderOutput:
        with torch.no_grad():
            return engine(batch)

    return teach
