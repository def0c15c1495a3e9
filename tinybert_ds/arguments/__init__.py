"""The command-line arguments of every command: one file and one frozen dataclass for each.

A flag is declared once, in its command or in a group that several share (`groups.py`), with all that is true of it
(`option.py`). How to run (ZeRO stage, precision, offload) is said in the DeepSpeed JSON, what the network is in
`config.json`.
"""

from tinybert_ds.arguments.evaluate import EvaluateArguments
from tinybert_ds.arguments.general import GeneralDistillArguments
from tinybert_ds.arguments.option import hyper_parameters_of, identity_of
from tinybert_ds.arguments.parsing import Arguments, parse, parse_arguments, renamed
from tinybert_ds.arguments.recipes import recipe_values
from tinybert_ds.arguments.task import FinetuneArguments, TaskDistillArguments
from tinybert_ds.arguments.training import DistillationArguments, TrainingArguments

__all__ = [
    "Arguments",
    "DistillationArguments",
    "EvaluateArguments",
    "FinetuneArguments",
    "GeneralDistillArguments",
    "TaskDistillArguments",
    "TrainingArguments",
    "hyper_parameters_of",
    "identity_of",
    "parse",
    "parse_arguments",
    "recipe_values",
    "renamed",
]
