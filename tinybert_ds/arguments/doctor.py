"""The arguments of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinybert_ds.arguments.general import GeneralDistillArguments
from tinybert_ds.arguments.groups import HOSTFILE, SSH_PORT, Casing, Corpora
from tinybert_ds.arguments.option import like, machine

_JOB = GeneralDistillArguments.__dataclass_fields__


@dataclass(frozen=True, kw_only=True)
class DoctorArguments(Corpora, Casing):
    """Look at this machine, or at every host of a hostfile, and at the job if one is described. Exit code 1 when it
    could not run."""

    prog = "python -m tinybert_ds.doctor"

    hostfile: str | None = like(HOSTFILE, help="Look at all of these hosts, by ssh.")
    ssh_port: int | None = like(SSH_PORT)
    ranks: int | None = machine("Ranks on this machine, without --hostfile. Default: its GPUs, or 1.", None, least=1)
    teacher_model: str | None = like(_JOB["teacher_model"], None)
    student_model: str | None = like(
        _JOB["student_model"], None, help="Directory, config.json or shipped name of the student.", repeat=False
    )
    student_tokenizer: str | None = like(_JOB["student_tokenizer"])
    layer_map: str = like(_JOB["layer_map"], stage=())
    projection: Literal["per_layer", "shared", "none"] = like(_JOB["projection"], stage=())
    attention_loss: Literal["scores", "relations", "relations_kl"] = like(_JOB["attention_loss"], stage=())
    attention_weight: float = like(_JOB["attention_weight"], stage=())
    pregenerated_data: list[str] = like(_JOB["pregenerated_data"], [])
    output_dir: str | None = like(_JOB["output_dir"], None, help="Where the run is to be kept.")
    deepspeed_config: str | None = like(_JOB["deepspeed_config"], help="Look at this one instead of the shipped ones.")
    teacher_engine: Literal["inference", "zero3"] = like(_JOB["teacher_engine"])
    train_batch_size: int = like(_JOB["train_batch_size"])
    gradient_accumulation_steps: int = like(_JOB["gradient_accumulation_steps"])
    gradient_checkpointing: bool = like(_JOB["gradient_checkpointing"])
    max_seq_length: int | None = like(_JOB["max_seq_length"])
