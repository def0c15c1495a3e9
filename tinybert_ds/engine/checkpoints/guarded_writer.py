"""Writing DeepSpeed's checkpoint files where a disk may be full: one rank's failure becomes everybody's message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tinybert_ds.engine.deepspeed_private import replaced_writers


class GuardedWriter:
    """Stands in for an engine's checkpoint engine and remembers a failure to write instead of raising it.

    DeepSpeed's `save_checkpoint` meets the other ranks in barriers after every file: a rank that left it with an
    exception would leave them waiting.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.failure: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write one file."""
        try:
            self._inner.save(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch's own writer turns an OSError into a RuntimeError
            self.failure = f"{path}: {error}"


@contextmanager
def guarded_writer(engine: Any) -> Iterator[GuardedWriter]:
    """Let an engine write its checkpoint files through a GuardedWriter inside the context."""
    writer = GuardedWriter(engine.checkpoint_engine)

    def guarded_copy(copy: Callable[[str], None], save_path: str) -> None:
        try:
            copy(save_path)
        except OSError as error:
            writer.failure = f"{save_path}: {error}"

    with replaced_writers(engine, writer, guarded_copy):
        yield writer
