"""Zeroth-order steps over the ranks of a `torch.distributed` run: who evaluates what, and what crosses the wire.

All ranks draw the same directions, so that a step needs of the others its losses alone: 8 bytes an evaluation,
whatever the model's size. Weights are never exchanged, only compared, by checksums, where that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from letgo.errors import LetgoError
from letgo.optim.base import check_choice, check_number
from letgo.optim.counter import mix

Share = Literal["data", "directions"]
SCALAR = 8
"""Bytes of a loss: float64."""


class RanksDifferError(LetgoError):
    """The ranks of a run hold different weights, so that what they do next means nothing."""


class Ranks:
    """How the evaluations of a step are shared.

    Args:
        share: `data`: every rank evaluates all of them, on rows of its own, and the losses are averaged. `directions`:
            every rank has the same rows and evaluates its part of them, and the losses are put together: the
            trajectory is that of one process, bit for bit, on however many ranks, where their machines compute alike.
        check_every: compare the ranks' weights every so many steps; 0: never.

    Without an initialised process group there is one rank, and nothing is exchanged.
    """

    def __init__(self, share: Share = "data", check_every: int = 0) -> None:
        check_choice("share", share, ("data", "directions"))
        check_number("check_every", check_every)
        self.share: Share = share
        self.check_every = int(check_every)
        self.bytes_exchanged = 0
        """What this rank has handed to the others so far."""

    @property
    def count(self) -> int:
        return dist.get_world_size() if self._together() else 1

    @property
    def rank(self) -> int:
        return dist.get_rank() if self._together() else 0

    def own(self, evaluations: int) -> list[int]:
        """Which of so many evaluations this rank makes."""
        if self.share == "data":
            return list(range(evaluations))
        return list(range(self.rank, evaluations, self.count))

    def joined(self, losses: Sequence[float], evaluations: int, device: torch.device) -> list[float]:
        """All losses of a step, given those that this rank evaluated (`own`): the same on all ranks."""
        if self.count == 1:
            return list(losses)
        # Only ranks add to a place that is theirs in the mode of directions, so the sum is exact there.
        stacked = torch.zeros(evaluations, dtype=torch.float64, device=device)
        stacked[self.own(evaluations)] = torch.tensor(losses, dtype=torch.float64, device=device)
        dist.all_reduce(stacked)
        self.bytes_exchanged += SCALAR * evaluations
        whole = stacked / self.count if self.share == "data" else stacked
        return whole.tolist()

    def check(self, tensors: Sequence[Tensor], step: int) -> None:
        """Compare the weights of all ranks, if it is time to.

        Raises:
            RanksDifferError: on every rank, naming those that differ from the first.
        """
        if self.count == 1 or not self.check_every or step % self.check_every:
            return
        device = tensors[0].device
        here = torch.tensor([checksum(tensors)], device=device)
        everywhere = [torch.empty_like(here) for _ in range(self.count)]
        dist.all_gather(everywhere, here)
        self.bytes_exchanged += SCALAR
        sums = [int(one) for one in everywhere]
        different = [str(rank) for rank, one in enumerate(sums) if one != sums[0]]
        if different:
            raise RanksDifferError(
                f"after step {step} the weights of rank {', '.join(different)} differ from those of rank 0: their "
                "machines or versions compute differently, or their data differ where directions are shared; start "
                "again from the last checkpoint"
            )

    @staticmethod
    def _together() -> bool:
        return dist.is_available() and dist.is_initialized()


def checksum(tensors: Sequence[Tensor]) -> int:
    """A number of 63 bits of all the bits of some tensors and their order."""
    sums = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
        bits = flat.view(width)
        # Two sums, so that values that change places are seen.
        odd = bits[1::2].sum(dtype=torch.int64) if len(bits) > 1 else torch.zeros((), dtype=torch.int64)
        sums += [int(bits.sum(dtype=torch.int64)), int(odd)]
    return mix(*sums) >> 1
