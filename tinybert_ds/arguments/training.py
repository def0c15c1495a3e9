"""The flags of all training commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinybert_ds.arguments.card import Published
from tinybert_ds.arguments.groups import OUTPUT_DIR, SEED, LayerLosses, Stage, Teacher
from tinybert_ds.arguments.option import like, machine, pace, place, result
from tinybert_ds.versions import is_importable


@dataclass(frozen=True, kw_only=True)
class TrainingArguments(Published, Stage):
    """What every training command takes."""

    output_dir: str = like(
        OUTPUT_DIR,
        help="Directory of the run: model, metrics.jsonl, run.json, checkpoints/, tensorboard/. A directory that holds "
        "the same run is resumed; one that holds anything else is refused.",
    )
    deepspeed_config: str | None = machine(
        "DeepSpeed JSON. Default: one of ds_configs/ that fits the machine (fp32 without ZeRO on CPU).",
        None,
        path=True,
        recipe=True,
    )
    seed: int = like(SEED)
    recipe: str | None = place(
        "Settings for this stage: a shipped recipe, such as paper/sst-2, or a YAML file; other flags win over it.",
        None,
        stage=("general", "finetune", "intermediate", "prediction", "joint", "vectors"),
        path=True,
        metavar="NAME|FILE",
    )
    train_batch_size: int = result(
        "Global batch: samples of one optimizer step over all ranks.",
        32,
        least=1,
        ds_key=("train_batch_size",),
        ds_follows=("train_micro_batch_size_per_gpu",),
    )
    gradient_accumulation_steps: int = machine(
        "Micro-batches of each rank in one optimizer step.",
        1,
        least=1,
        ds_key=("gradient_accumulation_steps",),
        ds_follows=("train_micro_batch_size_per_gpu",),
    )
    learning_rate: float = result(
        "Peak learning rate of AdamW.", 5e-05, above=0, ds_key=("optimizer.params.lr", "scheduler.params.warmup_max_lr")
    )
    weight_decay: float = result(
        "Decoupled weight decay (never on biases and LayerNorm).",
        0.01,
        least=0,
        ds_key=("optimizer.params.weight_decay",),
    )
    max_grad_norm: float = result(
        "Clip the global gradient norm to this; 0 switches clipping off.", 1.0, least=0, ds_key=("gradient_clipping",)
    )
    warmup_proportion: float | None = result(
        "Share of the steps over which the learning rate rises linearly. Default: 0.1, or 0 with a constant schedule.",
        None,
        identity="warmup",
        least=0,
        below=1,
        ds_follows=("scheduler.params.warmup_num_steps", "scheduler.params.warmup_min_lr"),
    )
    lr_schedule: Literal["auto", "linear", "constant", "cosine", "warmup_stable_decay"] = result(
        "After the warm-up: decay linearly to 0, stay constant, decay to 0 along a half cosine, or stay constant and "
        "decay linearly to 0 over the last fifth of the steps. auto: the scheduler of the DeepSpeed config if it "
        "has one, else constant in the intermediate stage of task distillation and linear elsewhere, as published.",
        "auto",
        identity="schedule",
    )
    num_train_epochs: float = pace(
        "Passes over the data.", 3.0, above=0, hyper_parameter=True, ds_follows=("scheduler.params.total_num_steps",)
    )
    max_steps: int | None = pace(
        "Optimizer steps; overrides --num_train_epochs.",
        None,
        least=1,
        hyper_parameter=True,
        ds_follows=("scheduler.params.total_num_steps",),
    )
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = place(
        "Where the figures of metrics.jsonl are shown too, under the same names; all but the first are packages that "
        "you install.",
        ["tensorboard"],
    )
    logging_steps: int = pace("Steps between two lines of metrics.jsonl, TensorBoard and the console.", 10, least=1)
    save_steps: int | None = pace(
        "Steps between two resumable checkpoints. Default: 1000, or the published --eval_step in general distillation.",
        None,
        least=1,
    )
    save_total_limit: int = pace("Resumable checkpoints that are kept.", 2, least=1)
    resume: str = place(
        "auto: go on from the newest complete checkpoint in --output_dir, if any; never: refuse a directory that holds "
        "a run; PATH: go on from this checkpoint of the run and give up the newer ones; the same PATH once more goes "
        "on from where that has led.",
        "auto",
        path=True,
        metavar="auto|never|PATH",
    )
    preempt_grace_seconds: float = pace(
        "Time from SIGTERM, SIGUSR1 or SIGHUP to the end of the run, in which it finishes its step and saves; its exit "
        "code is 75 then. More than 30 is refused under DeepSpeed's launcher, which kills its ranks after that time.",
        25.0,
        above=0,
    )
    stall_timeout_seconds: float = pace(
        "A rank that completes no step for so long writes its stacks to stalls/ in --output_dir and ends. Longer than "
        "an evaluation and a save together.",
        1800.0,
        above=0,
    )
    gradient_checkpointing: bool = machine(
        "Keep only the layers' inputs of the model in training and compute the rest again in the backward pass: less "
        "memory, the same numbers, and the time of one more forward pass of it.",
        False,
    )
    compile: bool = machine("Run teacher and student through torch.compile; no effect on a CPU.", False)
    cuda_graphs: Literal["auto", "off"] = machine(
        "Record what a step launches on a GPU for each shape of batch, and replay it: the same numbers with less "
        "waiting for the host. auto does so wherever it can and says where it cannot; no effect on a CPU.",
        "auto",
    )
    fp16: bool = machine("Take the shipped fp16 DeepSpeed config (a --deepspeed_config decides for itself).", False)

    @property
    def schedule(self) -> str:
        """Shape of the learning rate after the warm-up: any of --lr_schedule but "auto"."""
        return "linear" if self.lr_schedule == "auto" else self.lr_schedule

    @property
    def warmup(self) -> float:
        """Share of the steps that are warm-up."""
        if self.warmup_proportion is not None:
            return self.warmup_proportion
        return 0.0 if self.schedule == "constant" else 0.1

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two resumable checkpoints."""
        return self.save_steps or 1000

    def problems(self) -> list[str]:
        found = super().problems()
        if self.fp16 and self.no_cuda:
            found.append("--fp16 and --no_cuda contradict each other: this CPU path has no fp16; drop one of them")
        missing = [name for name in self.report_to if not is_importable(name)]
        if missing:
            found.append(
                f"--report_to {' '.join(missing)}: not installed; pip install {' '.join(missing)} into the environment "
                "of this program, or leave it out"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class DistillationArguments(Teacher, LayerLosses, TrainingArguments):
    """What the two distillation commands share."""
