"""Check a command line of a training command and stop: `python -m tinybert_ds.arguments task_distill FLAGS...`

For scripts that run several commands in a row, so that a mistake in the last one is found before the first one starts.
Files and models are not looked at. Exit code 2 and every problem, or 0 and silence.
"""

from __future__ import annotations

import sys

from tinybert_ds.arguments import (
    EvaluateArguments,
    FinetuneArguments,
    GeneralDistillArguments,
    TaskDistillArguments,
    parse_arguments,
)
from tinybert_ds.arguments.parsing import CommandArguments
from tinybert_ds.command_line import run_command
from tinybert_ds.errors import ConfigError, raise_all

COMMANDS: dict[str, type[CommandArguments]] = {
    "general_distill": GeneralDistillArguments,
    "task_distill": TaskDistillArguments,
    "finetune_teacher": FinetuneArguments,
    "evaluate_glue": EvaluateArguments,
}


def main() -> None:
    """Run the command."""
    name, *words = sys.argv[1:] or [""]
    if name not in COMMANDS:
        raise ConfigError(f"there is no command {name!r} to check; there are {', '.join(COMMANDS)}")
    _, problems = parse_arguments(COMMANDS[name], words, f"{name}.py")
    raise_all(problems)


if __name__ == "__main__":
    run_command(main)
