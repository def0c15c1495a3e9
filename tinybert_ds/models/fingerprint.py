"""What a model directory holds, as one hash: two runs with the same fingerprint start from the same weights."""

from __future__ import annotations

from pathlib import Path

import xxhash

from tinybert_ds.models.directory import model_files
from tinybert_ds.progress import progress_bar

_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
_CHUNK_BYTES = 1 << 24


def model_fingerprint(path: str | Path) -> str:
    """Hash the config and the weights of a model.

    Returns:
        xxh3 over the names and contents of its files, as hexadecimal.
    """
    path = model_files(path)
    files = [path] if path.is_file() else sorted({f for pattern in _PATTERNS for f in path.glob(pattern)})
    digest = xxhash.xxh3_128()
    total = sum(file.stat().st_size for file in files)
    with progress_bar(total=total, desc=f"hashing {path.name}", unit="B", unit_scale=True) as bar:
        for file in files:
            digest.update(file.name.encode() if path.is_dir() else b"config.json")
            with file.open("rb") as handle:
                while chunk := handle.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    bar.update(len(chunk))
    return digest.hexdigest()
