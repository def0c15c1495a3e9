"""The teacher: frozen, in eval mode, in half precision where the machine has it, in an engine of DeepSpeed's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from tinybert_ds.models.cuda_layers import use_cuda_layers
from tinybert_ds.models.packed_linear import pack_linear_layers
from tinybert_ds.types import Batch, EncoderOutput

Teacher = Callable[[Batch], EncoderOutput]
TeacherEngine = Literal["inference", "zero3"]


def build_teacher(encoder: nn.Module, dtype: torch.dtype, kind: TeacherEngine = "inference") -> Teacher:
    """Freeze the teacher and hand it to DeepSpeed.

    Args:
        encoder: Its parameters are frozen and cast in place.
        kind: "inference": `deepspeed.init_inference`, a whole copy on every rank. "zero3": an engine without an
            optimizer whose parameters are split among the ranks and gathered layer by layer, for teachers that do not
            fit; every rank must then call the teacher equally often.

    Returns:
        A function from a batch to the states, queries, keys and logits that the encoder was asked to keep. It runs
        under `no_grad`, not `inference_mode`: autograd must be able to save its outputs for the losses.
    """
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    encoder.eval()
    frequencies = _rotary_frequencies(encoder)
    if kind == "zero3":
        engine = _zero3_engine(encoder, dtype)
    else:
        engine = deepspeed.init_inference(encoder, dtype=dtype, replace_with_kernel_inject=False)
        device = torch.device(get_accelerator().current_device_name())
        pack_linear_layers(encoder, device)
        use_cuda_layers(encoder, device)
    for name, value in frequencies.items():
        parent, _, leaf = name.rpartition(".")
        setattr(encoder.get_submodule(parent), leaf, value.to(encoder.get_buffer(name).device))

    return EngineTeacher(engine, encoder)


class EngineTeacher:
    """A teacher's engine, asked under `no_grad`, and the encoder that it runs."""

    def __init__(self, engine: Any, encoder: nn.Module) -> None:
        self._engine = engine
        self.encoder = encoder

    def __call__(self, batch: Batch) -> EncoderOutput:
        """Return the states, queries, keys, values and logits that the encoder was asked to keep."""
        with torch.no_grad():
            return self._engine(batch)


def _rotary_frequencies(encoder: nn.Module) -> dict[str, Tensor]:
    """The frequencies of rotary positions, by name: rounded to half precision they would turn far tokens elsewhere."""
    found = (item for item in encoder.named_buffers() if item[0].endswith("inv_freq"))
    return {name: buffer.detach().clone() for name, buffer in found}


def _zero3_engine(encoder: nn.Module, dtype: torch.dtype) -> Any:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # asked for, but of no meaning without an optimizer
        "zero_optimization": {"stage": 3},
        "steps_per_print": 2**31 - 1,
    }
    if dtype is not torch.float32:
        config["bf16" if dtype is torch.bfloat16 else "fp16"] = {"enabled": True}
    encoder.to(dtype)
    deepspeed.zero.Init(module=encoder, config_dict_or_path=config, dtype=dtype)  # one parameter at a time: never whole
    device = torch.device(get_accelerator().current_device_name())
    for buffer in encoder.buffers():
        buffer.data = buffer.data.to(device)
    engine, *_ = deepspeed.initialize(model=encoder, config=config, dist_init_required=False)
    engine.eval()
    return engine
