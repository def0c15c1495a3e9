"""How the benchmarks measure: turns, ratios, and the tables in their README."""

from __future__ import annotations

import shlex

import pytest

from tests.benchmarks import bench_step, measurement
from tests.benchmarks.measurement import interleave, rows_of, update_readme


@pytest.mark.slow
def test_variants_take_turns_and_the_first_round_does_not_count():
    turns = []
    seconds = interleave({name: lambda name=name: turns.append(name) for name in "ab"}, rounds=2)
    assert turns == list("ab" * 3)
    assert [len(seconds[name]) for name in "ab"] == [2, 2]


def test_a_ratio_is_the_peers_median_over_its_own():
    seconds = {"ours": [1.0, 3.0, 2.0], "peer": [6.0, 5.0, 100.0]}
    ours, peer = rows_of("x", "case", seconds, peers={"ours": "peer"}, samples=8, floors={"ours": 0.5})
    assert (ours.median_s, ours.ratio, ours.samples_per_s, ours.floor_s) == (2.0, 3.0, 4.0, 0.5)
    assert (peer.peer, peer.ratio, peer.floor_s) == ("peer", 1.0, None)


def test_a_table_replaces_what_stood_between_the_marks_of_its_section(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- one -->\nold\n<!-- end of one -->\nb\n<!-- two -->\n<!-- end of two -->\n")
    rows = rows_of("x", "the case", {"ours": [1.0]}, peers={})
    for _ in range(2):
        update_readme("one", rows, readme=readme)
    text = readme.read_text()
    assert text.startswith("a\n<!-- one -->\n")
    assert text.endswith("<!-- end of one -->\nb\n<!-- two -->\n<!-- end of two -->\n")
    assert text.count("the case") == 1
    assert "old" not in text
    with pytest.raises(SystemExit, match="no section between <!-- three -->"):
        update_readme("three", rows, readme=readme)


@pytest.mark.parametrize(
    ("gain", "asked", "timed", "said"),
    [
        (3.0, None, ["fp32", "bf16"], ""),
        (0.1, None, ["fp32"], "its rows are left out"),
        (0.1, ["bf16"], ["bf16"], "that have these\n"),
    ],
)
def test_bf16_is_timed_where_it_is_the_faster_one_or_asked_for(gain, asked, timed, said, monkeypatch, capsys):
    monkeypatch.setattr(bench_step, "half_precision_gain", lambda dtype: gain)
    monkeypatch.setattr(bench_step, "matrix_peak", lambda dtype: 1.0)
    assert list(bench_step.measured_peaks(asked)) == timed
    assert said in capsys.readouterr().out


def test_the_readme_has_a_section_for_each_command_in_it():
    text = measurement.README.read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if "--readme" in line and line.startswith("    ")]
    sections = [words[words.index("--readme") + 1] for words in map(shlex.split, commands)]
    assert len(sections) == len(set(sections)) == text.count("<!-- end of ") > 0
    for section in sections:
        assert text.count(f"<!-- {section} -->\n") == text.count(f"<!-- end of {section} -->\n") == 1
