"""Look at the flags of a command and stop, for scripts that run several commands in a row.

`python -m tinybert_ds.arguments COMMAND FLAGS...` says every problem with a command line, so that a mistake in the last
command is found before the first one starts: exit code 2, or 0 and silence. Files and models are not looked at.

`python -m tinybert_ds.arguments --for COMMAND OWN_FLAGS... -- FLAGS...` prints those of the FLAGS of another command
that go for this one too, beside its own, each word ended by a zero byte.
"""

from __future__ import annotations

import sys

from tinybert_ds.arguments.augment import AugmentArguments
from tinybert_ds.arguments.compare import CompareArguments, ReportArguments
from tinybert_ds.arguments.data_sets import ExportArguments, QuickstartDataArguments
from tinybert_ds.arguments.doctor import DoctorArguments
from tinybert_ds.arguments.embed import EmbedDistillArguments, EmbedEvaluateArguments
from tinybert_ds.arguments.evaluate import EvaluateArguments
from tinybert_ds.arguments.export import ExportModelArguments
from tinybert_ds.arguments.general import GeneralDistillArguments
from tinybert_ds.arguments.inherit import InheritArguments
from tinybert_ds.arguments.inspect import InspectArguments
from tinybert_ds.arguments.label_rows import LabelRowsArguments
from tinybert_ds.arguments.launch import LaunchArguments, RunStageArguments
from tinybert_ds.arguments.option import Command
from tinybert_ds.arguments.parsing import handed_on, parse
from tinybert_ds.arguments.prepare import PrepareArguments
from tinybert_ds.arguments.task import FinetuneArguments, TaskDistillArguments
from tinybert_ds.arguments.trim import TrimArguments
from tinybert_ds.command_line import run_command
from tinybert_ds.errors import ConfigError, did_you_mean

COMMANDS: dict[str, type[Command]] = {
    "general_distill": GeneralDistillArguments,
    "task_distill": TaskDistillArguments,
    "finetune_teacher": FinetuneArguments,
    "evaluate_glue": EvaluateArguments,
    "inherit_student": InheritArguments,
    "embed_distill": EmbedDistillArguments,
    "embed_evaluate": EmbedEvaluateArguments,
    "compare_models": CompareArguments,
    "export_model": ExportModelArguments,
    "pregenerate_training_data": PrepareArguments,
    "data_augmentation": AugmentArguments,
    "label_rows": LabelRowsArguments,
    "inspect_shards": InspectArguments,
    "trim_vocabulary": TrimArguments,
    "export_dataset": ExportArguments,
    "quickstart_data": QuickstartDataArguments,
    "doctor": DoctorArguments,
    "report": ReportArguments,
    "launch": LaunchArguments,
    "run_stage": RunStageArguments,
}


def main() -> None:
    """Run the command."""
    hands_on = sys.argv[1:2] == ["--for"]
    name, *words = sys.argv[1 + hands_on :] or [""]
    if name not in COMMANDS:
        raise ConfigError(
            f"there is no command {name!r} to check{did_you_mean(name, COMMANDS)}; there are {', '.join(COMMANDS)}"
        )
    if not hands_on:
        parse(COMMANDS[name], words)
        return
    end = words.index("--") if "--" in words else len(words)
    print("".join(f"{word}\0" for word in handed_on(COMMANDS[name], words[:end], words[end + 1 :])), end="")


if __name__ == "__main__":
    run_command(main)
