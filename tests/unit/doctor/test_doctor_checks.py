"""The doctor's judgement, on facts that are made up."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
from packaging.requirements import Requirement

from tinybert_ds.doctor.host_checks import check_differences, check_host, check_launching
from tinybert_ds.doctor.job_checks import Room, candidates, check_batch, check_disk, check_memory, room_of
from tinybert_ds.doctor.memory import Job, ModelSize, checkpoint_bytes, estimate, precision_of

GIB = 2**30
FLOORS = [Requirement("torch>=2.13"), Requirement("deepspeed>=0.19.8")]
HEALTHY = {
    "host": "node1",
    "python": "3.11.7",
    "cpus": 64,
    "memory_bytes": 256 * GIB,
    "packages": {"torch": "2.13.0", "deepspeed": "0.19.8", "transformers": "5.23.0", "mpi4py": "4.1.2"},
    "programs": {name: f"/bin/{name}" for name in ("deepspeed", "mpirun", "pdsh", "ssh", "g++", "ninja")},
    "mpi4py_loads": True,
    "paths": {
        "shards": {"exists": True, "free_bytes": GIB, "writable": False},
        "out": {"exists": False, "free_bytes": GIB, "writable": True},
    },
    "accelerator": {"kind": "cuda", "names": ["A"] * 8, "memory_bytes": [40 * GIB] * 8, "bf16": True, "fp16": True},
}
BERT = ModelSize(parameters=110_000_000, layers=12, hidden=768, intermediate=3072, heads=12)
SMALL = ModelSize(parameters=14_000_000, layers=4, hidden=312, intermediate=1200, heads=12)
JOB = Job(BERT, SMALL, rows=32, sequence_length=128, world_size=8)


def facts(**changes):
    """Return healthy facts with changes; a dotted name changes what is inside."""
    result = copy.deepcopy(HEALTHY)
    for name, value in changes.items():
        *path, last = name.split("__")
        place = result
        for part in path:
            place = place[part]
        place[last] = value
    return result


def problems(findings):
    return [finding for finding in findings if finding.level == "problem"]


def check(about, slots=8):
    return check_host(about, slots, floors=FLOORS, inputs=["shards"])


def test_a_healthy_host_has_no_problem_and_says_what_it_has():
    findings = check(facts())
    assert {finding.level for finding in findings} == {"ok"}
    text = " ".join(finding.what for finding in findings)
    for part in ("Python 3.11.7", "torch 2.13.0", "8 x A with 40.0 GiB", "bf16 and fp16", "mpi4py loads"):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"python": "3.9.2"}, "too old"),
        ({"packages__torch": "2.9.1"}, "torch is 2.9.1"),
        ({"packages__deepspeed": None}, "deepspeed is not installed"),
        ({"accelerator": {"error": "ImportError: libtorch.so"}}, "torch does not load"),
        ({"accelerator__names": ["A"] * 4}, "8 ranks are to run here"),
        ({"programs__deepspeed": None}, "deepspeed command"),
        ({"paths__shards__exists": False}, "shards is not there"),
        ({"paths__out__writable": False}, "out cannot be written"),
    ],
)
def test_each_thing_that_keeps_a_job_from_running_is_a_problem_with_a_fix(changes, what):
    found = problems(check(facts(**changes)))
    assert len(found) == 1
    assert what in found[0].what
    assert found[0].fix


def test_what_only_some_jobs_need_is_a_note():
    lacking = check(facts(mpi4py_loads=False, programs__ninja=None))
    assert [finding.level for finding in lacking if finding.fix] == ["note", "note"]
    cpu = {"kind": "cpu", "names": ["x86"], "bf16": False, "fp16": False}
    assert problems(check(facts(accelerator=cpu))) == []


def test_versions_that_differ_between_hosts_are_named_with_both():
    found = check_differences([facts(), facts(host="node2", packages__torch="2.14.0")])
    assert len(found) == 1
    assert found[0].level == "problem"
    assert "torch differs between the hosts: node1 2.13.0, node2 2.14.0" in found[0].what
    assert check_differences([facts(), facts(host="node2")])[0].level == "ok"


def test_hosts_with_and_without_gpus_do_not_train_together():
    cpu = {"kind": "cpu", "names": ["x86"], "bf16": False, "fp16": False}
    assert problems(check_differences([facts(), facts(host="node2", accelerator=cpu)]))


def test_starting_ranks_on_other_hosts_needs_ssh_and_pdsh_or_mpirun():
    assert check_launching(facts(), 2)[0].level == "ok"
    assert check_launching(facts(programs__pdsh=None), 2)[0].level == "note"
    assert problems(check_launching(facts(programs__pdsh=None, programs__mpirun=None), 2))
    assert problems(check_launching(facts(programs__ssh=None), 2))
    assert check_launching(facts(programs__ssh=None), 1) == []


def test_a_batch_that_does_not_divide_names_those_that_would():
    assert check_batch(256, 8, 2)[0].what.endswith("16 rows a rank and step")
    finding = check_batch(100, 8, 1)[0]
    assert (finding.level, finding.fix) == ("problem", "take 96 or 104")
    assert check_batch(4, 8, 1)[0].fix == "take 8"


def test_the_first_config_that_fits_is_recommended():
    room = room_of(facts(), 8)
    assert room == Room(40 * GIB, 32 * GIB)
    findings = check_memory(JOB, room, candidates(HEALTHY["accelerator"], None))
    assert problems(findings) == []
    assert "take --deepspeed_config" in findings[-1].what
    assert "zero2_bf16.json" in findings[-1].what


def test_a_student_too_large_for_zero_2_is_sent_down_the_table():
    large = dataclasses.replace(SMALL, parameters=6_000_000_000)
    job = dataclasses.replace(JOB, student=large, rows=1)
    configs = candidates(HEALTHY["accelerator"], None)
    needs = [estimate(job, precision_of(json.loads(path.read_text()))) for path in configs]
    room = Room((needs[1].device_bytes + needs[2].device_bytes) // 2, 1000 * GIB)
    recommended = check_memory(job, room, configs)[-1]
    assert needs[1].device_bytes > needs[2].device_bytes
    assert "zero3_bf16.json" in recommended.what


def test_a_rank_too_small_for_its_batch_is_told_how_much_to_accumulate():
    one_row = estimate(dataclasses.replace(JOB, rows=8), precision_of({"zero_optimization": {"stage": 2}, "bf16": {}}))
    room = Room(one_row.device_bytes, 1000 * GIB)
    finding = check_memory(dataclasses.replace(JOB, rows=512), room, candidates(HEALTHY["accelerator"], None))[-1]
    assert finding.level == "problem"
    assert "--gradient_accumulation_steps" in finding.fix


def test_gpus_without_bf16_and_cpus_get_configs_that_they_can_compute():
    def names(**changes):
        return [path.stem for path in candidates({**HEALTHY["accelerator"], **changes}, None)]

    assert all("fp16" in name for name in names(bf16=False))
    assert all("fp32" in name for name in names(kind="cpu", bf16=False))
    assert names(kind="cpu")[0] == "zero0_autocast_bf16"
    assert all(path.is_file() for path in candidates(HEALTHY["accelerator"], None))


def test_the_disk_must_hold_the_checkpoints():
    needed = 3 * checkpoint_bytes(JOB)
    assert check_disk(JOB, needed).level == "ok"
    assert check_disk(JOB, needed - 1).level == "problem"
