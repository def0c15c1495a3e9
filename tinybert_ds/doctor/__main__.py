"""The command: `python -m tinybert_ds.doctor --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinybert_ds.arguments.doctor import DoctorArguments
from tinybert_ds.arguments.parsing import parse_arguments
from tinybert_ds.command_line import run_command
from tinybert_ds.doctor.findings import Finding, render
from tinybert_ds.doctor.host_checks import check_differences, check_host, check_launching
from tinybert_ds.doctor.machine import facts as facts_of_this_host
from tinybert_ds.doctor.memory import precision_of
from tinybert_ds.errors import raise_all
from tinybert_ds.foreign_text import quoted
from tinybert_ds.launch.hostfile import Host, read_hostfile
from tinybert_ds.launch.remote import CHECKOUT, Answer, run_everywhere
from tinybert_ds.strict_formats import NoJsonError, parse_json
from tinybert_ds.versions import requirements

Section = tuple[str, list[Finding]]


def examine(values: DoctorArguments) -> list[Section]:
    """Look at everything; return the sections of the report."""
    inputs = [path for path in (values.teacher_model, *(name for name, _ in values.corpora)) if path]
    paths = [*inputs, values.output_dir or os.getcwd()]
    facts_here = facts_of_this_host(paths)
    if values.hostfile is None:
        slots = values.ranks or len(facts_here["accelerator"].get("memory_bytes", ())) or 1
        hosts: list[Host] = [Host("localhost", slots)]
        found: list[dict[str, Any] | None] = [facts_here]
        sections: list[Section] = []
    else:
        hosts = list(read_hostfile(Path(values.hostfile)))
        found, silent = _facts_of(hosts, paths, values.ssh_port)
        sections = [("hosts", silent)] if silent else []
    floors = requirements()
    for host, facts_or_none in zip(hosts, found, strict=True):
        if facts_or_none is not None:
            title = f"{host.name}, {host.slots} rank(s)"
            sections.append((title, check_host(facts_or_none, host.slots, floors=floors, inputs=inputs)))
    known = [facts for facts in found if facts is not None]
    between = [*check_differences(known), *check_launching(facts_here, len(hosts))]
    if len(hosts) > 1 and between:
        sections.append(("between the hosts", between))
    if "error" not in facts_here["accelerator"]:
        from tinybert_ds.doctor import job  # noqa: PLC0415 - needs torch, which may be what is amiss

        usable = [
            (facts, host)
            for facts, host in zip(found, hosts, strict=True)
            if facts is not None and "error" not in facts["accelerator"]
        ]
        sections.append(("the job", job.examine_job(values, usable, sum(host.slots for host in hosts))))
    return [section for section in sections if section[1]]


def _facts_of(
    hosts: Sequence[Host], paths: Sequence[str], ssh_port: int | None
) -> tuple[list[dict[str, Any] | None], list[Finding]]:
    absolute = [str(Path(path).absolute()) for path in paths]
    words = ["tinybert_ds.doctor.machine", *absolute]
    found: list[dict[str, Any] | None] = []
    silent = []
    for answer in run_everywhere(hosts, words, ssh_port=ssh_port, timeout=120):
        facts = _facts_in(answer) if answer.returncode == 0 else None
        if facts is not None:
            facts["paths"] = dict(zip(paths, (facts["paths"][path] for path in absolute), strict=True))
            found.append(facts)
            continue
        found.append(None)
        if answer.returncode == 0:
            problem = f"{answer.host} was asked for its facts by ssh and says {quoted(answer.result)}"
            fix = (
                "let its shell's start-up files print nothing where there is no terminal; the same checkout everywhere"
            )
            silent.append(Finding("problem", problem, fix))
            continue
        fix = f"password-less ssh to it, the checkout with its .venv at {CHECKOUT}, then: bash launchers/install.sh"
        silent.append(Finding("problem", f"{answer.host} cannot run {sys.executable}: {answer.reason}", fix))
    return found, silent


def _facts_in(answer: Answer) -> dict[str, Any] | None:
    """What `doctor.machine` has printed on a host; None where it is something else."""
    try:
        facts = parse_json(answer.result)
    except NoJsonError:
        return None
    return facts if isinstance(facts, dict) and facts.keys() >= {"paths", "accelerator"} else None


def config_problem(path: Path) -> str | None:
    """What keeps a stated DeepSpeed config from being read, None if nothing does; a run judges what is in it."""
    if not path.is_file():
        return "is not a file"
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        return f"is no JSON document: {error}"
    if not isinstance(content, dict):
        return f"holds a {type(content).__name__}; it must be a JSON object"
    try:
        precision_of(content)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        return f"has a section zero_optimization, bf16 or fp16 of another shape than DeepSpeed's: {error}"
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    values, problems = parse_arguments(DoctorArguments, argv)
    problem = None if values.deepspeed_config is None else config_problem(Path(values.deepspeed_config))
    raise_all([*problems, *([f"--deepspeed_config {values.deepspeed_config} {problem}"] if problem else [])])
    sections = examine(values)
    print("\n\n".join(render(title, findings) for title, findings in sections))
    count = sum(finding.level == "problem" for _, findings in sections for finding in findings)
    print(f"\n{count} problem(s): the job could not run" if count else "\nno problems found")
    sys.exit(1 if count else 0)


if __name__ == "__main__":
    run_command(main)
