"""What stands in for CUDA graphs where there are none."""

from __future__ import annotations

import torch

from tinybert_ds.engine.cuda_recorder import Recorded, Work


class StandInRecorder:
    """It does the work again and copies the outputs to their places."""

    def record(self, work: Work) -> Recorded:
        with torch.random.fork_rng(devices=[]):  # to record draws no random numbers
            outputs = tuple(output.clone() for output in work())

        def replay() -> None:
            for place, output in zip(outputs, work(), strict=True):
                place.copy_(output)

        return Recorded(outputs, replay)

    def has_room(self) -> bool:
        return True
