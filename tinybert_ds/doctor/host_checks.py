"""From the facts of hosts (`doctor.machine`) to findings. Nothing is looked at here, so that it can be tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packaging.requirements import Requirement

from tinybert_ds.doctor.findings import Finding, gib

Facts = Mapping[str, Any]

OLDEST_PYTHON = (3, 11)
INSTALL = "bash launchers/install.sh"
EVERYWHERE = f"{INSTALL} on every host, from one checkout"


def check_host(facts: Facts, slots: int, *, floors: Sequence[Requirement], inputs: Sequence[str]) -> list[Finding]:
    """Judge one host.

    Args:
        floors: Packages that must be there, with their versions.
        inputs: Paths that the job reads; every other path in the facts is one that it writes.
    """
    return [
        _python(facts),
        *_packages(facts, floors),
        *_accelerator(facts, slots),
        *_programs(facts),
        *_paths(facts, inputs),
    ]


def check_differences(hosts: Sequence[Facts]) -> list[Finding]:
    """Find what differs between hosts that must be equal."""
    findings = []
    for name in sorted({name for facts in hosts for name in facts["packages"]}):
        findings += _difference(name, {facts["host"]: facts["packages"].get(name) for facts in hosts})
    findings += _difference("Python", {facts["host"]: facts["python"] for facts in hosts})
    kinds = {facts["host"]: facts["accelerator"].get("kind") for facts in hosts}
    findings += _difference("the accelerator", kinds, fix="leave the odd hosts out of the hostfile")
    if not findings and len(hosts) > 1:
        return [Finding("ok", f"Python, packages and accelerators are the same on {len(hosts)} hosts")]
    return findings


def check_launching(facts: Facts, num_hosts: int) -> list[Finding]:
    """Judge whether this host can start ranks on others."""
    if num_hosts < 2:
        return []
    programs = facts["programs"]
    if not programs["ssh"]:
        fix = "apt-get install openssh-client, or start every host by itself with run_hostfile.sh --no_ssh"
        return [Finding("problem", "no ssh: the other hosts cannot be reached", fix)]
    if programs["pdsh"]:
        return [Finding("ok", "run_hostfile.sh: pdsh is there")]
    if programs["mpirun"]:
        return [Finding("note", "no pdsh for run_hostfile.sh; run_mpi.sh can be used", "apt-get install pdsh")]
    return [
        Finding(
            "problem", "neither pdsh nor mpirun: nothing starts the ranks", f"apt-get install pdsh, or {INSTALL} mpi"
        )
    ]


def _python(facts: Facts) -> Finding:
    version = tuple(int(part) for part in facts["python"].split(".")[:2])
    if version < OLDEST_PYTHON:
        fix = f"install Python 3.11 or newer, then: PYTHON=/path/to/it {INSTALL}"
        return Finding("problem", f"Python {facts['python']} is too old", fix)
    processors = f"{facts['cpus']} processor{'' if facts['cpus'] == 1 else 's'}"
    memory = gib(facts["memory_bytes"]) if facts["memory_bytes"] else "an unknown amount"
    return Finding("ok", f"Python {facts['python']}, {processors}, {memory} of memory free")


def _packages(facts: Facts, floors: Sequence[Requirement]) -> list[Finding]:
    found = facts["packages"]
    findings = []
    for requirement in floors:
        if requirement.name not in found:
            continue
        version = found[requirement.name]
        if version is None:
            findings.append(Finding("problem", f"{requirement.name} is not installed", INSTALL))
        elif not requirement.specifier.contains(version, prereleases=True):
            what = f"{requirement.name} is {version}, needed is {requirement.specifier}"
            findings.append(Finding("problem", what, INSTALL))
    if not findings:
        names = ("torch", "deepspeed", "transformers")
        return [Finding("ok", ", ".join(f"{name} {found[name]}" for name in names))]
    return findings


def _accelerator(facts: Facts, slots: int) -> list[Finding]:
    accelerator = facts["accelerator"]
    if "error" in accelerator:
        return [Finding("problem", f"torch does not load: {accelerator['error']}", f"rm -rf .venv, then {INSTALL}")]
    half = [name for name in ("bf16", "fp16") if accelerator[name]]
    precisions = f"half precisions: {' and '.join(half) or 'none'}"
    if accelerator["kind"] == "cpu":
        what = f"no GPU that torch can use: training runs on the CPU; {precisions}"
        fix = "if there is one, install its driver and a torch build with CUDA (nvidia-smi must list it)"
        return [Finding("note", what, fix)]
    names, sizes = accelerator["names"], accelerator["memory_bytes"]
    what = f"{len(names)} x {names[0]} with {gib(min(sizes))}; {precisions}"
    if slots > len(names):
        fix = f"give this host slots={len(names)} in the hostfile"
        return [Finding("problem", f"{what}; but {slots} ranks are to run here", fix)]
    return [Finding("ok", what)]


def _programs(facts: Facts) -> list[Finding]:
    programs = facts["programs"]
    findings = []
    if not programs["deepspeed"]:
        findings.append(Finding("problem", "the deepspeed command is not there", INSTALL))
    if facts["mpi4py_loads"]:
        findings.append(Finding("ok", f"MPI: mpi4py loads; mpirun: {programs['mpirun'] or 'none'}"))
    else:
        findings.append(Finding("note", "MPI: mpi4py does not load; only mpirun needs it", f"{INSTALL} mpi"))
    missing = [name for name in ("g++", "ninja") if not programs[name]]
    if missing:
        what = f"no {' and no '.join(missing)}: DeepSpeed cannot compile its optimizers; the shipped configs need none"
        findings.append(Finding("note", what, "apt-get install g++; ninja comes with the .venv"))
    return findings


def _paths(facts: Facts, inputs: Sequence[str]) -> list[Finding]:
    findings = []
    for path, about in facts["paths"].items():
        if path in inputs and not about["exists"]:
            fix = "copy it there, or put it on a file system that all hosts share"
            findings.append(Finding("problem", f"{path} is not there", fix))
        elif path not in inputs and not about["writable"]:
            findings.append(Finding("problem", f"{path} cannot be written", "give another --output_dir"))
        elif path not in inputs:
            findings.append(Finding("ok", f"{path}: {gib(about['free_bytes'])} of disk free"))
    return findings


def _difference(what: str, values: Mapping[str, Any], fix: str = EVERYWHERE) -> list[Finding]:
    if len(set(values.values())) < 2:
        return []
    listed = ", ".join(f"{host} {value or 'none'}" for host, value in values.items())
    return [Finding("problem", f"{what} differs between the hosts: {listed}", fix)]
