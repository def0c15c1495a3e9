"""Giving a directory to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from tinybert_ds.models.foreign import foreign_code

UPLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md", "onnx/*", "openvino/*", "[0-9]_*/*")
NOT_UPLOADED = (
    *("run.json", "trackers.json", "eval_results.json", ".*", "*/.*", "projections.safetensors"),
    *("checkpoints/*", "tensorboard/*", "wandb/*", "mlruns/*", "stalls/*"),
)
"""What is the run's and not the model's: run.json holds paths and the name of a host."""
_ADVICE = "look at the network, the login (`hf auth login`) and the right to write there, or leave --push_to_hub out"


def require_repository(repo: str) -> None:
    """Find the repository that an upload will go to, or make it, before any work.

    Raises:
        ModelError: The hub cannot be reached, or does not let this user write there.
    """
    with foreign_code(f"--push_to_hub {repo}: the hub cannot be reached or refuses", f"{_ADVICE} (nothing was done)"):
        HfApi().create_repo(repo, private=True, exist_ok=True)


def upload(directory: Path, repo: str) -> None:
    """Upload a model's files.

    Raises:
        ModelError: The hub cannot be reached, or does not take them; the directory stays as it is.
    """
    failed = f"{directory} is complete, but could not be uploaded to {repo}"
    with foreign_code(failed, f"try again with `hf upload {repo} {directory}`"):
        HfApi().upload_folder(
            repo_id=repo,
            folder_path=directory,
            allow_patterns=list(UPLOADED),
            ignore_patterns=list(NOT_UPLOADED),
            commit_message="Upload a model of TinyBERT-DS",
        )
