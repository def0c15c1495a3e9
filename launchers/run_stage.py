"""Run one stage of a longer chain, once: `python launchers/run_stage.py --stages_file FILE --name NAME -- COMMAND ...`

A stage that has finished is not run again for the same command, so a chain that was killed goes on where it was when it
is started again. FILE is a JSON list of {"name", "seconds", "finished", "command"}; the seconds of an interrupted stage
count, up to `HEARTBEAT_SECONDS` of them lost. The word FREE_PORT in the command stands for a port that nobody uses.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tinybert_ds.arguments.launch import RunStageArguments
from tinybert_ds.arguments.parsing import parse
from tinybert_ds.command_line import run_command, seconds_since_start
from tinybert_ds.errors import ConfigError
from tinybert_ds.files import write_atomically
from tinybert_ds.launch.port import free_port
from tinybert_ds.records import STAGES, read_record

HEARTBEAT_SECONDS = 5.0


def read_stages(path: Path) -> list[dict[str, Any]]:
    """Return what was run so far; raises ConfigError if the file is something else."""
    if not path.exists():
        return []
    stages = read_record(path, STAGES, "delete this --stages_file to start over", ConfigError)
    return [{"finished": False, "command": [], **stage} for stage in stages]


def run_stage(path: Path, name: str, command: list[str], *, seconds_before: float = 0.0) -> int:
    """Run `command` unless it has finished before; returns its exit code, 128 + n if signal n ended it.

    `seconds_before`: what this process has already taken to get here; it counts as the stage's.
    """
    stages = read_stages(path)
    stage = next((stage for stage in stages if stage["name"] == name), None)
    if stage is None:
        stage = {"name": name}
        stages.append(stage)
    if stage.get("command") != command:
        stage.update(seconds=0.0, finished=False, command=command)
    if stage["finished"]:
        print(f"== {name}: finished before, in {stage['seconds']:.1f} s", flush=True)
        return 0

    words = [str(free_port()) if word == "FREE_PORT" else word for word in command]
    print(f"== {name}\n{shlex.join(words)}", flush=True)
    before, begin = stage["seconds"], time.monotonic() - seconds_before
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        process = subprocess.Popen(words)
    except OSError as error:
        raise ConfigError(f"stage {name}: cannot start {words[0]}: {error.strerror}; is it installed?") from error
    code = None
    while code is None:
        with contextlib.suppress(subprocess.TimeoutExpired):  # still running: the time so far is written
            code = process.wait(timeout=HEARTBEAT_SECONDS)
        stage.update(seconds=before + time.monotonic() - begin, finished=code == 0)
        write_atomically(path, json.dumps(stages, indent=2) + "\n")
    if code:
        print(f"== {name}: failed with exit code {code}; mend it and run the same command again", file=sys.stderr)
    return code if code >= 0 else 128 - code


def main() -> None:
    """Run the command."""
    values = parse(RunStageArguments, None)
    code = run_stage(Path(values.stages_file), values.name, values.command, seconds_before=seconds_since_start())
    sys.exit(code)


if __name__ == "__main__":
    run_command(main)
