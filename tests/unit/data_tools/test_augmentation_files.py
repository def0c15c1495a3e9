"""The blocks of an augmentation and its output, as several commands and ranks write them."""

from collections import Counter

import pytest

from data_tools.augment_rows import AugmentedBlock
from data_tools.augmentation_files import AugmentationFiles
from tinybert_ds.errors import DataError


def files_of(tmp_path, **identity):
    return AugmentationFiles(tmp_path / "train_aug.tsv", identity)


def test_two_commands_with_the_same_settings_do_not_disturb_each_other(tmp_path):
    fast, slow = (files_of(tmp_path, seed=1) for _ in range(2))
    blocks = [AugmentedBlock(number, [f"row {number}\t1"], Counter(rows=1)) for number in range(2)]
    assert fast.begin()
    assert slow.begin()
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


def test_blocks_of_two_commands_with_different_settings_are_never_mixed(tmp_path):
    first, second = (files_of(tmp_path, seed=seed) for seed in (1, 2))
    block = AugmentedBlock(0, ["row\t1"], Counter(rows=1))
    assert first.begin()
    assert second.begin()
    first.write_block(block)
    assert second.unfinished_blocks(1) == [0]
    first.finish("sentence\tlabel", 1)
    for go_on in (lambda: second.write_block(block), lambda: second.finish("sentence\tlabel", 1), second.begin):
        with pytest.raises(DataError, match=r"is there and differs: seed is 1 there and 2 now\. Rename"):
            go_on()


def test_damaged_records_and_blocks_are_named_instead_of_a_traceback(tmp_path):
    files = files_of(tmp_path, seed=1)
    block = AugmentedBlock(0, ["row\t1"], Counter(rows=1))
    assert files.begin()
    files.write_block(block)
    for damaged in ("[1]\nrow\t1\n", '{"rows": "x"}\nrow\t1\n', "[" * 100_000, ""):
        (files.parts / "0.part").write_text(damaged)
        with pytest.raises(DataError, match=r"0\.part, a finished block, is damaged: .*; remove it"):
            files.finish("sentence\tlabel", 1)
    files.write_block(block)
    files.finish("sentence\tlabel", 1)
    for damaged in ("[]", "{}", '{"identity": 1, "counts": {}, "output": {}}', "[" * 100_000):
        (tmp_path / "train_aug.json").write_text(damaged)
        with pytest.raises(DataError, match="nothing says what it was made of"):
            files.finished_counts()


def test_a_rank_that_comes_late_sees_a_finished_output(tmp_path):
    first, late = (files_of(tmp_path, seed=1) for _ in range(2))
    assert first.begin()
    first.finish("header", 0)
    assert not late.begin()
    assert late.unfinished_blocks(3) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_aug.json", "train_aug.tsv"]
