"""Tensors from one rank to all others: what adds up the sums of `models/inherit` in one order."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from tinybert_ds.engine.ranks.process_group import World


class RankExchange:
    """The process group as `models.inherit.blocks.Exchange`."""

    def __init__(self, world: World) -> None:
        self.rank, self.size, self._device = world.rank, world.size, world.device

    def broadcast(self, tensors: dict[str, Tensor] | None, source: int) -> dict[str, Tensor]:
        """Return the tensors of rank `source`, on every rank; the others give None."""
        if self.size == 1:
            assert tensors is not None
            return tensors
        names = None if tensors is None else [(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
        box = [names]
        dist.broadcast_object_list(box, src=source)
        received: dict[str, Tensor] = {}
        for name, shape, dtype in box[0] or []:
            own = torch.empty(shape, dtype=dtype, device=self._device) if tensors is None else tensors[name]
            received[name] = own.to(self._device).contiguous()
            dist.broadcast(received[name], src=source)
        return received


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (B, X) of all ranks, one rank's behind the other's; their numbers B may differ. No gradients."""
    size = dist.get_world_size()
    rows = rows.detach().contiguous()
    if size == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(torch.cat(counts).max())
    padded = torch.nn.functional.pad(rows, (0, 0, 0, most - len(rows)))
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
