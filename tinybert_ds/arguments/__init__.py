"""The command-line arguments of the training commands: what to learn.

One frozen dataclass for each command; a field's help is the command's help. How to run it (ZeRO stage, precision,
offload) is said in the DeepSpeed JSON, what the network is in `config.json`.
"""

from tinybert_ds.arguments.common import DistillationArguments, TrainingArguments
from tinybert_ds.arguments.evaluate import EvaluateArguments
from tinybert_ds.arguments.general import GeneralDistillArguments
from tinybert_ds.arguments.parsing import Arguments, parse_arguments
from tinybert_ds.arguments.recipes import recipe_values
from tinybert_ds.arguments.task import FinetuneArguments, TaskDistillArguments

__all__ = [
    "Arguments",
    "DistillationArguments",
    "EvaluateArguments",
    "FinetuneArguments",
    "GeneralDistillArguments",
    "TaskDistillArguments",
    "TrainingArguments",
    "parse_arguments",
    "recipe_values",
]
