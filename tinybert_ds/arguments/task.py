"""The arguments of the training commands that work on a labelled task."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tinybert_ds.arguments import groups
from tinybert_ds.arguments.option import data, like, machine, pace, place, result
from tinybert_ds.arguments.recipes import recipe_values
from tinybert_ds.arguments.training import DistillationArguments, TrainingArguments

_prediction = partial(result, stage=("prediction", "joint"))


@dataclass(frozen=True, kw_only=True)
class _TaskArguments(groups.TaskPlace, TrainingArguments, groups.TaskRows):
    eval_step: int = like(groups.EVAL_STEP)


@dataclass(frozen=True, kw_only=True)
class FinetuneArguments(_TaskArguments):
    """Fine-tune a model on a labelled task: the teacher of task distillation, or a student from labels alone."""

    prog = "finetune_teacher.py"
    stages = ("finetune",)

    model: str = data(
        "Hugging Face directory of the model; with --from_scratch a config.json or a shipped student's name.", path=True
    )
    from_scratch: bool = result("Start from random weights: --model gives the architecture only.", False, recipe=False)
    tokenizer: str | None = data("Directory of the tokeniser, where --model has none.", None, path=True)
    search: bool = pace(
        "Fine-tune with each of --search_learning_rates and --search_seeds instead of --learning_rate and --seed; "
        "report mean and standard deviation over the seeds, and keep the best run of the best mean.",
        False,
    )
    search_learning_rates: list[float] = pace(
        "Learning rates of --search.",
        [2e-5, 3e-5, 5e-5],  # those of BERT's authors (arXiv 1810.04805, A.3)
        above=0,
        goes_with="search",
    )
    search_seeds: list[int] = pace("Seeds of --search, two or more.", [42, 43, 44], least=0, goes_with="search")

    def problems(self) -> list[str]:
        found = super().problems()
        if self.from_scratch and self.tokenizer is None:
            found.append("--from_scratch needs --tokenizer DIR: a config.json has no vocabulary")
        return found + self._search_problems()

    def _search_problems(self) -> list[str]:
        rates, seeds = self.search_learning_rates, self.search_seeds
        if not self.search:
            return []
        found = self._single_run_problems()
        if len(set(rates)) < len(rates):
            found.append(f"--search_learning_rates are {rates}; give different ones")
        if len(seeds) < 2 or len(set(seeds)) < len(seeds):
            found.append(f"--search_seeds are {seeds}; give two or more different ones")
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
            if getattr(self, name) != _number(unstated[name])
        ]


def _number(word: Any) -> float:
    try:
        return float(word)
    except ValueError:  # which is told by its flag
        return math.nan


@dataclass(frozen=True, kw_only=True)
class TaskDistillArguments(groups.StatedLabels, DistillationArguments, _TaskArguments):
    """Task distillation: intermediate layers, then (--pred_distill) the predictions, or both in one (--joint); or
    --do_eval alone."""

    prog = "task_distill.py"
    stages = ("intermediate", "prediction", "joint", "evaluation")

    student_model: str = like(groups.STUDENT_MODEL)
    teacher_model: str | None = like(
        groups.TEACHER_MODEL,
        None,
        help="Hugging Face directory of the fine-tuned teacher (not for --do_eval, nor with columns in the task file).",
    )
    pred_distill: bool = data("Distil the prediction layer instead of the intermediate layers.", False, recipe=False)
    joint: bool = data(
        "Distil intermediate layers and predictions together, in one stage instead of two.", False, recipe=False
    )
    do_eval: bool = place("Evaluate --student_model on the task; nothing is trained.", False)
    predict_split: str | None = place(
        "Write predictions for this split too, such as test, labelled or not.", None, stage=("evaluation",)
    )
    aug_train: bool = data("Train on train_aug.tsv (data_tools/data_augmentation.py) instead of train.tsv.", False)
    pooler_relu: bool = like(groups.POOLER_RELU)
    prediction_loss: Literal["cross_entropy", "mse", "kl"] = _prediction(
        "What is made of the two models' logits, for labels: the soft cross-entropy, a mean over rows and classes, as "
        "published; the mean squared error of the logits; or the divergence of the softened probabilities times the "
        "squared temperature, a mean over rows.",
        "cross_entropy",
        later=True,
    )
    label_mixing: Literal["constant", "confidence"] = _prediction(
        "With --label_weight: constant adds the labels' loss; confidence multiplies the teacher's part of each row by "
        "the probability that the teacher gives its label, and the label's part by the rest.",
        "constant",
        later=True,
    )
    temperature: float = _prediction("Temperature of the soft labels.", 1.0, above=0)
    squared_temperature: bool = _prediction(
        "The same as --prediction_weight times --temperature squared (not in the paper).", False
    )
    prediction_weight: float = _prediction(
        "Factor of the loss against the teacher's predictions, of scores against --regression_target.", 1.0, least=0
    )
    label_weight: float = _prediction("Factor of a loss against the gold labels beside it.", 0.0, least=0)
    regression_target: Literal["gold", "teacher"] = _prediction(
        "For tasks with scores: learn the gold scores, as published (their loss is logged as label_loss), or the "
        "teacher's (prediction_loss).",
        "gold",
    )
    score_loss: Literal["mse", "margin_mse"] = _prediction(
        "For tasks with scores, against the teacher: mean squared error, or that of the margins between the rows of a "
        "query (`group` of the task file).",
        "mse",
        later=True,
    )
    teacher_max_seq_length: int | None = result(
        "Longest row in the teacher's tokens, where it has a tokeniser of its own. Default: --max_seq_length.",
        None,
        stage=("prediction",),
        least=1,
        later=True,
    )
    no_teacher_cache: bool = machine(
        "Ask the teacher about every batch. Otherwise a run of at least one epoch keeps what it says of all rows in "
        "the folder of derived data (--cache_dir), for later epochs, starts and students.",
        False,
        stage=("prediction",),
        asks_teacher=True,
    )

    @property
    def stage(self) -> str:
        if self.do_eval:
            return "evaluation"
        return "joint" if self.joint else "prediction" if self.pred_distill else "intermediate"

    @property
    def schedule(self) -> str:
        constant = self.lr_schedule == "auto" and self.stage in ("intermediate", "evaluation")
        return "constant" if constant else super().schedule

    @property
    def soft_label_weight(self) -> float:
        """Factor of the loss against the teacher's predictions, --squared_temperature included."""
        return self.prediction_weight * (self.temperature**2 if self.squared_temperature else 1.0)

    def problems(self) -> list[str]:
        found = super().problems()
        if self.do_eval and self.pred_distill:
            found.append("--do_eval and --pred_distill contradict each other; run them one after the other")
        if self.joint and (self.do_eval or self.pred_distill):
            other = "--do_eval" if self.do_eval else "--pred_distill"
            found.append(f"--joint and {other} contradict each other: --joint is a stage of its own; drop one of them")
        if self.prediction_loss == "mse" and self.temperature != 1:
            found.append(
                f"--temperature {self.temperature:g} softens probabilities, and --prediction_loss mse compares logits; "
                "leave it out, or take --prediction_loss kl"
            )
        if self.prediction_loss == "kl" and self.squared_temperature:
            found.append("--squared_temperature is in --prediction_loss kl already; leave it out")
        if self.label_mixing == "confidence" and not (self.label_weight and self.prediction_weight):
            found.append(
                "--label_mixing confidence divides rows between teacher and labels: give --label_weight and "
                "--prediction_weight above 0, such as --label_weight 1"
            )
        in_columns = self.pred_distill and self.task_file is not None  # what a teacher said may be there; it is read
        if not self.do_eval and not in_columns and self.teacher_model is None:
            found.append("--teacher_model DIR is missing; only --do_eval runs without a teacher")
        if not (self.prediction_weight or self.label_weight):
            found.append("--prediction_weight and --label_weight are both 0: nothing is learned")
        return found
