"""Flags that several commands take, declared once: alone for `like`, or with their rules as mix-ins of dataclasses."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tinybert_ds.arguments.option import Command, data, like, machine, pace, place, result
from tinybert_ds.arguments.relations import WITH_LAYERS, AttentionLoss

OUTPUT_DIR = place("Directory for what the command writes.", path=True)
SEED = result("Seed of the order of the data, masking, dropout and new weights.", 42, least=0)
LOCAL_RANK = machine("Set by the `deepspeed` launcher.", -1, recipe=False)
TASK_NAME = data("Name of a known task, such as sst-2.", None, recipe=False)
DATA_DIR = data("Directory with the task's files, in GLUE's layout or as --task_file says.", path=True)
GLUE_DIR = data("Directory with the tasks' folders, as GLUE has them.", None, path=True)
NO_CUDA = machine("Use the CPU even where there is a GPU.", False)
MAX_SEQ_LENGTH = data("Longest sample in tokens. Default: 64 for single sentences, 128 for pairs.", None, least=1)
ALLOW_UNKNOWN = machine("Go on although the tokeniser does not know most of the words.", False)
CACHE_DIR = machine(
    "Folder of derived data: tokenised rows, the teacher's predictions. Default: .tinybert_cache beside the task's "
    "files, or where that cannot be written ~/.cache/tinybert_ds.",
    None,
    path=True,
    recipe=True,
)
POOLER_RELU = result(
    "The student applies a ReLU to its pooled output, as the published fine-tuned TinyBERTs do.", False
)
TEACHER_MODEL = data("Hugging Face directory of the pre-trained teacher.", path=True)
STUDENT_MODEL = data("Hugging Face directory of the student (the previous stage's --output_dir).", path=True)
STUDENT_TOKENIZER = data(
    "Directory of the student's tokeniser where its vocabulary is a part of the teacher's, as "
    "data_tools/trim_vocabulary.py writes it. Default: the teacher's.",
    None,
    path=True,
)
WORD_LIST = data(
    "Words of a language without spaces, such as Chinese: a file with a word a line and perhaps its frequency; or "
    "jieba for the dictionary of that package.",
    None,
    path=True,
    metavar="FILE|jieba",
)
EVAL_STEP = pace("Steps between two evaluations on the task's evaluation split.", 50, least=1)
DATASET = data("What datasets.load_dataset opens: a name on the hub, or a local copy.", None, path=True, metavar="NAME")
DATASET_CONFIG = data("Its configuration.", None, metavar="NAME")
BERT_MODEL = data("Model directory whose tokeniser is used.", path=True)
NUM_WORKERS = machine("Processes; what they make does not depend on their number.", 1, least=1)
STAGES_FILE = place('JSON list of {"name", "seconds"} to report as well.', None, path=True)
HOSTFILE = machine("One host a line: NAME slots=COUNT.", None, path=True)
SSH_PORT = machine("Port of the hosts' sshd.", None, least=1, most=65535)


@dataclass(frozen=True, kw_only=True)
class Casing(Command):
    """Capitals."""

    do_lower_case: bool = data("Force lower-casing. Default: what the model directory says.", False)
    no_lower_case: bool = data("Force keeping capitals. Default: what the model directory says.", False)

    @property
    def lower_case(self) -> bool | None:
        """Forced casing of the tokeniser, or None for the model directory's own."""
        return True if self.do_lower_case else (False if self.no_lower_case else None)

    def problems(self) -> list[str]:
        found = super().problems()
        if self.do_lower_case and self.no_lower_case:
            found.append("--do_lower_case and --no_lower_case contradict each other; give one of them")
        return found


@dataclass(frozen=True, kw_only=True)
class Machine(Command):
    """What a command computes on."""

    no_cuda: bool = like(NO_CUDA)
    no_onednn_matmul: bool = machine(
        "On a CPU, leave float32 matrix products to torch's default library. Otherwise they go through oneDNN where a "
        "probe at the start finds them as accurate.",
        False,
    )


@dataclass(frozen=True, kw_only=True)
class Stage(Casing, Machine):
    """What the commands of `tinybert_ds/stages/` have in common."""

    output_dir: str = like(OUTPUT_DIR)
    local_rank: int = like(LOCAL_RANK)
    deepspeed: bool = machine("Accepted for habit's sake: training always goes through DeepSpeed.", False, recipe=False)
    eval_batch_size: int = machine("Samples of one evaluation forward over all ranks.", 32, least=1)
    log_level: Literal["debug", "info", "warning", "error"] = pace(
        "Least weighty messages that rank 0 shows; from warning on, no lines of progress and no bars.", "info"
    )


@dataclass(frozen=True, kw_only=True)
class TaskName(Command):
    """Which task."""

    task_name: str | None = like(TASK_NAME)
    task_file: str | None = data(
        "YAML file that describes a task of your own (README, 'Your own task').", None, path=True
    )

    @property
    def task_names(self) -> list[str]:
        """`--task_name` as a list; ["all"] for all of GLUE, ["clue"] for all of CLUE, empty with `--task_file`."""
        return [name.strip().lower() for name in self.task_name.split(",")] if self.task_name else []

    @property
    def several_tasks(self) -> bool:
        """Whether more than one may be meant."""
        return len(self.task_names) > 1 or self.task_names in (["all"], ["clue"])


@dataclass(frozen=True, kw_only=True)
class KnownOrOwnTask(TaskName):
    """A known task, or one of the user's own."""

    def problems(self) -> list[str]:
        found = super().problems()
        if (self.task_name is None) == (self.task_file is None):
            found.append("give one of --task_name and --task_file")
        return found


@dataclass(frozen=True, kw_only=True)
class TaskPlace(KnownOrOwnTask):
    """Which task, and where its files are."""

    data_dir: str = like(DATA_DIR)


@dataclass(frozen=True, kw_only=True)
class TaskRows(Stage):
    """How the rows of a task are read."""

    max_seq_length: int | None = like(MAX_SEQ_LENGTH)
    cache_dir: str | None = like(CACHE_DIR)
    allow_unknown: bool = like(ALLOW_UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class StatedLabels(Command):
    """What a model's outputs mean."""

    teacher_labels: str | None = data(
        "Names of the teacher's outputs (with --do_eval: of the model's) in its order, such as negative,positive, "
        "where its config has only LABEL_0 ... A name with a comma in it stands in double quotes: '\"yes, sure\",no'.",
        None,
        recipe=False,
        asks_teacher=True,
    )

    @property
    def stated_labels(self) -> list[str] | None:
        """`--teacher_labels` as a list: one line of comma-separated values."""
        return next(csv.reader([self.teacher_labels], strict=True)) if self.teacher_labels else None

    def problems(self) -> list[str]:
        found = super().problems()
        try:
            names = self.stated_labels or []
        except csv.Error as error:
            return [*found, f'--teacher_labels {self.teacher_labels}: {error}; quote a name that has a comma: "a,b",c']
        if not all(names) or len(set(names)) < len(names):
            found.append(f"--teacher_labels are {names}; give each output a name of its own")
        return found


@dataclass(frozen=True, kw_only=True)
class Teacher(Command):
    """The frozen teacher."""

    teacher_dtype: Literal["auto", "fp32", "bf16", "fp16"] = result(
        "Precision of the teacher. auto: fp16 on GPU, bf16 on a CPU that computes it, else fp32.",
        "auto",
        resolved=True,
        asks_teacher=True,
    )
    teacher_engine: Literal["inference", "zero3"] = machine(
        "inference: every rank holds the whole teacher; zero3: its parameters are split among the ranks and gathered "
        "layer by layer, for teachers that do not fit.",
        "inference",
        asks_teacher=True,
    )
    overlap_teacher: bool = machine(
        "On a GPU, let the teacher work on the next batch in a stream of its own while the student works on this one; "
        "the teacher's outputs of two batches are then held at a time, and its passes are launched one by one. "
        "Without it they are recorded as CUDA graphs, which was no slower on an H200.",
        False,
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if self.overlap_teacher and self.teacher_engine == "zero3":
            found.append(
                "--overlap_teacher and --teacher_engine zero3 contradict each other: two streams would gather "
                "parameters at a time, in no fixed order; drop one of them"
            )
        return found


_layer_weight = partial(result, default=1.0, identity="loss_weights", stage=WITH_LAYERS, least=0)


@dataclass(frozen=True, kw_only=True)
class LayerLosses(AttentionLoss):
    """What a student learns of its teacher's layers."""

    attention_weight: float = _layer_weight("Factor of the attention losses; 0 leaves them out.")
    hidden_weight: float = _layer_weight("Factor of the losses of the layers' hidden states; 0 leaves them out.")
    embedding_weight: float = _layer_weight("Factor of the loss of the embeddings; 0 leaves it out.")
    loss_balance: Literal["none", "variance"] = result(
        "variance: each term of these losses is divided by the teacher's own variance of what it compares, measured at "
        "the start and kept in run.json, so that none is large by its units alone; none: as published.",
        "none",
        stage=WITH_LAYERS,
        later=True,
    )
    layer_map: str = result(
        "Teacher states for the student states 0..M (0: embeddings): uniform (the nearest where depths do not divide), "
        "last, first, or a list such as 0,4,8,12.",
        "uniform",
        resolved=True,
        stage=WITH_LAYERS,
    )
    projection: Literal["per_layer", "shared", "none"] = result(
        "Linear maps from student to teacher states: one for each state, one for all, or none (equal widths).",
        "per_layer",
        stage=WITH_LAYERS,
    )
    padding: Literal["valid", "reference"] = result(
        "valid: losses count real tokens only, batches are padded to their own longest row; reference: the published "
        "normalisation, padded positions and all, batches padded to --max_seq_length.",
        "valid",
    )

    @property
    def loss_weights(self) -> dict[str, float]:
        """Factors of the losses of hidden layers, by the names of `objective.LossWeights`."""
        return {"attention": self.attention_weight, "hidden": self.hidden_weight, "embedding": self.embedding_weight}

    @property
    def compares_scores(self) -> bool:
        """Whether attention scores are compared, head by head."""
        return bool(self.attention_weight) and self.attention_loss == "scores"

    @property
    def compares_relations(self) -> bool:
        """Whether relations between tokens are."""
        return bool(self.attention_weight) and self.attention_loss != "scores"

    def problems(self) -> list[str]:
        found = super().problems()
        if not any(self.loss_weights.values()):
            found.append("--attention_weight, --hidden_weight and --embedding_weight are all 0: nothing is learned")
        if self.attention_loss != "scores" and not self.attention_weight:
            found.append(
                f"--attention_loss {self.attention_loss} and --attention_weight 0 contradict each other; drop one of "
                "them"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Corpora(Command):
    """Shards."""

    pregenerated_data: list[str] = data(
        "Directories of shards made by data_tools/pregenerate_training_data.py. Several are read as one, each to its "
        "end; as DIR=WEIGHT ... they give these shares of the samples, and an epoch ends with the first that ends. A "
        "directory whose own name ends in = and a number is written with a slash behind it.",
        path=True,
    )

    @property
    def corpora(self) -> list[tuple[str, float | None]]:
        """The directories of --pregenerated_data and their weights."""
        return [_split_weight(word) for word in self.pregenerated_data]


def _split_weight(word: str) -> tuple[str, float | None]:
    """The directory and the weight of DIR=WEIGHT; a name with a = in it and no number behind it is a directory."""
    directory, equals, weight = word.rpartition("=")
    try:
        return (directory, float(weight)) if equals else (word, None)
    except ValueError:
        return word, None


@dataclass(frozen=True, kw_only=True)
class Sampling(Command):
    """How samples are made of sentences."""

    one_seq: bool = data("No random second sentences. Default: as the shards were made.", False)
    short_seq_prob: float | None = data(
        "Share of documents cut to a random shorter length. Default: as the shards were made.", None, least=0, most=1
    )
    masked_lm_prob: float | None = data(
        "Share of tokens masked, anew in every epoch; 0: none. Default: as the shards were made.", None, least=0, most=1
    )
    max_predictions_per_seq: int | None = data(
        "Most masked tokens in a sample. Default: as the shards were made.", None, least=0
    )
    do_whole_word_mask: bool = data("Mask whole words. Default: as the shards were made.", False)
    reduce_memory: bool = machine("Means nothing any more: shards are always memory-mapped.", False)
