"""DeepSpeed configs for tests."""

from __future__ import annotations

import json
from pathlib import Path


def zero_config(path: Path, *, stage: int, bf16: bool = False) -> Path:
    """Write a DeepSpeed JSON with a ZeRO stage."""
    config = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": bf16}}
    path.write_text(json.dumps(config))
    return path
