"""Recorded steps, by the stand-in that does the work again: the same numbers, places, shapes and what is dropped."""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch

from tests.support.models import random_batch, tiny_model
from tests.support.standin_recorder import StandInRecorder
from tinybert_ds.engine import cuda_recorder, graphs
from tinybert_ds.engine.graphs import RecordedStudent, RecordedTeacher, Shapes, graph_refusal, with_tensors
from tinybert_ds.losses import gradients_only
from tinybert_ds.models.capture import CapturingEncoder
from tinybert_ds.models.student import DistilledStudent, TeacherPart
from tinybert_ds.objective import IntermediateObjective, PredictionObjective
from tinybert_ds.types import tensors_of

CPU = torch.device("cpu")
BATCHES = [random_batch(lengths, seed=seed) for seed, lengths in enumerate(((9, 4), (9, 9), (9, 5), (5, 5), (9, 7)))]


class CountingRecorder(StandInRecorder):
    """Counts what is recorded and what is replayed."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, work):
        self.recorded += 1
        recorded = super().record(work)

        def replay():
            self.replayed += 1
            recorded.replay()

        return recorded._replace(replay=replay)


def modules():
    """Return a teacher and a student of intermediate layers, with dropout."""
    dropout = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    teacher = CapturingEncoder(tiny_model(), states=(0, 2, 4), attention_layers=(1, 3), logits=False)
    model = tiny_model(num_hidden_layers=2, hidden_size=24, **dropout)
    encoder = CapturingEncoder(model, states=range(3), attention_layers=range(2), logits=False)
    torch.manual_seed(1)
    objective = IntermediateObjective(2, 24, 48, projection="per_layer", padding="valid")
    return teacher, DistilledStudent(encoder, objective, TeacherPart((0, 1, 2), (0, 1))).train()


def train(module, teach, batches, *, accumulation=1):
    """Take plain steps with a seed for each, as the loop does; return losses, gradients and weights of every step."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    history = []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        with torch.no_grad():
            lesson = teach(batch) if teach is not None else None
        with gradients_only():
            module(batch, lesson)["loss"].backward()
        if (number + 1) % accumulation:
            continue
        history.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        history.append([p.detach().clone() for p in module.parameters()])
    return history


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for left, right in zip(one, other, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("records_teacher", [True, False])
def test_recorded_steps_give_the_gradients_and_weights_of_plain_ones_dropout_included(records_teacher, accumulation):
    batches = (BATCHES * 3)[:14]
    teacher, plain = modules()
    recorded, recorder = copy.deepcopy(plain), CountingRecorder()
    expected = train(plain, teacher, batches, accumulation=accumulation)
    asked = RecordedTeacher(teacher, recorder) if records_teacher else None
    recorded.runner = RecordedStudent(recorded, recorder, keeps_gradients=accumulation > 1, teacher=asked)
    assert_same(train(recorded, asked or teacher, batches, accumulation=accumulation), expected)
    assert recorder.recorded == (3 if records_teacher else 2) * 2  # two shapes
    assert recorder.replayed == (3 if records_teacher else 2) * (14 - 2)  # all but the first of each


def test_predictions_and_labels_are_recorded_too():
    student = CapturingEncoder(tiny_model(labels=("a", "b")), states=(), attention_layers=(), logits=True)
    plain = DistilledStudent(student, PredictionObjective(weight=0.0, label_weight=1.0)).train()
    recorded, recorder = copy.deepcopy(plain), CountingRecorder()
    recorded.runner = RecordedStudent(recorded, recorder)
    assert_same(train(recorded, None, BATCHES), train(plain, None, BATCHES))
    assert recorder.replayed == 2 * 3


def test_what_is_read_or_only_evaluated_runs_as_it_is():
    teacher, module = modules()
    recorder = CountingRecorder()
    module.runner = RecordedStudent(module, recorder)
    lesson = teacher(BATCHES[0])
    for _ in range(3):
        assert "hidden_loss" in module(BATCHES[0], lesson)  # a step that somebody looks at
        with torch.no_grad(), gradients_only():
            assert "hidden_loss" in module(BATCHES[0], lesson)
        with gradients_only():
            assert "hidden_loss" in module.eval()(BATCHES[0], lesson)
        module.train()
    assert recorder.recorded == 0


@pytest.mark.parametrize("field", ["units", "groups"])
def test_steps_whose_work_depends_on_what_is_answered_run_as_they_are(field):
    teacher, module = modules()
    recorder = CountingRecorder()
    module.runner = RecordedStudent(module, recorder)
    batch = BATCHES[0]._replace(**{field: BATCHES[0].attention_mask.bool() if field == "units" else torch.zeros(2)})
    for _ in range(3):
        with gradients_only():
            module(batch, teacher(batch))
    assert recorder.recorded == 0


def test_what_a_teacher_says_that_is_not_finite_is_noted_in_recorded_steps():
    teacher, module = modules()
    module.runner = RecordedStudent(module, StandInRecorder())
    lesson = teacher(BATCHES[0])
    spoilt = lesson._replace(queries=tuple(query * float("nan") for query in lesson.queries))
    with gradients_only():
        for _ in range(3):
            module(BATCHES[0], lesson)
        assert module.teacher_check == 0
        module(BATCHES[0], spoilt)
        module(BATCHES[0], lesson)  # another micro-batch of the same step
    assert module.teacher_check.isnan()


def test_recordings_are_dropped_when_parameters_move():
    teacher, module = modules()
    recorder = CountingRecorder()
    module.runner = RecordedStudent(module, recorder)
    lesson = teacher(BATCHES[0])

    def step():
        with gradients_only():
            return module(BATCHES[0], lesson)

    for _ in range(3):
        step()
    assert recorder.recorded == 2
    weight = module.encoder.model.embeddings.word_embeddings.weight
    weight.data = weight.data.clone()
    assert "hidden_loss" in step()  # new again
    step()
    assert recorder.recorded == 4


def test_shapes_are_recorded_the_second_time_up_to_a_number_and_while_there_is_room(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_SHAPES", 1)
    recorder = SimpleNamespace(has_room=lambda: True)
    shapes = Shapes()
    assert [shapes.is_due("a", recorder) for _ in range(2)] == [False, True]
    shapes.recorded["a"] = "recording"
    assert [shapes.is_due("b", recorder) for _ in range(3)] == [False] * 3
    full = Shapes()
    assert [full.is_due("a", SimpleNamespace(has_room=lambda: False)) for _ in range(2)] == [False, False]


def test_what_cannot_be_recorded_is_said_once_and_runs_as_it_is(caplog):
    class Failing(StandInRecorder):
        def record(self, work):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    teacher, module = modules()
    module.runner = RecordedStudent(module, Failing())
    asked = RecordedTeacher(teacher, Failing())
    with caplog.at_level("WARNING", logger="tinybert_ds"), gradients_only():
        for _ in range(4):
            assert "hidden_loss" in module(BATCHES[0], asked(BATCHES[0]))
    assert len(caplog.messages) == 2  # the teacher's and the student's
    assert all(message.endswith("when stream is capturing") for message in caplog.messages)


def test_a_recording_asks_no_gradient_node_of_the_parameters_themselves():
    # DeepSpeed holds on to these nodes. They belong to the stream of plain steps, for which no recording may wait.
    teacher, module = modules()
    module.runner = RecordedStudent(module, StandInRecorder())
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    asked = []
    for parameter in parameters:
        parameter.register_hook(asked.append)
    lesson = teacher(BATCHES[0])
    with gradients_only():
        module(BATCHES[0], lesson)
        loss = module(BATCHES[0], lesson)["loss"]  # recorded, and replayed
    assert module.runner._shapes.recorded
    assert not asked
    assert all(mine is now for mine, now in zip(parameters, module.parameters(), strict=False))
    loss.backward()
    assert asked


class FakeCuda:
    """torch.cuda as far as a recorder needs it; CUDA calls every recording of `invalid` work so when it ends."""

    def __init__(self):
        self.streams, self.pools, self.ended = ["plain"], 0, 0
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: None)

    def graph_pool_handle(self):
        self.pools += 1
        return self.pools

    def current_stream(self, device):
        return self.streams[-1]

    def set_stream(self, stream):
        self.streams.append(stream)

    @contextlib.contextmanager
    def graph(self, graph, pool=None, capture_error_mode="global"):
        before = self.streams[-1]
        self.streams.append("recording")
        self.invalid = False
        yield
        if self.invalid:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.ended += 1
        self.streams.append(before)


def test_after_an_invalid_recording_the_plain_stream_is_back_and_the_generator_has_seen_an_end(monkeypatch):
    cuda, pools = FakeCuda(), []
    monkeypatch.setattr(cuda_recorder.torch, "cuda", cuda)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *place, name=name: pools.append((name, *place)), raising=False)
    recorder = cuda_recorder.CudaRecorder(CPU)

    def reads():
        cuda.invalid = True
        return [torch.ones(())]

    with pytest.raises(RuntimeError, match="previous error during capture"):
        recorder.record(reads)
    assert cuda.streams[-1] == "plain"
    assert cuda.ended == 1
    assert pools == [("_cuda_endAllocateToPool", 0, 1), ("_cuda_releasePool", 0, 1)]
    assert recorder._pool == cuda.pools == 2
    assert float(recorder.record(lambda: [torch.ones(())]).outputs[0]) == 1.0


def test_tensors_of_nested_tuples_are_replaced_in_order():
    batch = BATCHES[0]
    tensors = tensors_of((batch, None))
    assert len(tensors) == 5  # there are no units
    other, nothing = with_tensors((batch, None), [tensor + 1 for tensor in tensors])
    assert nothing is None
    assert other.counts == batch.counts
    assert torch.equal(other.input_ids, batch.input_ids + 1)
    assert torch.equal(other.sample_ids, batch.sample_ids + 1)


def engine(**changes):
    values = {"zero_optimization_partition_weights": False, "zero_offload_optimizer": None, "zero_offload_param": None}
    module = changes.pop("module", None) or modules()[1]
    values = {name: lambda value=value: value for name, value in {**values, **changes}.items()}
    return SimpleNamespace(**values, module=module)


def test_why_nothing_is_recorded_is_said():
    arguments = SimpleNamespace(cuda_graphs="auto", gradient_checkpointing=False, compile=False)
    cuda = torch.device("cuda")
    assert graph_refusal(arguments, [engine()], cuda) is None
    assert graph_refusal(arguments, [engine()], CPU) == ""
    assert graph_refusal(SimpleNamespace(**{**vars(arguments), "cuda_graphs": "off"}), [engine()], cuda) == ""
    assert "ZeRO 3" in graph_refusal(arguments, [engine(), engine(zero_optimization_partition_weights=True)], cuda)
    assert "offloaded" in graph_refusal(arguments, [engine(zero_offload_optimizer="cpu")], cuda)
    other = modules()[1]
    other.objective = torch.nn.Identity()
    assert "may read numbers" in graph_refusal(arguments, [engine(module=other)], cuda)
    other = modules()[1]
    other.encoder.model.set_attn_implementation("eager")
    assert "may read numbers" in graph_refusal(arguments, [engine(module=other)], cuda)
    for name in ("gradient_checkpointing", "compile"):
        reason = graph_refusal(SimpleNamespace(**{**vars(arguments), name: True}), [engine()], cuda)
        assert f"--{name}" in reason
