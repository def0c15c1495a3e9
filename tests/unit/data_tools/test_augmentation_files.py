"""The blocks of an augmentation and its output, as several commands and ranks write them."""

import threading
from collections import Counter

import pytest

from data_tools import augmentation_files
from data_tools.augment_rows import AugmentedBlock
from data_tools.augmentation_files import AugmentationFiles
from tinybert_ds.errors import DataError


def test_two_commands_with_the_same_settings_do_not_disturb_each_other(tmp_path):
    fast, slow = (AugmentationFiles(tmp_path / "train_aug.tsv", {"seed": 1}) for _ in range(2))
    blocks = [AugmentedBlock(number, [f"row {number}\t1"], Counter(rows=1)) for number in range(2)]
    fast.begin()
    slow.begin()
    slow.write_block(blocks[0])
    for block in blocks:
        fast.write_block(block)
    assert fast.finish("sentence\tlabel", 2) == Counter(rows=2)
    slow.write_block(blocks[1])
    assert slow.unfinished_blocks(2) == []
    assert slow.finish("sentence\tlabel", 2) == Counter(rows=2)
    assert (tmp_path / "train_aug.tsv").read_text() == "sentence\tlabel\nrow 0\t1\nrow 1\t1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_aug.json", "train_aug.tsv"]
    (tmp_path / "train_aug.json").unlink()
    with pytest.raises(DataError, match="nothing says what it was made of"):
        slow.write_block(blocks[1])


def test_damaged_records_and_blocks_are_named_instead_of_a_traceback(tmp_path):
    files = AugmentationFiles(tmp_path / "train_aug.tsv", {"seed": 1})
    block = AugmentedBlock(0, ["row\t1"], Counter(rows=1))
    files.begin()
    files.write_block(block)
    part = tmp_path / "train_aug.tsv.parts" / "0.part"
    for damaged in ("[1]\nrow\t1\n", '{"rows": "x"}\nrow\t1\n', "[" * 100_000, ""):
        part.write_text(damaged)
        with pytest.raises(DataError, match=r"0\.part, a finished block, is damaged: .*; remove it"):
            files.finish("sentence\tlabel", 1)
    files.write_block(block)
    files.finish("sentence\tlabel", 1)
    for damaged in ("[]", "{}", '{"identity": 1, "counts": {}, "output": {}}', "[" * 100_000):
        (tmp_path / "train_aug.json").write_text(damaged)
        with pytest.raises(DataError, match="nothing says what it was made of"):
            files.finished_counts()


def test_blocks_of_two_commands_with_different_settings_are_never_mixed(tmp_path):
    first, second = (AugmentationFiles(tmp_path / "train_aug.tsv", {"--seed": seed}) for seed in (1, 2))
    block = AugmentedBlock(0, ["row\t1"], Counter(rows=1))
    first.begin()
    second.begin()
    for go_on in (lambda: first.write_block(block), lambda: first.finish("sentence\tlabel", 0)):
        with pytest.raises(DataError, match=r"with other settings \(--seed was 1 and is 2 now\) has begun to augment"):
            go_on()
    assert second.unfinished_blocks(1) == [0]


def test_a_rank_waits_for_rank_0_and_sees_a_finished_output(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(augmentation_files, "_PATIENCE_SECONDS", 0.1)
    first = AugmentationFiles(tmp_path / "train_aug.tsv", {"seed": 1})
    AugmentationFiles(tmp_path / "train_aug.tsv", {"seed": 0}).begin()
    joined = []
    second = AugmentationFiles(tmp_path / "train_aug.tsv", {"seed": 1})
    thread = threading.Thread(target=lambda: joined.append(second.join()))
    thread.start()
    thread.join(timeout=0.5)
    assert thread.is_alive()  # the blocks that are there belong to another augmentation
    assert capsys.readouterr().err.count("still waiting for rank 0 to begin in") == 1
    first.begin()
    thread.join(timeout=10)
    assert joined == [True]
    first.finish("header", 0)
    assert not second.join()
    assert second.unfinished_blocks(3) == []
