import json
import re
from pathlib import Path

from tests.support.run_records import write_run
from tinybert_ds.report.charts import Series, line_chart
from tinybert_ds.report.figures import Bar, Dot, bars, scatter
from tinybert_ds.report.runs import read_runs
from tinybert_ds.report.seeds import mean_and_band, name_of, seed_groups


def test_a_better_model_stands_higher_and_a_slower_one_further_right():
    chart = scatter("quality", [Dot("<teacher>", 14.0, 0.8), Dot("student", 4.0, 0.7)], unit="ms")
    teacher, student = re.findall(r'<circle class="c\d filled" cx="([\d.]+)" cy="([\d.]+)" r="4.5"><title>', chart)
    assert float(teacher[0]) > float(student[0])
    assert float(teacher[1]) < float(student[1])
    assert "&lt;teacher&gt; <output>0.8 at 14 ms</output>" in chart
    assert "<teacher>" not in chart


def test_values_over_decades_are_told_apart_and_the_ninth_dot_from_the_first():
    chart = scatter("q", [Dot(f"m{n}", 2.0**n, n / 10) for n in range(9)], unit="MiB")
    assert "(log scale)" in chart
    assert chart.count("filled") == 2 * 8
    assert scatter("q", [], unit="ms") == ""
    assert "<circle" in scatter("q", [Dot("alone", 0.0, 0.0)], unit="ms")


def test_a_bar_is_as_long_as_its_parts_together():
    chart = bars("time", [Bar("a", [("teacher", 30.0), ("student", 10.0)]), Bar("b", [("student", 20.0)])])
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
    assert widths[0] == 3 * widths[1]
    assert widths[2] == 2 * widths[1]
    assert ">40.0</text>" in chart
    assert chart.count("<li>") == 2
    assert bars("time", [Bar("a", [])]) == ""


def test_a_band_reaches_from_the_lowest_to_the_highest_value_and_is_inside_the_chart():
    chart = line_chart("loss", [Series("a", [(0, 1.0), (10, 1.0)], [(0, 0.0, 2.0), (10, 0.5, 9.0)])])
    (points,) = re.findall(r'<polygon class="c0 band" points="([^"]*)"', chart)
    places = [tuple(map(float, place.split(","))) for place in points.split()]
    assert len(places) == 4
    assert all(0 <= top <= 250 for _, top in places)
    assert places[2][1] == min(top for _, top in places), "the highest value stands highest"


def test_runs_of_other_seeds_are_one_line_and_runs_that_differ_otherwise_are_not(tmp_path):
    for name, seed, rate in (("a", 1, 0.1), ("b", 2, 0.1), ("c", 1, 0.2)):
        path = write_run(tmp_path / name, loss=2.0 * seed)
        text = (path / "run.json").read_text()
        (path / "run.json").write_text(
            text.replace('"stage":', f'"seed": {seed}, "learning_rate": {rate}, "stage":', 1)
        )
    groups = seed_groups(read_runs([tmp_path]))
    assert [[run.name for run in group] for group in groups] == [["a", "b"], ["c"]]
    assert [name_of(group) for group in groups] == ["a and other seeds (2)", "c"]
    mean, band = mean_and_band([run.curve("loss") for run in groups[0]])
    assert mean[:2] == [(1, 3.0), (2, 1.5)]
    assert band[0] == (1, 2.0, 4.0)


def write_seeded_run(directory: Path, seed: int, layers: int | None, teacher: Path) -> None:
    """A run whose start and teacher have the seed in their weights; of a student of so many layers, None: not saved."""
    path = write_run(directory, arguments={"teacher_model": str(teacher), "student_model": str(directory / "gone")})
    record = json.loads((path / "run.json").read_text())
    record["identity"] |= {"seed": seed, "student": f"start {layers} {seed}", "teacher": f"{teacher.name} {seed}"}
    (path / "run.json").write_text(json.dumps(record))
    if layers is not None:
        config = {"model_type": "bert", "num_hidden_layers": layers, "pad_token_id": seed, "dropout": seed / 10}
        (path / "config.json").write_text(json.dumps(config))


def test_runs_of_other_seeds_whose_models_differ_are_lines_of_their_own(tmp_path):
    for name, layers in (("small", 4), ("large", 12)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "bert", "num_hidden_layers": layers}))
    runs = {
        "a": (1, 4, "large"),
        "b": (2, 4, "large"),
        "c": (3, 6, "large"),  # another student
        "d": (4, 4, "small"),  # another teacher
        "e": (5, None, "large"),  # students of which nothing is known but that their starts differ
        "f": (6, None, "large"),
    }
    for name, (seed, layers, teacher) in runs.items():
        write_seeded_run(tmp_path / "runs" / name, seed, layers, tmp_path / teacher)
    groups = seed_groups(read_runs([tmp_path / "runs"]))
    assert [[run.name for run in group] for group in groups] == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]


def test_two_runs_of_one_seed_stay_apart(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    assert [len(group) for group in seed_groups(read_runs([tmp_path]))] == [1, 1]


def test_only_steps_that_all_runs_have_are_averaged():
    assert mean_and_band([[(1, 1.0), (2, 2.0)], [(2, 4.0), (3, 5.0)]]) == ([(2, 3.0)], [(2, 2.0, 4.0)])
