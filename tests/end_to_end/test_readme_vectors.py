"""The README's commands for sentence vectors, on small inputs."""

from __future__ import annotations

import json
import re
import shlex

from tests.support.models import config_directory
from tests.support.runs import ROOT, run_ranks
from tests.support.sentences import random_texts, sentence_directory, write_retrieval, write_sts
from tinybert_ds.models.sentence.directory import read_modules

COMMANDS = {"launchers/embed_distill.py": "embed_distill", "launchers/embed_evaluate.py": "embed_evaluate"}


def section_commands():
    """Return (script, its words) of the commands in the README's section."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Sentence vectors\n")[2].partition("\n## ")[0]
    lines = "\n".join(re.findall(r"^    (.*)$", section, flags=re.MULTILINE)).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines]
    scripts = [next(i for i, word in enumerate(words) if word.endswith(".py")) for words in commands]
    return [(words[i], words[i + 1 :]) for i, words in zip(scripts, commands, strict=True)]


def test_the_commands_for_sentence_vectors_run_in_their_order(tmp_path):
    sentence_directory(tmp_path / "encoder", width=20)
    student = config_directory(tmp_path / "3L")
    (tmp_path / "texts.txt").write_text("\n".join(random_texts(60)) + "\n")
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in random_texts(9, seed=1)))
    write_sts(tmp_path / "dev.tsv", pairs=12)
    texts = random_texts(8)
    write_retrieval(
        tmp_path / "scifact",
        documents=[(f"d{n}", "", text) for n, text in enumerate(texts)],
        queries=[("q", texts[2])],
        judgements=[("q", "d2", 1)],
    )
    commands = section_commands()
    assert [script for script, _ in commands] == list(COMMANDS)
    for script, words in commands:
        outputs = {words[words.index("--output_dir") + 1]}
        here = [str(tmp_path / word) if (tmp_path / word).exists() or word in outputs else word for word in words]
        here = [str(student) if word == "3L_192" else word for word in here]
        if script == "launchers/embed_distill.py":
            here += ["--max_steps", "3", "--logging_steps", "1"]
        run_ranks(COMMANDS[script], here, log=tmp_path / "log").check()
    assert read_modules(tmp_path / "embedder", 24).width(24) == 20
    results = json.loads((tmp_path / "judged" / "eval_results.json").read_text())
    assert results.keys() == {"eval_dev_spearman", "eval_scifact_ndcg@10"}
