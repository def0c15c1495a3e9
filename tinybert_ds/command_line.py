"""How a command ends: 0 done, 2 the user must change something, 130 interrupted; anything else is a fault."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable

from tinybert_ds.errors import UserError

SIBLING_DELAY_SECONDS = 10.0


def run_training(stage: str) -> None:
    """Run the training command `tinybert_ds.stages.<stage>`.

    DeepSpeed chooses its accelerator while it is imported; so `--no_cuda` is looked for before that.
    """
    torch = importlib.import_module("torch")  # here, because commands that train nothing start without it
    if "--no_cuda" in sys.argv or not torch.accelerator.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    run_command(lambda: importlib.import_module(f"tinybert_ds.stages.{stage}").main())


def run_command(main: Callable[[], None]) -> None:
    """Run `main`; end the process with exit code 2, and no traceback, on a `UserError`.

    Under a launcher every local rank meets the same error. Local rank 0 (the environment's `LOCAL_RANK`, 0 without one)
    prints it and leaves at once; the others wait first and stay silent, because a launcher kills the siblings of the
    first rank that leaves, and rank 0 must have printed by then.

    Raises:
        SystemExit: 2 on a `UserError`, 130 on an interrupt from the keyboard.
    """
    try:
        main()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(SIBLING_DELAY_SECONDS)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
