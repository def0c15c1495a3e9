"""What a model that is exported is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models import model_directory
from tests.support.runs import write_sentiment
from tests.unit.stages.test_export import ALONE, LABELS, no_ranks, of_task, words
from tinybert_ds.arguments import parse_arguments
from tinybert_ds.arguments.export import ExportModelArguments
from tinybert_ds.data.tasks import find_task
from tinybert_ds.errors import ModelError
from tinybert_ds.stages.export_subject import load_subject


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A classifier and its task."""
    folder = tmp_path_factory.mktemp("subject")
    model_directory(folder / "student", labels=LABELS, num_hidden_layers=1)
    write_sentiment(folder / "task", rows=80)
    return folder


def test_rows_that_a_model_has_no_positions_for_are_refused_and_noise_is_no_longer_than_they_are(folder, tmp_path):
    def loaded(directory: Path, *more: str):
        arguments, _ = parse_arguments(ExportModelArguments, ["--model", str(directory), "--output_dir", "o", *more])
        spec = find_task("sst-2", None) if "--data_dir" in more else None
        return load_subject(str(directory), spec, arguments, ALONE, role="model")

    model_directory(tmp_path / "student", model_type="roberta", labels=LABELS)  # 66 positions, of which 2 are not used
    assert loaded(tmp_path / "student").rows.lengths.max() == 64
    told = r"sequences of 65 tokens are longer than the 64 positions of .*lower --max_seq_length to at most 64"
    for directory, more in ((tmp_path / "student", []), (folder / "student", of_task(folder)[:-2])):
        with pytest.raises(ModelError, match=told), no_ranks():
            loaded(directory, *more, "--max_seq_length", "65")


def test_training_rows_need_no_labels_and_are_read_for_8_bits_alone(folder, tmp_path):
    def loaded(*precisions: str):
        given = ["--data_dir", str(tmp_path), "--task_name", "sst-2", "--precision", *precisions]
        arguments, _ = parse_arguments(ExportModelArguments, words(folder, "o", "--max_seq_length", "64", *given))
        return load_subject(arguments.model, find_task("sst-2", None), arguments, ALONE, role="model")

    lines = (folder / "task" / "dev.tsv").read_text().splitlines()
    (tmp_path / "dev.tsv").write_text("\n".join(lines) + "\n")
    with no_ranks():
        assert len(loaded("fp32", "fp16").rows) == 20
        (tmp_path / "train.tsv").write_text("\n".join(line.split("\t")[0] for line in lines[:9]) + "\n")
        subject = loaded("int8")
    assert (len(subject.rows), len(subject.training_rows)) == (20, 8)
