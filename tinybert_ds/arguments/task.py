"""The arguments of the commands that work on a labelled task."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from tinybert_ds.arguments.common import DistillationArguments, TrainingArguments, option
from tinybert_ds.arguments.recipes import recipe_values

_LAYER_FLAGS: tuple[str, ...] = ("layer_map", "projection", "attention_weight", "hidden_weight", "embedding_weight")
_PREDICTION_FLAGS: tuple[str, ...] = (
    "temperature",
    "squared_temperature",
    "prediction_weight",
    "label_weight",
    "regression_target",
    "no_teacher_cache",
)

SEARCH_LEARNING_RATES = [2e-5, 3e-5, 5e-5]  # those of BERT's authors (arXiv 1810.04805, A.3)
SEARCH_SEEDS = [42, 43, 44]


@dataclass(frozen=True, kw_only=True)
class _TaskArguments:
    data_dir: str = option("Directory with the task's files, in GLUE's layout or as --task_file says.")
    task_name: str | None = option("Name of a known task, such as sst-2.", None)
    task_file: str | None = option("YAML file that describes a task of your own (README, 'Your own task').", None)
    max_seq_length: int | None = option(
        "Longest sample in tokens. Default: 64 for single sentences, 128 for pairs.", None
    )
    eval_step: int = option("Steps between two evaluations on the task's evaluation split.", 50)
    cache_dir: str | None = option(
        "Folder of derived data: tokenised rows, the teacher's predictions. Default: .tinybert_cache in --data_dir, or "
        "where that cannot be written ~/.cache/tinybert_ds.",
        None,
    )
    allow_unknown: bool = option("Go on although the tokeniser does not know most of a task file's words.", False)

    def task_problems(self) -> list[str]:
        """What is wrong with the choice of the task."""
        if (self.task_name is None) == (self.task_file is None):
            return ["give either --task_name NAME or --task_file FILE.yaml, one of the two"]
        return []


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments(_TaskArguments, TrainingArguments):
    """Fine-tune a model on a labelled task: the teacher of task distillation, or a student from labels alone."""

    model: str = option(
        "Hugging Face directory of the model; with --from_scratch a config.json or a shipped student's name."
    )
    from_scratch: bool = option("Start from random weights: --model gives the architecture only.", False)
    tokenizer: str | None = option("Directory of the tokeniser, where --model has none.", None)
    search: bool = option(
        "Fine-tune with each of --search_learning_rates and --search_seeds instead of --learning_rate and --seed; "
        "report mean and standard deviation over the seeds, and keep the best run of the best mean.",
        False,
    )
    search_learning_rates: list[float] = option("Learning rates of --search.", SEARCH_LEARNING_RATES)
    search_seeds: list[int] = option("Seeds of --search, two or more.", SEARCH_SEEDS)

    @property
    def recipe_section(self) -> str:
        return "finetune"

    def problems(self) -> list[str]:
        found = super().problems() + self.task_problems()
        if self.from_scratch and self.tokenizer is None:
            found.append("--from_scratch needs --tokenizer DIR: a config.json has no vocabulary")
        return found + self._search_problems()

    def _search_problems(self) -> list[str]:
        rates, seeds = self.search_learning_rates, self.search_seeds
        if not self.search:
            stated = {"search_learning_rates": rates != SEARCH_LEARNING_RATES, "search_seeds": seeds != SEARCH_SEEDS}
            return [
                f"--{name} is for --search; leave it out or add --search" for name, given in stated.items() if given
            ]
        found = self._single_run_problems()
        if not rates or min(rates) <= 0 or len(set(rates)) < len(rates):
            found.append(f"--search_learning_rates are {rates}; give different ones above 0")
        if len(seeds) < 2 or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            found.append(f"--search_seeds are {seeds}; give two or more different ones, none of them negative")
        if self.resume not in ("auto", "never"):
            found.append("--resume PATH is for a single run; a search goes on by itself")
        return found

    def _single_run_problems(self) -> list[str]:
        """What a search would not read, where the command line itself sets it; a recipe is for either."""
        defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(self)}
        unstated = {**defaults, **recipe_values(self)}
        return [
            f"--{name} {getattr(self, name):g} is for a single run; a search takes --{instead}"
            for name, instead in (("learning_rate", "search_learning_rates"), ("seed", "search_seeds"))
            if getattr(self, name) != float(unstated[name])
        ]


@dataclass(frozen=True, kw_only=True)
class TaskDistillArguments(_TaskArguments, DistillationArguments):
    """Task distillation: intermediate layers, then (--pred_distill) the predictions; or --do_eval alone."""

    student_model: str = option("Hugging Face directory of the student (the previous stage's --output_dir).")
    teacher_model: str | None = option("Hugging Face directory of the fine-tuned teacher (not for --do_eval).", None)
    teacher_labels: str | None = option(
        "Names of the teacher's outputs (with --do_eval: of the model's) in its order, such as negative,positive, "
        "where its config has only LABEL_0 ...",
        None,
    )
    pred_distill: bool = option("Distil the prediction layer instead of the intermediate layers.", False)
    do_eval: bool = option("Evaluate --student_model on the task; nothing is trained.", False)
    predict_split: str | None = option(
        "With --do_eval: write predictions for this split too, such as test, labelled or not.", None
    )
    aug_train: bool = option("Train on train_aug.tsv (data_tools/data_augmentation.py) instead of train.tsv.", False)
    temperature: float = option("With --pred_distill: temperature of the soft labels.", 1.0)
    squared_temperature: bool = option(
        "With --pred_distill: multiply the loss of the soft labels by temperature squared (not in the paper).", False
    )
    prediction_weight: float = option(
        "With --pred_distill: factor of the loss against the teacher's predictions, of scores against what "
        "--regression_target names; 0 leaves it out.",
        1.0,
    )
    label_weight: float = option(
        "With --pred_distill: factor of a loss against the gold labels beside it; 0 leaves it out.", 0.0
    )
    regression_target: Literal["gold", "teacher"] = option(
        "With --pred_distill, for tasks with scores: learn the gold scores, as published (their loss is logged as "
        "label_loss), or the teacher's (prediction_loss).",
        "gold",
    )
    no_teacher_cache: bool = option(
        "With --pred_distill: ask the teacher about every batch. Otherwise a run of at least one epoch keeps what it "
        "says of all rows in the folder of derived data (--cache_dir), for later epochs, starts and students.",
        False,
    )
    pooler_relu: bool = option(
        "The student applies a ReLU to its pooled output, as the published fine-tuned TinyBERTs do.", False
    )

    @property
    def stated_labels(self) -> list[str] | None:
        """`--teacher_labels` as a list."""
        return self.teacher_labels.split(",") if self.teacher_labels else None

    @property
    def recipe_section(self) -> str:
        return "prediction" if self.pred_distill else "intermediate"

    @property
    def schedule(self) -> str:
        intermediate = not self.pred_distill
        return "constant" if self.lr_schedule == "auto" and intermediate else super().schedule

    def problems(self) -> list[str]:
        found = super().problems() + self.task_problems()
        if self.do_eval and self.pred_distill:
            found.append("--do_eval and --pred_distill contradict each other; run them one after the other")
        if self.predict_split is not None and not self.do_eval:
            found.append("--predict_split is for --do_eval; leave it out of training")
        if self.do_eval and self.recipe is not None:
            found.append("--recipe is for training; leave it out of --do_eval")
        if not self.do_eval and self.teacher_model is None:
            found.append("--teacher_model DIR is missing; only --do_eval runs without a teacher")
        if self.temperature <= 0:
            found.append(f"--temperature is {self.temperature}; it must be above 0")
        for name in ("prediction_weight", "label_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                found.append(f"--{name} is {getattr(self, name)}; it must not be negative")
        if not (self.prediction_weight or self.label_weight):
            found.append("--prediction_weight and --label_weight are both 0: nothing is learned")
        return found + self._ignored_flags()

    def _ignored_flags(self) -> list[str]:
        """Flags of one stage that another one would ignore."""
        ignored, reason = (_LAYER_FLAGS, "is for the intermediate stage; leave it out of --pred_distill")
        if not self.pred_distill:
            ignored, reason = (_PREDICTION_FLAGS, "is for --pred_distill; leave it out of this stage")
        return [
            f"--{name} {getattr(self, name)} {reason}"
            for name in ignored
            if getattr(self, name) != type(self).__dataclass_fields__[name].default
        ]
