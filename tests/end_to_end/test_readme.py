"""The README's steps, in their order, on small inputs: every command that it shows is run."""

from __future__ import annotations

import json
import re
import shlex

from transformers import AutoModelForSequenceClassification

from tests.support.models import config_directory, model_directory
from tests.support.runs import ROOT, run_ranks, write_documents, write_sentiment

COMMANDS = {
    "data_tools/pregenerate_training_data.py": "prepare_corpus",
    "data_tools/inspect_shards.py": "inspect_shards",
    "launchers/general_distill.py": "general_distill",
    "launchers/finetune_teacher.py": "finetune",
    "launchers/inherit_student.py": "inherit",
    "launchers/task_distill.py": "task_distill",
    "launchers/export_model.py": "export",
}
SHORT = ["--max_steps", "2", "--logging_steps", "1"]


def readme_commands():
    """Return (script, its words) of every command in a bash block."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines]
    scripts = [next(i for i, word in enumerate(words) if word.endswith(".py")) for words in commands]
    return [(words[i], words[i + 1 :]) for i, words in zip(scripts, commands, strict=True)]


def test_the_steps_of_the_readme_run_in_their_order(tmp_path):
    model_directory(tmp_path / "teacher")
    student = config_directory(tmp_path / "4L")
    write_documents(tmp_path / "corpus.txt", documents=60)
    write_sentiment(tmp_path / "task", rows=40)
    commands = readme_commands()
    assert {script for script, _ in commands} == set(COMMANDS)
    for script, words in commands:
        here = [
            str(tmp_path / word) if (tmp_path / word).exists() or is_output(words, i) else word
            for i, word in enumerate(words)
        ]
        here = [str(student) if word == "4L_312" else word for word in here]
        if script == "launchers/export_model.py":
            here += ["--max_loss", "1"]  # a student of two steps decides by a hair
        elif script.startswith("launchers/") and "--do_eval" not in words and "inherit" not in script:
            here += SHORT
        if script == "launchers/general_distill.py":
            here += ["--max_seq_length", "64"]
        run_ranks(COMMANDS[script], here, log=tmp_path / "log").check()
    for name in ("student", "joint_student"):
        assert AutoModelForSequenceClassification.from_pretrained(tmp_path / name).config.num_labels == 2
    assert 0 <= json.loads((tmp_path / "evaluation" / "eval_results.json").read_text())["eval_accuracy"] <= 1
    assert "launchers/task_distill.py" in (tmp_path / "student" / "README.md").read_text()
    rows = json.loads((tmp_path / "exported" / "report.json").read_text())["exports"]
    assert [row["name"] for row in rows] == 2 * ["torch fp32", "ONNX fp32", "ONNX int8 dynamic"]


def is_output(words, index):
    return index > 0 and words[index - 1] == "--output_dir"


def test_the_tree_of_the_readme_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    places = re.findall(r"^    ((?:tinybert_ds|data_tools|launchers|ds_configs|tests)/\S*)  ", text, flags=re.MULTILINE)
    assert len(places) > 8
    assert [place for place in places if not (ROOT / place).exists()] == []
    configs = re.findall(r"`(zero\w+\.json)`", text)
    shipped = {path.name for path in (ROOT / "ds_configs").glob("*.json")}
    assert configs
    assert set(configs) <= shipped


def test_the_table_of_the_configs_names_each_of_them_once():
    text = (ROOT / "ds_configs" / "README.md").read_text(encoding="utf-8")
    configs = re.findall(r"^\| `(zero\w+\.json)` \|", text, flags=re.MULTILINE)
    assert sorted(configs) == sorted(path.name for path in (ROOT / "ds_configs").glob("*.json"))
