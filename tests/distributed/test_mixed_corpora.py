"""Two corpora with weights and two phases: the same run on any number of ranks, killed or not."""

from __future__ import annotations

import itertools
import shutil

import pytest

from data_tools import prepare_corpus
from tests.distributed.test_ranks import assert_same_losses
from tests.distributed.test_resume import wait_for_step
from tests.support.runs import kill_ranks, read_metrics, run_ranks, start_ranks, wait_ranks, write_documents


@pytest.fixture(scope="module")
def mixed(inputs, tmp_path_factory):
    """Return the arguments of a run of 12 steps over two corpora in two phases."""
    folder = tmp_path_factory.mktemp("mixed")
    write_documents(folder / "corpus.txt", documents=60, seed=1)
    words = ["--train_corpus", folder / "corpus.txt", "--bert_model", inputs / "teacher"]
    prepare_corpus.main([str(word) for word in [*words, "--output_dir", folder / "shards", "--max_seq_len", 64]])
    return [
        *("--pregenerated_data", f"{inputs / 'shards'}=0.7", f"{folder / 'shards'}=0.3"),
        *("--phases", "32:0.5,64:0.5", "--train_batch_size", 12, "--max_train_samples", 40, "--masked_lm_prob", 0.15),
        *("--teacher_model", inputs / "teacher", "--student_model", inputs / "student", "--teacher_dtype", "fp32"),
        *("--learning_rate", 1e-3, "--logging_steps", 1, "--max_steps", 12, "--save_steps", 4, "--eval_fraction", 0.1),
    ]


def test_a_run_of_two_phases_killed_on_two_ranks_gives_the_losses_of_one_rank(mixed, tmp_path):
    arguments = [*mixed, "--verify_data", "--output_dir", tmp_path / "one"]
    output = run_ranks("general_distill", arguments, log=tmp_path / "one.log").check().output
    assert "all files of the corpus are what was written" in output
    one = read_metrics(tmp_path / "one")
    steps = [line for line in one if "samples" in line]
    taken = [after["samples"] - before["samples"] for before, after in itertools.pairwise([{"samples": 0}, *steps])]
    # Epochs of 40 samples of 32 tokens, then of 20 samples of 64: the last step of each is short.
    assert taken == [12, 12, 12, 4, 12, 12, 6, 6, 6, 2, 6, 6]
    assert [line["epoch"] for line in steps] == [0] * 4 + [1] * 2 + [2] * 4 + [3] * 2

    arguments = [*mixed, "--output_dir", tmp_path / "two"]
    processes = start_ranks("general_distill", arguments, 2, tmp_path / "killed")
    wait_for_step(tmp_path / "two", 7, processes, tmp_path / "killed")  # in the second phase
    kill_ranks(processes)
    wait_ranks(processes, tmp_path / "killed")
    run_ranks("general_distill", arguments, world_size=2, log=tmp_path / "two.log").check()
    assert_same_losses(read_metrics(tmp_path / "two"), one, rel=2e-5)


def test_a_shard_flipped_by_hand_stops_the_run_and_is_named(inputs, general, tmp_path):
    shutil.copytree(inputs / "shards", tmp_path / "shards")
    (shard,) = (tmp_path / "shards").glob("*.bin")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    arguments = [*general, "--pregenerated_data", tmp_path / "shards", "--max_steps", 3, "--verify_data"]
    found = run_ranks("general_distill", [*arguments, "--output_dir", tmp_path / "out"], log=tmp_path / "log")
    assert found.returncode == 2
    assert f"{shard.name}' is damaged" in found.output
    assert "Traceback" not in found.output
    assert not (tmp_path / "out" / "model.safetensors").exists()
