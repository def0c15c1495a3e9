"""What a run shows while it works: on the console, in TensorBoard, in metrics.jsonl and in its report."""

from __future__ import annotations

import json
import re

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.configs import zero_config
from tests.support.runs import run_ranks
from tinybert_ds.report.__main__ import main as report


def test_a_run_on_two_ranks_tells_where_it_stands_and_where_its_time_goes(general, tmp_path):
    out = tmp_path / "out"
    words = [*general, "--output_dir", out, "--max_steps", 6, "--logging_steps", 2, "--save_steps", 3]
    words += ["--deepspeed_config", zero_config(tmp_path / "ds.json", stage=2)]
    shown = run_ranks("general_distill", words, world_size=2, log=tmp_path / "log").check().output

    lines = [line for line in shown.splitlines() if re.match(r"step \d/6 ", line)]
    assert [line.split()[1] for line in lines] == ["2/6", "4/6", "6/6"]
    assert all(re.search(r"loss .* \(.*attention .*hidden .*samples/s .*tokens/s .* left", line) for line in lines)
    table = shown.partition("general distillation is finished")[2]
    for part in ("eval_loss ", "steps ", "throughput ", "teacher ", "communication, inside these", "model "):
        assert part in table, part
    assert str(out) in table
    other = (tmp_path / "log.rank1").read_text()
    assert "step " not in other
    assert "finished" not in other

    clocks = [json.loads(line).get("clock") for line in (out / "metrics.jsonl").read_text().splitlines()]
    for clock in filter(None, clocks):
        assert clock["steps"] == 2
        assert clock["communicated_bytes_per_step"] > 1000
        parts = {name: clock.get(f"{name}_share", 0.0) for name in ("data", "teacher", "student", "evaluation", "save")}
        assert 0 < clock["communication_share"] <= sum(parts.values()) <= 1.0001
        assert min(parts["teacher"], parts["student"]) > 0

    events = EventAccumulator(str(out / "tensorboard")).Reload()
    scalars = events.Tags()["scalars"]
    assert {"1_health/loss", "1_health/eval_loss", "2_time/communication_share", "5_final/loss"} <= set(scalars)
    assert any(tag.startswith("3_layers/attention_loss/") for tag in scalars)
    assert [event.step for event in events.Scalars("1_health/loss")] == [2, 4, 6]

    report([str(out)])
    page = (out / "report.html").read_text()
    assert "finished at step 6" in page
    assert "<figcaption>hidden loss" in page
    assert "MiB communicated a step" in (out / "report.md").read_text()
    run_ranks("general_distill", words, world_size=2, log=tmp_path / "again").check()  # a report is no foreign file
