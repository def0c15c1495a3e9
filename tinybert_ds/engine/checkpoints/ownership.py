"""Which checkpoints may be unpickled: those that this user's runs have written, and nothing beside them.

DeepSpeed's checkpoints are pickles, and reading a pickle can run code. So a checkpoint is loaded only from the
directory of this run (`run_directory`), when all of it belongs to this user and `complete.json` lists every file:
DeepSpeed looks for files by pattern and would read one that somebody has put there.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tinybert_ds.errors import CheckpointError
from tinybert_ds.records import read_checkpoint


def require_own_files(directory: Path, manifest: str) -> None:
    """Refuse a checkpoint that somebody else may have had a hand in.

    Args:
        manifest: Name of the manifest, which lists its files: {"files": {name: ...}}.

    Raises:
        CheckpointError: Something in it belongs to another user, is a link, or is not in the manifest; all are named.
    """
    listed = {manifest, *read_checkpoint(directory / manifest)["files"]}
    found = []
    for path in [directory, *sorted(directory.rglob("*"))]:
        about = path.lstat()
        name = "it" if path == directory else str(path.relative_to(directory))
        if about.st_uid != os.getuid():
            found.append(f"{name} belongs to user {about.st_uid}, not to {os.getuid()}")
        elif stat.S_ISLNK(about.st_mode):
            found.append(f"{name} is a link")
        elif not stat.S_ISDIR(about.st_mode) and name not in listed:
            found.append(f"{name} is not one of its files")
    if found:
        raise CheckpointError(
            f"checkpoint {directory} is not loaded, because reading it could run code that somebody else has put in: "
            f"{'; '.join(found)}. Remove what is foreign, or take over what is yours (chown), or start anew in another "
            "--output_dir"
        )
