from __future__ import annotations

import json

import pytest

from tinybert_ds.errors import CheckpointError
from tinybert_ds.records import read_checkpoint, read_metrics, read_run, sealed

LAYOUT = {"world_size": 2, "zero_stage": 1, "dtype": "bfloat16"}
CHECKPOINT = {"files": {"a.pt": 7}, "xxh3": {"a.pt": "0123456789abcdef"}, "layout": LAYOUT, "best_step": None}
RUN = {"identity": {"stage": "s"}, "launches": [{"world_size": 2, "arguments": {"resume": "auto", "seed": 1}}]}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_what_was_written_is_read_back_with_everything_that_is_not_typed(tmp_path):
    run = {**RUN, "finished": {"steps": 3, "results": {"loss": 0.5}}, "recipe": {"a": [1]}}
    assert read_run(write(tmp_path / "run.json", run)) == run
    assert read_checkpoint(write(tmp_path / "complete.json", CHECKPOINT)) == CHECKPOINT
    assert read_checkpoint(write(tmp_path / "complete.json", sealed(CHECKPOINT))) == CHECKPOINT


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "Expecting value"),
        (b"\xff{}", "it is no UTF-8"),
        (b"[]", "it: Input should be a valid dict"),
        (b"[" * 100_000, "brackets within brackets"),
        (b'{"identity": ' + b'{"a": ' * 100 + b"1" + b"}" * 101, "more than 64 levels"),
        (b'{"identity": {}, "launches": [], "identity": {}}', "the key 'identity' stands twice"),
        (b'{"identity": {"seed": ' + b"1" * 5000 + b"}}", "a number of thousands of digits"),
        ({}, "identity: Field required; launches: Field required"),
        ({**RUN, "identity": "s"}, "identity: Input should be a valid dict"),
        ({**RUN, "launches": {}}, "launches: Input should be a valid list"),
        ({**RUN, "launches": [{"world_size": "x"}]}, "launches.0.world_size: Input should be a valid integer"),
        ({**RUN, "launches": [{"from_step": -1}]}, "launches.0.from_step: Input should be greater than or equal to 0"),
        ({**RUN, "launches": [{"arguments": {"resume": 3}}]}, "launches.0.arguments.resume: Input should be a valid"),
        ({**RUN, "deepspeed_config": {"zero_optimization": []}}, "deepspeed_config.zero_optimization: Input should be"),
        ({**RUN, "finished": {"steps": 1}}, "finished.results: Field required"),
        (
            b'{"identity": {}, "launches": [], "finished": {"steps": 1, "results": {"a": ' + b"1" * 400 + b"}}}",
            "number",
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_damaged_record_is_one_error_with_its_name_and_what_is_wrong(tmp_path, content, told):
    with pytest.raises(CheckpointError) as caught:
        read_run(write(tmp_path / "run.json", content))
    message = str(caught.value)
    assert message.startswith(f"'{tmp_path}/run.json' is damaged, or not of this program: ")
    assert told in message
    assert len(message) < 600


def test_a_sealed_record_with_another_value_is_refused_although_its_shape_is_right(tmp_path):
    text = json.dumps(sealed(CHECKPOINT)).replace('"a.pt": 7', '"a.pt": 8')
    with pytest.raises(CheckpointError, match="its content is not what was written"):
        read_checkpoint(write(tmp_path / "complete.json", text.encode()))


def test_a_seal_of_nothing_is_no_missing_one(tmp_path):
    with pytest.raises(CheckpointError, match="its content is not what was written"):
        read_checkpoint(write(tmp_path / "complete.json", {**CHECKPOINT, "seal": None}))


def test_a_record_whose_seal_was_renamed_is_no_unsealed_one(tmp_path):
    text = json.dumps(sealed(CHECKPOINT)).replace('"seal"', '"sean"')
    with pytest.raises(CheckpointError, match="sean: Extra inputs are not permitted"):
        read_checkpoint(write(tmp_path / "complete.json", text.encode()))


def test_a_last_line_of_metrics_that_a_kill_has_torn_is_left_out_and_a_damaged_one_is_named(tmp_path):
    path = write(tmp_path / "metrics.jsonl", b'{"step": 1, "loss": NaN}\n{"step": 2, "clock": {"seconds": 1}}\n{"st')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert read_metrics(tmp_path / "none.jsonl") == []
    for line in (
        b'{"loss": 1.0}',
        b'{"step": 1.5}',
        b'{"step": 3, "loss": "low"}',
        b'{"step": 3, "clock": 1}',
        b"\xc3",
    ):
        write(path, b'{"step": 1}\n' + line + b"\n")
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl' is damaged in line 2: "):
            read_metrics(path)
