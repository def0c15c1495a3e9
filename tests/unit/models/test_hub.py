import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects

from tinybert_ds.errors import ModelError
from tinybert_ds.models import hub

OF_A_MODEL = ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "README.md", "notes[1].txt")
OF_A_RUN = (
    *("run.json", "trackers.json", "eval_results.json", "metrics.jsonl", "projections.safetensors", ".lock.json"),
    *("checkpoints/step-3/complete.json", "stalls/rank0.txt", "wandb/run-1/files/wandb-metadata.json"),
    *("tensorboard/events.txt", "mlruns/0/meta.json"),
)
FOLDERS = ("1_Pooling/config.json", "2_Dense/model.safetensors", "onnx/model.onnx", "openvino/model_int8.xml")


@pytest.fixture
def uploaded(monkeypatch):
    """Return what uploads to a stand-in of the hub took, and where: repository -> paths."""
    found = {}

    def upload_folder(self, *, repo_id, folder_path, allow_patterns=None, ignore_patterns=None, **named):
        paths = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        taken = filter_repo_objects(paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        found[repo_id] = set(taken)

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return found


def write(directory, *paths):
    for path in paths:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).touch()


def test_an_upload_takes_the_model_with_its_modules_and_exports_and_leaves_the_run(tmp_path, uploaded):
    write(tmp_path, *OF_A_MODEL, *OF_A_RUN, *FOLDERS, "onnx/run.json", "onnx/.hidden")
    hub.upload(tmp_path, "a/b")
    assert uploaded == {"a/b": {*OF_A_MODEL, *FOLDERS}}


def test_an_upload_of_a_search_leaves_its_trials(tmp_path, uploaded):
    write(tmp_path, *OF_A_MODEL, "search.json", "search.md")
    for trial in ("lr1e-05-seed1", "lr3e-05-seed2"):
        write(tmp_path / trial, *OF_A_MODEL, *OF_A_RUN)
    hub.upload(tmp_path, "a/b")
    assert uploaded == {"a/b": {*OF_A_MODEL, "search.json", "search.md"}}


def test_a_failed_upload_is_told_with_what_goes_on_with_it(tmp_path, monkeypatch):
    def fail(self, **named):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(HfApi, "upload_folder", fail)
    with pytest.raises(ModelError, match=r"is complete, but could not be uploaded to a/b: .*no route") as error:
        hub.upload(tmp_path, "a/b")
    assert "give the same command again: it goes on with the upload" in str(error.value)
    assert "hf upload" not in str(error.value), "that would publish the whole directory"


def test_a_repository_that_cannot_be_reached_is_told_of():
    with pytest.raises(ModelError, match=r"--push_to_hub a/b: the hub cannot be reached or refuses"):
        hub.require_repository("a/b")  # the tests are offline
