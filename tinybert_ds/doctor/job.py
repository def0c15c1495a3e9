"""The part of the doctor that reads models and shards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tinybert_ds.arguments.doctor import DoctorArguments
from tinybert_ds.data.manifest import open_corpus, read_manifest
from tinybert_ds.doctor.findings import Finding
from tinybert_ds.doctor.job_checks import attempt, candidates, check_batch, check_disk, check_memory, room_of
from tinybert_ds.doctor.memory import Job
from tinybert_ds.doctor.sizes import size_of
from tinybert_ds.errors import UserError
from tinybert_ds.launch.hostfile import Host
from tinybert_ds.models.build import check_pair, resolve_student
from tinybert_ds.models.pretrained import read_config
from tinybert_ds.stages.vocabulary import read_vocabulary


def examine_job(
    values: DoctorArguments, hosts: Sequence[tuple[dict[str, Any], Host]], world_size: int
) -> list[Finding]:
    """Look at the job that the command line describes.

    Args:
        hosts: The facts of the hosts that answered; the one with the least room decides.
    """
    missing = {path for facts, _ in hosts for path, about in facts["paths"].items() if not about["exists"]}
    findings = [
        attempt(f"shards {directory}", partial(_corpus, directory))
        for directory, _ in values.corpora
        if directory not in missing  # which its host has been told of
    ]
    if values.teacher_model in missing:
        return findings
    if not values.teacher_model or not values.student_model or not hosts:
        return [*findings, Finding("note", "no memory is estimated without --teacher_model and --student_model")]
    try:
        teacher = read_config(values.teacher_model, role="teacher")
        student = read_config(resolve_student(values.student_model), role="student")
    except UserError as error:
        return [*findings, Finding("problem", str(error))]
    findings.append(attempt("teacher and student", partial(_pair, values, teacher, student)))
    findings += check_batch(values.train_batch_size, world_size, values.gradient_accumulation_steps)
    facts, host = min(hosts, key=_room_in)
    accelerator = facts["accelerator"]
    job = Job(
        size_of(teacher),
        size_of(student),
        rows=max(1, values.train_batch_size // (world_size * values.gradient_accumulation_steps)),
        sequence_length=sequence_length(values),
        world_size=world_size,
        teacher_bytes=2 if accelerator["kind"] != "cpu" or accelerator["bf16"] else 4,
        teacher_is_split=values.teacher_engine == "zero3",
        recomputes=values.gradient_checkpointing,
        device=accelerator["kind"],
    )
    configs = candidates(accelerator, Path(values.deepspeed_config) if values.deepspeed_config else None)
    findings += check_memory(job, room_of(facts, host.slots), configs)
    if values.output_dir:
        findings.append(check_disk(job, facts["paths"][values.output_dir]["free_bytes"]))
    return findings


def sequence_length(values: DoctorArguments) -> int:
    """Tokens of the longest sample, as training takes it. Shards that cannot be read are a finding of their own."""
    lengths = [values.max_seq_length] if values.max_seq_length else []
    for directory, _ in () if lengths else values.corpora:
        with suppress(UserError):
            lengths.append(read_manifest(Path(directory)).sampling.max_seq_len)
    return max(lengths, default=128)


def _room_in(place: tuple[dict[str, Any], Host]) -> int:
    room = room_of(place[0], place[1].slots)
    return room.device_bytes if room else 0


def _corpus(directory: str) -> str:
    manifest = open_corpus(directory).manifest
    return f"{manifest.documents:,} documents, {manifest.tokens:,} tokens"


def _pair(values: DoctorArguments, teacher: Any, student: Any) -> str:
    vocabulary = read_vocabulary(values.student_tokenizer, str(values.teacher_model), values.lower_case)
    layer_map = check_pair(
        teacher,
        student,
        layer_map=values.layer_map,
        projection=values.projection,
        attention=bool(values.attention_weight) and values.attention_loss == "scores",
        padding_token=vocabulary.tokenizer.pad_token_id,
        sequence_length=sequence_length(values),
        vocab_size=vocabulary.size,
    )
    return f"fit, with the layer map {list(layer_map)}"
