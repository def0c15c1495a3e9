"""How much memory a rank of a general distillation needs, from the sizes of the models and the DeepSpeed config.

An estimate, not a promise: sums of what is known to be held, with an allowance for what the allocator and the libraries
keep. Steps that are recorded as CUDA graphs need as much once more and are not counted: they are recorded only where
that is free (`engine.graphs`). B rows of a micro-batch, S tokens of a row, H hidden size, I intermediate size,
M student layers.

`tests/benchmarks/memory_estimate.py` compares it with runs: on two cores of an AMD EPYC, Linux, Python 3.11.7, torch
2.13.0+cpu, 8, 16 and 32 rows of 128 tokens took 887, 1,015 and 1,290 MiB; estimated were 962, 1,094 and 1,358.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinybert_ds.models.fused_attention import FUSED_MULTIPLE

ALLOWANCE = 1.15  # fragments, buffers of the libraries, the communication of small tensors
PROCESS_BYTES = {"cpu": 560 << 20, "cuda": 900 << 20}
"""What a rank holds before it has a model: on a CPU the imported libraries, on a GPU the context and its kernels."""
_BUCKET = 50_000_000


@dataclass(frozen=True)
class ModelSize:
    """What an encoder's memory depends on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class Precision:
    """How a DeepSpeed config holds the student."""

    stage: int
    bytes: int  # of a parameter that computes: 2 or 4
    offloads_optimizer: bool = False
    offloads_parameters: bool = False


@dataclass(frozen=True)
class Job:
    """What is distilled how."""

    teacher: ModelSize
    student: ModelSize
    rows: int  # of a micro-batch of one rank
    sequence_length: int
    world_size: int
    teacher_bytes: int = 2  # of a teacher's parameter
    teacher_is_split: bool = False  # --teacher_engine zero3
    recomputes: bool = False  # --gradient_checkpointing
    device: str = "cuda"  # or "cpu"


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank, by what holds them."""

    device: Mapping[str, int]  # on a CPU: everything
    host: Mapping[str, int]  # CPU memory beside a GPU; empty on a CPU

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())


def precision_of(config: Mapping[str, Any]) -> Precision:
    """Read from a DeepSpeed JSON what memory depends on."""
    zero = config.get("zero_optimization") or {}
    half = any((config.get(name) or {}).get("enabled") for name in ("bf16", "fp16"))

    def offloads(key: str) -> bool:
        return (zero.get(key) or {}).get("device", "none") != "none"

    return Precision(
        stage=int(zero.get("stage", 0)),
        bytes=2 if half else 4,
        offloads_optimizer=offloads("offload_optimizer"),
        offloads_parameters=offloads("offload_param"),
    )


def estimate(job: Job, precision: Precision) -> Estimate:
    """Estimate the peak of one rank while it trains."""
    on_gpu = job.device != "cpu"
    device = {
        "process": PROCESS_BYTES["cuda" if on_gpu else "cpu"],
        "teacher": _teacher(job),
        **_student_states(job, precision),
        "activations": activation_bytes(job, precision),
        "teacher's outputs": teacher_output_bytes(job),
        "work space": _work_space(job, precision),
    }
    moved = [name for name in ("optimizer",) if precision.offloads_optimizer]
    moved += [name for name in ("parameters",) if precision.offloads_parameters]
    host: dict[str, int] = {}
    if on_gpu:
        host = {"process": PROCESS_BYTES["cpu"], "teacher, while it is read": 4 * job.teacher.parameters}
        host |= {name: device.pop(name) for name in moved}
    return Estimate(_with_allowance(device), _with_allowance(host))


def trained_parameters(job: Job) -> int:
    """The student and its projections, one for each state, weights and biases."""
    projections = (job.student.layers + 1) * (job.student.hidden + 1) * job.teacher.hidden
    return job.student.parameters + projections


def activation_bytes(job: Job, precision: Precision) -> int:
    """What the student's forward keeps for its backward.

    A layer keeps its input, queries, keys and values, the context, both residual sums and the first normalisation's
    output (8 H a token), and the intermediate values before and after the activation (2 I). The losses take their
    gradients in the forward: one H for each state, two for queries and keys, of each layer. Attention keeps no scores,
    except on a CPU with attention dropout, where PyTorch has no kernel that does without them; on a GPU it keeps wider
    copies of heads that no fused kernel takes (`models.fused_attention`). With checkpointing the layers keep their
    inputs, and one at a time has everything again.
    """
    student, tokens = job.student, job.rows * job.sequence_length
    whole_layers = 1 if job.recomputes else student.layers
    elements = whole_layers * (8 * student.hidden + 2 * student.intermediate) + 3 * student.hidden
    if job.recomputes:
        elements += student.layers * student.hidden
    losses = (3 * student.layers + 1) * student.hidden
    total = tokens * (elements + losses) * precision.bytes
    if job.device == "cuda" and _head_size(student) % FUSED_MULTIPLE:
        filled = -(-_head_size(student) // FUSED_MULTIPLE) * FUSED_MULTIPLE * student.heads
        total += 4 * whole_layers * tokens * filled * precision.bytes  # queries, keys, values and the context
    if job.device == "cpu" and student.attention_dropout > 0:
        total += 3 * whole_layers * student.heads * tokens * job.sequence_length * precision.bytes
    return total


def _head_size(size: ModelSize) -> int:
    return size.hidden // size.heads


def teacher_output_bytes(job: Job) -> int:
    """The states, queries and keys that the student imitates."""
    layers = job.student.layers
    return job.rows * job.sequence_length * (3 * layers + 1) * job.teacher.hidden * job.teacher_bytes


def checkpoint_bytes(job: Job) -> int:
    """One checkpoint: master parameters and both moments in float32, and a copy of the parameters."""
    return 16 * trained_parameters(job)


def _teacher(job: Job) -> int:
    whole = job.teacher.parameters * job.teacher_bytes
    if not job.teacher_is_split:
        return whole
    gathered = max(whole // max(1, job.teacher.layers), 1)  # about a layer ahead of the one that runs
    return whole // job.world_size + 2 * gathered


def _student_states(job: Job, precision: Precision) -> dict[str, int]:
    count, ranks, width = trained_parameters(job), job.world_size, precision.bytes
    split = {name: ranks if precision.stage >= stage else 1 for name, stage in _SPLIT_FROM.items()}
    parameters = count * width // split["parameters"]
    gradients = count * width // split["gradients"]
    if precision.stage >= 2:
        buckets = 1 if ranks == 1 and precision.stage == 2 else 2  # one rank of ZeRO 2 has nothing to overlap
        gradients += buckets * min(count, _BUCKET) * width  # on their way to their owners
    masters = 4 * count // split["optimizer"] if width == 2 or precision.stage else 0
    return {"parameters": parameters, "gradients": gradients, "optimizer": masters + 8 * count // split["optimizer"]}


_SPLIT_FROM = {"optimizer": 1, "gradients": 2, "parameters": 3}
"""What a ZeRO stage splits among the ranks."""


def _work_space(job: Job, precision: Precision) -> int:
    """What a layer needs for itself: the student's going backward, on top of everything that its forward kept.

    A teacher's layer has more in flight, but before the student's activations are there; only what it needs beyond
    those counts.
    """
    tokens = job.rows * job.sequence_length
    forward = tokens * (5 * job.teacher.hidden + 2 * job.teacher.intermediate) * job.teacher_bytes
    backward = tokens * (2 * job.student.hidden + 2 * job.student.intermediate) * precision.bytes
    return max(forward - activation_bytes(job, precision), backward)


def _with_allowance(parts: Mapping[str, int]) -> dict[str, int]:
    return {name: int(value * (1 if name == "process" else ALLOWANCE)) for name, value in parts.items()}
