"""The command-line arguments of the training commands: what to learn.

One frozen dataclass for each command; a field's help is the command's help. How to run it (ZeRO stage, precision,
offload) is said in the DeepSpeed JSON, what the network is in `config.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from transformers import HfArgumentParser

from tinybert_ds.errors import ConfigError


def _option(help: str, default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **metadata})
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class TrainingArguments:
    """What every training command takes."""

    output_dir: str = _option(
        "Directory of the run: model, metrics.jsonl, run.json, checkpoints/, tensorboard/. A directory that holds the "
        "same run is resumed; one that holds anything else is refused."
    )
    deepspeed_config: str | None = _option(
        "DeepSpeed JSON. Default: one of ds_configs/ that fits the machine (fp32 without ZeRO on CPU).", None
    )
    deepspeed: bool = _option("Accepted for habit's sake: training always goes through DeepSpeed.", False)
    local_rank: int = _option("Set by the `deepspeed` launcher.", -1)
    seed: int = _option("Seed of the order of the data, masking, dropout and new weights.", 42)
    train_batch_size: int = _option("Global batch: samples of one optimizer step over all ranks.", 32)
    gradient_accumulation_steps: int = _option("Micro-batches of each rank in one optimizer step.", 1)
    eval_batch_size: int = _option("Samples of one evaluation forward over all ranks.", 32)
    learning_rate: float = _option("Peak learning rate of AdamW.", 5e-5)
    weight_decay: float = _option("Decoupled weight decay (never on biases and LayerNorm).", 0.01)
    max_grad_norm: float = _option("Clip the global gradient norm to this; 0 switches clipping off.", 1.0)
    warmup_proportion: float | None = _option(
        "Share of the steps over which the learning rate rises linearly. Default: 0.1, or 0 with a constant schedule.",
        None,
    )
    lr_schedule: Literal["auto", "linear", "constant"] = _option(
        "After the warm-up: decay linearly to 0, or stay constant. auto: constant in the intermediate stage of task "
        "distillation, linear elsewhere, as published.",
        "auto",
    )
    num_train_epochs: float = _option("Passes over the data.", 3.0)
    max_steps: int | None = _option("Optimizer steps; overrides --num_train_epochs.", None)
    logging_steps: int = _option("Steps between two lines of metrics.jsonl and TensorBoard.", 10)
    save_steps: int | None = _option(
        "Steps between two resumable checkpoints. Default: 1000, or the published --eval_step in general distillation.",
        None,
    )
    save_total_limit: int = _option("Resumable checkpoints that are kept.", 2)
    resume: str = _option(
        "auto: go on from the newest complete checkpoint in --output_dir, if any; never: refuse a directory that "
        "holds a run; PATH: go on from this checkpoint of the run.",
        "auto",
    )
    do_lower_case: bool = _option("Force lower-casing. Default: what the model directory says.", False)
    no_lower_case: bool = _option("Force keeping capitals. Default: what the model directory says.", False)
    no_cuda: bool = _option("Train on the CPU even where there is a GPU.", False)
    no_onednn_matmul: bool = _option(
        "On a CPU, leave float32 matrix products to torch's default library. Otherwise they go through oneDNN where a "
        "probe at the start finds them as accurate.",
        False,
    )
    compile: bool = _option("Run teacher and student through torch.compile; no effect on a CPU.", False)
    fp16: bool = _option("Take the shipped fp16 DeepSpeed config (a --deepspeed_config decides for itself).", False)

    @property
    def lower_case(self) -> bool | None:
        """Forced casing of the tokeniser, or None for the model directory's own."""
        return True if self.do_lower_case else (False if self.no_lower_case else None)

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
        if self.do_lower_case and self.no_lower_case:
            found.append("--do_lower_case and --no_lower_case contradict each other; give one of them")
        if self.fp16 and self.no_cuda:
            found.append("--fp16 and --no_cuda contradict each other: this CPU path has no fp16; drop one of them")
        return found


@dataclass(frozen=True, kw_only=True)
class DistillationArguments(TrainingArguments):
    """What the two distillation commands share."""

    teacher_dtype: Literal["auto", "fp32", "bf16", "fp16"] = _option(
        "Precision of the frozen teacher. auto: fp16 on GPU, bf16 on a CPU that computes it, fp32 elsewhere.", "auto"
    )
    overlap_teacher: bool = _option(
        "On a GPU, let the teacher work on the next batch in a stream of its own while the student works on this one; "
        "the teacher's outputs of two batches are then held at a time.",
        False,
    )
    layer_map: str = _option(
        "Teacher states for the student states 0..M (0: embeddings): uniform, last, first, or a list such as 0,4,8,12.",
        "uniform",
    )
    projection: Literal["per_layer", "shared", "none"] = _option(
        "Linear maps from student to teacher states: one for each state, one for all, or none (equal widths).",
        "per_layer",
    )
    padding: Literal["valid", "reference"] = _option(
        "valid: losses count real tokens only, batches are padded to their own longest row; reference: the published "
        "normalisation, padded positions and all, batches padded to --max_seq_length.",
        "valid",
    )
    init_embeddings: Literal["random", "svd"] = _option(
        "Embeddings of a student that starts without weights: random, or the leading singular vectors of the "
        "teacher's.",
        "random",
    )


@dataclass(frozen=True, kw_only=True)
class GeneralDistillArguments(DistillationArguments):
    """General distillation: learn from a pre-trained teacher on unlabelled text."""

    pregenerated_data: str = _option("Directory of shards made by data_tools/pregenerate_training_data.py.")
    teacher_model: str = _option("Hugging Face directory of the pre-trained teacher.")
    student_model: str = _option(
        "The student: a config.json, a directory with one, a shipped name (4L_312, 6L_768, 3L_192), or with "
        "--continue_train a directory with weights."
    )
    continue_train: bool = _option("Start from the weights in --student_model.", False)
    max_seq_length: int = _option("Longest sample in tokens, [CLS] and [SEP] included.", 128)
    eval_step: int | None = _option("Published name of --save_steps in this command.", None)
    eval_fraction: float = _option("Share of documents held out for eval_loss; 0: none.", 0.005)
    eval_steps: int | None = _option("Steps between two evaluations of eval_loss. Default: --save_steps.", None)
    one_seq: bool = _option("Samples of one segment: no sentence pairs. Default: as the shards were made.", False)
    short_seq_prob: float | None = _option(
        "Share of documents cut to a random shorter length. Default: as the shards were made.", None
    )
    masked_lm_prob: float | None = _option(
        "Share of tokens masked, anew in every epoch; 0: none. Default: as the shards were made.", None
    )
    max_predictions_per_seq: int | None = _option(
        "Most masked tokens in a sample. Default: as the shards were made.", None
    )
    do_whole_word_mask: bool = _option("Mask whole words. Default: as the shards were made.", False)
    reduce_memory: bool = _option("Means nothing any more: shards are always memory-mapped.", False)

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two checkpoints, under either of the flag's names."""
        return self.save_steps or self.eval_step or 1000

    def problems(self) -> list[str]:
        found = super().problems()
        if self.save_steps and self.eval_step and self.save_steps != self.eval_step:
            found.append(
                f"--save_steps {self.save_steps} and --eval_step {self.eval_step} are two names of one setting here; "
                "give one of them"
            )
        if not 0 <= self.eval_fraction < 1:
            found.append(f"--eval_fraction is {self.eval_fraction}; it must be in [0, 1)")
        if self.max_seq_length < 8:
            found.append(f"--max_seq_length is {self.max_seq_length}; it must be at least 8")
        for name in ("short_seq_prob", "masked_lm_prob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                found.append(f"--{name} is {value}; it must be in [0, 1]")
        return found


@dataclass(frozen=True, kw_only=True)
class _TaskArguments:
    data_dir: str = _option("Directory with the task's files, in GLUE's layout or as --task_file says.")
    task_name: str | None = _option("Name of a known task, such as sst-2.", None)
    task_file: str | None = _option("YAML file that describes a task of your own (README, 'Your own task').", None)
    max_seq_length: int | None = _option(
        "Longest sample in tokens. Default: 64 for single sentences, 128 for pairs.", None
    )
    eval_step: int = _option("Steps between two evaluations on the task's evaluation split.", 50)

    def task_problems(self) -> list[str]:
        """What is wrong with the choice of the task."""
        if (self.task_name is None) == (self.task_file is None):
            return ["give either --task_name NAME or --task_file FILE.yaml, one of the two"]
        return []


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments(_TaskArguments, TrainingArguments):
    """Fine-tune a model on a labelled task: the teacher of task distillation, or a student from labels alone."""

    model: str = _option(
        "Hugging Face directory of the model; with --from_scratch a config.json or a shipped student's name."
    )
    from_scratch: bool = _option("Start from random weights: --model gives the architecture only.", False)
    tokenizer: str | None = _option("Directory of the tokeniser, where --model has none.", None)

    def problems(self) -> list[str]:
        found = super().problems() + self.task_problems()
        if self.from_scratch and self.tokenizer is None:
            found.append("--from_scratch needs --tokenizer DIR: a config.json has no vocabulary")
        return found


@dataclass(frozen=True, kw_only=True)
class TaskDistillArguments(_TaskArguments, DistillationArguments):
    """Task distillation: intermediate layers, then (--pred_distill) the predictions; or --do_eval alone."""

    student_model: str = _option("Hugging Face directory of the student (the previous stage's --output_dir).")
    teacher_model: str | None = _option("Hugging Face directory of the fine-tuned teacher (not for --do_eval).", None)
    teacher_labels: str | None = _option(
        "Names of the teacher's outputs (with --do_eval: of the model's) in its order, such as negative,positive, "
        "where its config has only LABEL_0 ...",
        None,
    )
    pred_distill: bool = _option("Distil the prediction layer instead of the intermediate layers.", False)
    do_eval: bool = _option("Evaluate --student_model on the task; nothing is trained.", False)
    aug_train: bool = _option("Train on train_aug.tsv (data_tools/data_augmentation.py) instead of train.tsv.", False)
    temperature: float = _option("Temperature of the soft labels.", 1.0)
    pooler_relu: bool = _option(
        "The student applies a ReLU to its pooled output, as the published fine-tuned TinyBERTs do.", False
    )

    @property
    def stated_labels(self) -> list[str] | None:
        """`--teacher_labels` as a list."""
        return self.teacher_labels.split(",") if self.teacher_labels else None

    @property
    def schedule(self) -> str:
        intermediate = not self.pred_distill
        return "constant" if self.lr_schedule == "auto" and intermediate else super().schedule

    def problems(self) -> list[str]:
        found = super().problems() + self.task_problems()
        if self.do_eval and self.pred_distill:
            found.append("--do_eval and --pred_distill contradict each other; run them one after the other")
        if not self.do_eval and self.teacher_model is None:
            found.append("--teacher_model DIR is missing; only --do_eval runs without a teacher")
        if self.temperature <= 0:
            found.append(f"--temperature is {self.temperature}; it must be above 0")
        return found


class _Parser(HfArgumentParser):
    """Raises instead of printing the usage on every rank."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}. See {self.prog} --help")


Arguments = TypeVar("Arguments", bound=TrainingArguments)


def parse_arguments(kind: type[Arguments], argv: Sequence[str], prog: str) -> tuple[Arguments, list[str]]:
    """Parse a command line into its dataclass.

    Args:
        kind: The dataclass of the command.
        argv: The words after the command's name.
        prog: The command's name, for its messages.

    Returns:
        The arguments, and every problem with them (unknown flags, bad values, contradictions), one sentence each.

    Raises:
        ConfigError: A required flag is missing or a value has the wrong type.
    """
    description = (kind.__doc__ or "").strip()
    parser = _Parser([kind], prog=prog, description=description, allow_abbrev=False)
    parsed, unknown = parser.parse_args_into_dataclasses(
        list(argv), return_remaining_strings=True, look_for_args_file=False
    )
    arguments = cast(Arguments, parsed)
    problems = [f"unknown argument {word!r}; {prog} --help lists the known ones" for word in unknown]
    return arguments, problems + arguments.problems()
