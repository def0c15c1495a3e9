"""The arguments that training commands share."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal


def option(help: str, default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    """Return a dataclass field that is a command-line flag with its help."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **metadata})
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """What every training command takes."""

    output_dir: str = option(
        "Directory of the run: model, metrics.jsonl, run.json, checkpoints/, tensorboard/. A directory that holds the "
        "same run is resumed; one that holds anything else is refused."
    )
    deepspeed_config: str | None = option(
        "DeepSpeed JSON. Default: one of ds_configs/ that fits the machine (fp32 without ZeRO on CPU).", None
    )
    deepspeed: bool = option("Accepted for habit's sake: training always goes through DeepSpeed.", False)
    local_rank: int = option("Set by the `deepspeed` launcher.", -1)
    recipe: str | None = option(
        "Settings for this stage: a shipped recipe, such as paper/sst-2, or a YAML file; other flags win over it.", None
    )
    seed: int = option("Seed of the order of the data, masking, dropout and new weights.", 42)
    train_batch_size: int = option("Global batch: samples of one optimizer step over all ranks.", 32)
    gradient_accumulation_steps: int = option("Micro-batches of each rank in one optimizer step.", 1)
    eval_batch_size: int = option("Samples of one evaluation forward over all ranks.", 32)
    learning_rate: float = option("Peak learning rate of AdamW.", 5e-5)
    weight_decay: float = option("Decoupled weight decay (never on biases and LayerNorm).", 0.01)
    max_grad_norm: float = option("Clip the global gradient norm to this; 0 switches clipping off.", 1.0)
    warmup_proportion: float | None = option(
        "Share of the steps over which the learning rate rises linearly. Default: 0.1, or 0 with a constant schedule.",
        None,
    )
    lr_schedule: Literal["auto", "linear", "constant"] = option(
        "After the warm-up: decay linearly to 0, or stay constant. auto: the scheduler of the DeepSpeed config if it "
        "has one, else constant in the intermediate stage of task distillation and linear elsewhere, as published.",
        "auto",
    )
    num_train_epochs: float = option("Passes over the data.", 3.0)
    max_steps: int | None = option("Optimizer steps; overrides --num_train_epochs.", None)
    logging_steps: int = option("Steps between two lines of metrics.jsonl, TensorBoard and the console.", 10)
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "Least weighty messages that rank 0 shows; from warning on, no lines of progress and no bars.", "info"
    )
    save_steps: int | None = option(
        "Steps between two resumable checkpoints. Default: 1000, or the published --eval_step in general distillation.",
        None,
    )
    save_total_limit: int = option("Resumable checkpoints that are kept.", 2)
    resume: str = option(
        "auto: go on from the newest complete checkpoint in --output_dir, if any; never: refuse a directory that "
        "holds a run; PATH: go on from this checkpoint of the run and give up the newer ones; the same PATH once more "
        "goes on from where that has led.",
        "auto",
    )
    preempt_grace_seconds: float = option(
        "Time from SIGTERM or SIGUSR1 to the end of the run, in which it finishes its step and saves; its exit code is "
        "75 then. More than 30 is refused under DeepSpeed's launcher, which kills its ranks after that time.",
        25.0,
    )
    stall_timeout_seconds: float = option(
        "A rank that completes no step for so long writes its stacks to stalls/ in --output_dir and ends. Longer than "
        "an evaluation and a save together.",
        1800.0,
    )
    do_lower_case: bool = option("Force lower-casing. Default: what the model directory says.", False)
    no_lower_case: bool = option("Force keeping capitals. Default: what the model directory says.", False)
    no_cuda: bool = option("Train on the CPU even where there is a GPU.", False)
    no_onednn_matmul: bool = option(
        "On a CPU, leave float32 matrix products to torch's default library. Otherwise they go through oneDNN where a "
        "probe at the start finds them as accurate.",
        False,
    )
    gradient_checkpointing: bool = option(
        "Keep only the layers' inputs of the model in training and compute the rest again in the backward pass: less "
        "memory, the same numbers, and the time of one more forward pass of it.",
        False,
    )
    compile: bool = option("Run teacher and student through torch.compile; no effect on a CPU.", False)
    fp16: bool = option("Take the shipped fp16 DeepSpeed config (a --deepspeed_config decides for itself).", False)

    @property
    def lower_case(self) -> bool | None:
        """Forced casing of the tokeniser, or None for the model directory's own."""
        return True if self.do_lower_case else (False if self.no_lower_case else None)

    @property
    def recipe_section(self) -> str:
        """The section of a recipe that is for this command and stage."""
        return "general"

    @property
    def schedule(self) -> str:
        """Shape of the learning rate after the warm-up: "linear" or "constant"."""
        return "linear" if self.lr_schedule == "auto" else self.lr_schedule

    @property
    def warmup(self) -> float:
        """Share of the steps that are warm-up."""
        if self.warmup_proportion is not None:
            return self.warmup_proportion
        return 0.1 if self.schedule == "linear" else 0.0

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two resumable checkpoints."""
        return self.save_steps or 1000

    def problems(self) -> list[str]:
        """Everything that is wrong with the values by themselves, one sentence each."""
        found = []
        positive = ("train_batch_size", "gradient_accumulation_steps", "eval_batch_size", "logging_steps")
        optional = ("max_steps", "save_steps", "save_total_limit", "eval_step", "eval_steps", "max_seq_length")
        for name in (*positive, *optional):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                found.append(f"--{name} is {value}; it must be at least 1")
        found += [
            f"--{name} is {value}; it must be a finite number"
            for name, value in vars(self).items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        if self.seed < 0:
            found.append(f"--seed is {self.seed}; it must not be negative")
        if not self.learning_rate > 0:
            found.append(f"--learning_rate is {self.learning_rate}; it must be above 0")
        if not 0 <= self.warmup < 1:
            found.append(f"--warmup_proportion is {self.warmup_proportion}; it must be in [0, 1)")
        if not self.num_train_epochs > 0:
            found.append(f"--num_train_epochs is {self.num_train_epochs}; it must be above 0")
        for name in ("weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                found.append(f"--{name} is {getattr(self, name)}; it must not be negative")
        if self.stall_timeout_seconds <= 0:
            found.append(f"--stall_timeout_seconds is {self.stall_timeout_seconds:g}; it must be above 0")
        if self.do_lower_case and self.no_lower_case:
            found.append("--do_lower_case and --no_lower_case contradict each other; give one of them")
        if self.fp16 and self.no_cuda:
            found.append("--fp16 and --no_cuda contradict each other: this CPU path has no fp16; drop one of them")
        return found


@dataclass(frozen=True, kw_only=True)
class DistillationArguments(TrainingArguments):
    """What the two distillation commands share."""

    teacher_dtype: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "Precision of the frozen teacher. auto: fp16 on GPU, bf16 on a CPU that computes it, fp32 elsewhere.", "auto"
    )
    teacher_engine: Literal["inference", "zero3"] = option(
        "inference: every rank holds the whole teacher; zero3: its parameters are split among the ranks and gathered "
        "layer by layer, for teachers that do not fit.",
        "inference",
    )
    overlap_teacher: bool = option(
        "On a GPU, let the teacher work on the next batch in a stream of its own while the student works on this one; "
        "the teacher's outputs of two batches are then held at a time.",
        False,
    )
    attention_weight: float = option("Factor of the attention losses; 0 leaves them out.", 1.0)
    hidden_weight: float = option("Factor of the losses of the layers' hidden states; 0 leaves them out.", 1.0)
    embedding_weight: float = option("Factor of the loss of the embeddings; 0 leaves it out.", 1.0)
    layer_map: str = option(
        "Teacher states for the student states 0..M (0: embeddings): uniform, last, first, or a list such as 0,4,8,12.",
        "uniform",
    )
    projection: Literal["per_layer", "shared", "none"] = option(
        "Linear maps from student to teacher states: one for each state, one for all, or none (equal widths).",
        "per_layer",
    )
    padding: Literal["valid", "reference"] = option(
        "valid: losses count real tokens only, batches are padded to their own longest row; reference: the published "
        "normalisation, padded positions and all, batches padded to --max_seq_length.",
        "valid",
    )

    @property
    def loss_weights(self) -> dict[str, float]:
        """Factors of the losses of hidden layers, by the names of `objective.LossWeights`."""
        return {"attention": self.attention_weight, "hidden": self.hidden_weight, "embedding": self.embedding_weight}

    def problems(self) -> list[str]:
        found = super().problems()
        for name, weight in self.loss_weights.items():
            if not 0 <= weight < math.inf:
                found.append(f"--{name}_weight is {weight}; it must not be negative")
        if not any(self.loss_weights.values()):
            found.append("--attention_weight, --hidden_weight and --embedding_weight are all 0: nothing is learned")
        if self.overlap_teacher and self.teacher_engine == "zero3":
            found.append(
                "--overlap_teacher and --teacher_engine zero3 contradict each other: two streams would gather "
                "parameters at a time, in no fixed order; drop one of them"
            )
        return found
