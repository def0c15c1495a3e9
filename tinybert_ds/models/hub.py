"""Giving a directory to the Hugging Face hub."""

from __future__ import annotations

from glob import escape
from pathlib import Path

from huggingface_hub import HfApi

from tinybert_ds.models.foreign import foreign_code

UPLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md", "onnx/*", "openvino/*", "[0-9]_*/*")
"""Where the files of a model are; `*` stays within a folder, because others hold checkpoints or whole runs."""
NOT_UPLOADED = ("run.json", "trackers.json", "eval_results.json", "projections.safetensors")
"""What is the run's and not the model's: run.json holds paths and the name of a host."""
_ADVICE = "look at the network, the login (`hf auth login`) and the right to write there"


def require_repository(repo: str) -> None:
    """Find the repository that an upload will go to, or make it, before any work.

    Raises:
        ModelError: The hub cannot be reached, or does not let this user write there.
    """
    failed = f"--push_to_hub {repo}: the hub cannot be reached or refuses"
    with foreign_code(failed, f"{_ADVICE}, or leave --push_to_hub out (no work was begun)"):
        HfApi().create_repo(repo, private=True, exist_ok=True)


def upload(directory: Path, repo: str) -> None:
    """Upload a model's files.

    Raises:
        ModelError: The hub cannot be reached, or does not take them; the directory stays as it is.
    """
    failed = f"{directory} is complete, but could not be uploaded to {repo}"
    with foreign_code(failed, f"{_ADVICE}, and give the same command again: it goes on with the upload"):
        HfApi().upload_folder(
            repo_id=repo,
            folder_path=directory,
            allow_patterns=[escape(path) for path in _model_paths(directory)],
            commit_message="Upload a model of TinyBERT-DS",
        )


def _model_paths(directory: Path) -> list[str]:
    """Return the files of a model; by their whole paths, because the `*` of the hub's patterns crosses folders."""
    found = {path for pattern in UPLOADED for path in directory.glob(pattern) if path.is_file()}
    kept = (path for path in found if path.name not in NOT_UPLOADED and not path.name.startswith("."))
    return sorted(path.relative_to(directory).as_posix() for path in kept)
