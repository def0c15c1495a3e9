"""Teachers of other languages: from text to evaluated students, each command to its end."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data_tools import trim_vocabulary
from tests.support.families import family_directory
from tests.support.models import config_directory, masked_lm_directory, model_directory
from tests.support.runs import read_metrics, run_ranks, write_documents, write_sentiment

WORDS = ("花呗", "借呗", "怎么", "还款", "电影", "好看", "天气", "下雨", "股票", "游戏", "我", "不", "了")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(WORDS))), "。")
STEPS = ("--max_steps", 4, "--learning_rate", 1e-3, "--logging_steps", 1, "--train_batch_size", 8)


def run(folder: Path, stage: str, *words: object) -> str:
    return run_ranks(stage, words, log=folder / "log").check().output


def losses(directory: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(directory) if "loss" in line]


@pytest.mark.slow
def test_a_trimmed_vocabulary_of_xlm_r_goes_with_its_untrimmed_teacher_through_all_stages(tmp_path):
    teacher = family_directory(tmp_path / "teacher", "xlm-roberta")
    write_documents(tmp_path / "corpus.txt", documents=60)
    write_sentiment(tmp_path / "task", rows=24)
    part = tmp_path / "vocabulary"
    words = ["--model", teacher, "--corpus", tmp_path / "corpus.txt", "--keep", 90, "--output_dir", part]
    trim_vocabulary.main([str(word) for word in [*words, "--allow_unknown"]])
    tokenizer = AutoTokenizer.from_pretrained(part)
    assert len(tokenizer) < len(AutoTokenizer.from_pretrained(teacher))

    shards = ("--train_corpus", tmp_path / "corpus.txt", "--bert_model", part, "--output_dir", tmp_path / "shards")
    run(tmp_path, "prepare_corpus", *shards, "--max_seq_len", 60, "--allow_unknown")
    student = config_directory(tmp_path / "config", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    general = ("--teacher_model", teacher, "--student_tokenizer", part, "--pregenerated_data", tmp_path / "shards")
    general += ("--student_model", student, "--eval_fraction", 0.2, "--output_dir", tmp_path / "general")
    run(tmp_path, "general_distill", *general, *STEPS)
    task = ("--data_dir", tmp_path / "task", "--task_name", "sst-2", "--allow_unknown", "--max_seq_length", 60)
    both = (*task, "--teacher_model", teacher, "--teacher_labels", "negative,positive", *STEPS)
    layers = ("--student_model", tmp_path / "general", "--output_dir", tmp_path / "intermediate")
    run(tmp_path, "task_distill", *both, *layers)
    predictions = ("--student_model", tmp_path / "intermediate", "--output_dir", tmp_path / "student")
    told = run(tmp_path, "task_distill", "--pred_distill", *both, *predictions)
    assert "the teacher reads the rows by its own tokeniser" in told
    judged = ("--student_model", tmp_path / "student", "--output_dir", tmp_path / "evaluation")
    run(tmp_path, "task_distill", "--do_eval", *task, *judged)
    for stage in ("general", "intermediate", "student"):
        assert len(losses(tmp_path / stage)) == 4
    results = [json.loads((tmp_path / place / "eval_results.json").read_text()) for place in ("student", "evaluation")]
    assert results[0] == results[1]


def write_chinese(folder: Path) -> None:
    """Write a corpus of Chinese sentences, a list of words, and AFQMC's files."""
    rng = random.Random(0)

    def sentence() -> str:
        return "".join(rng.choices(WORDS, k=rng.randint(2, 9)))

    documents = ["\n".join(f"{sentence()}。" for _ in range(rng.randint(3, 9))) for _ in range(60)]
    (folder / "corpus.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "clue" / "afqmc_public").mkdir(parents=True)
    for name, count in (("train", 24), ("dev", 12), ("test", 6)):
        last = [{"id": n} if name == "test" else {"label": str(n % 2)} for n in range(count)]
        rows = [{"sentence1": sentence(), "sentence2": sentence(), **more} for more in last]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "clue" / "afqmc_public" / f"{name}.json").write_text(lines, encoding="utf-8")


@pytest.mark.slow
def test_a_chinese_bert_goes_from_text_to_the_benchmarks_zip(tmp_path):
    write_chinese(tmp_path)
    bert = model_directory(tmp_path / "bert", vocabulary=VOCABULARY)
    masked = masked_lm_directory(tmp_path / "masked", vocabulary=VOCABULARY)
    student = config_directory(tmp_path / "config", vocab_size=len(VOCABULARY))
    shards = ("--train_corpus", tmp_path / "corpus.txt", "--bert_model", bert, "--output_dir", tmp_path / "shards")
    run(tmp_path, "prepare_corpus", *shards, "--max_seq_len", 48)
    general = ("--teacher_model", bert, "--student_model", student, "--pregenerated_data", tmp_path / "shards")
    masks = ("--masked_lm_prob", 0.15, "--do_whole_word_mask", "--word_list", tmp_path / "words.txt")
    run(tmp_path, "general_distill", *general, *masks, *STEPS, "--output_dir", tmp_path / "general")

    task = ("--data_dir", tmp_path / "clue" / "afqmc_public", "--task_name", "afqmc", "--max_seq_length", 48)
    recipe = ("--recipe", "clue/afqmc", *STEPS)
    run(tmp_path, "finetune", "--model", bert, *task, *recipe, "--output_dir", tmp_path / "teacher")
    variants = ("--pretrained_bert_model", masked, "--no_glove", "--chinese", "--N", 2)
    run(tmp_path, "augment_task", *variants, *task[:4])
    assert (tmp_path / "clue" / "afqmc_public" / "train_aug.tsv").is_file()
    both = (*task, "--teacher_model", tmp_path / "teacher", "--aug_train", *recipe)
    layers = ("--student_model", tmp_path / "general", "--output_dir", tmp_path / "intermediate")
    run(tmp_path, "task_distill", *both, *layers)
    predictions = ("--student_model", tmp_path / "intermediate", "--output_dir", tmp_path / "student")
    run(tmp_path, "task_distill", "--pred_distill", *both, *predictions)
    for stage in ("general", "intermediate", "student"):
        assert len(losses(tmp_path / stage)) == 4
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").config
    assert config.id2label == {0: "different", 1: "similar"}
    judged = ("--task_name", "afqmc", "--glue_dir", tmp_path / "clue", "--submission")
    judged += ("--max_seq_length", 48, "--output_dir", tmp_path / "judged")
    run(tmp_path, "evaluate_glue", "--model", f"student={tmp_path / 'student'}", *judged)
    with zipfile.ZipFile(tmp_path / "judged" / "student-submission.zip") as archive:
        lines = archive.read("afqmc_predict.json").decode().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["id"] for row in found] == list(range(6))
    assert {row["label"] for row in found} <= {"0", "1"}
