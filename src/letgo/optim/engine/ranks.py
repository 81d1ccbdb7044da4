"""Zeroth-order steps over the ranks of a `torch.distributed` run: who evaluates what, and what crosses the wire.

All ranks draw the same directions, so that a step needs of the others its losses alone: 8 bytes an evaluation,
whatever the model's size. Weights are never exchanged, only compared, by checksums, where that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from letgo.core.errors import LetgoError
from letgo.core.ranks_lost import has_ranks, rank_loss_named
from letgo.optim.base import check_choice, check_number
from letgo.optim.engine.counter import mix
from letgo.optim.engine.shards import Piece, piece_of

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
            Directions cannot be shared where the parameters are sharded (FSDP2): a forward pass is everybody's there.
        check_every: compare the ranks' weights every so many steps; 0: never. Shards differ by design: they are
            compared with their replicas (of a mesh that has some), parameters that are whole with everybody's.

    Without an initialised process group there is one rank, and nothing is exchanged.

    A rank that has ended makes the others' step raise a `RankLostError`: at once where its connections close with it
    (gloo), else after the timeout of the process group, which is torch's to know:
    `init_process_group(timeout=...)`. NCCL's watchdog may end the process itself then.
    """

    def __init__(self, share: Share = "data", check_every: int = 0) -> None:
        check_choice("share", share, ("data", "directions"))
        check_number("check_every", check_every)
        self.share: Share = share
        self.check_every = int(check_every)
        self.bytes_exchanged = 0
        """What this rank's optimizer has handed to the others so far: losses, checksums, lengths of sphere noise."""
        self.bytes_gathered = 0
        """What FSDP2 has sent of this rank's shards for the evaluations so far, as a ring sends it: every evaluation
        gathers every sharded parameter of the optimizer once, each shard goes to all others. Reckoned, not measured."""
        self.steps = 0
        self.scalars = 0
        """Losses put together so far."""

    @property
    def count(self) -> int:
        return dist.get_world_size() if has_ranks() else 1

    @property
    def rank(self) -> int:
        return dist.get_rank() if has_ranks() else 0

    def assigned(self, evaluations: int) -> list[int]:
        """Which of so many evaluations this rank makes."""
        if self.share == "data":
            return list(range(evaluations))
        return list(range(self.rank, evaluations, self.count))

    def joined(self, losses: Sequence[float], evaluations: int, device: torch.device) -> list[float]:
        """All losses of a step, given those that this rank evaluated (`own`): the same on all ranks."""
        self.steps += 1
        if self.count == 1:
            return list(losses)
        # Only ranks add to a place that is theirs in the mode of directions, so the sum is exact there.
        stacked = torch.zeros(evaluations, dtype=torch.float64, device=device)
        stacked[self.assigned(evaluations)] = torch.tensor(losses, dtype=torch.float64, device=device)
        with rank_loss_named():
            dist.all_reduce(stacked)
        self.bytes_exchanged += SCALAR * evaluations
        self.scalars += evaluations
        whole = stacked / self.count if self.share == "data" else stacked
        return whole.tolist()

    def note_gathers(self, pieces: Sequence[Piece], evaluations: int) -> None:
        """Add what so many evaluations of a model with these shards gather to `bytes_gathered`."""
        sent = sum(p.local.numel() * p.local.element_size() * (p.ways - 1) for p in pieces if p.sharded)
        self.bytes_gathered += sent * evaluations

    def check(self, tensors: Sequence[Tensor], step: int) -> None:
        """Compare the weights of all ranks, if it is time to.

        Raises:
            RanksDifferError: on every rank, naming those that differ from the first that should be like them.
        """
        if self.count == 1 or not self.check_every or step % self.check_every:
            return
        pieces = list(map(piece_of, tensors))
        sums = [checksum([piece.local for piece in pieces if not piece.sharded])]
        shards = [piece for piece in pieces if piece.sharded]
        if shards:
            # Ranks that hold the same rows of everything hold replicas of one another.
            position = mix(*[number for piece in shards for number in (piece.first, piece.local.shape[0])]) >> 1
            sums += [position, checksum([piece.local for piece in shards])]
        here = torch.tensor(sums, device=pieces[0].local.device)
        everywhere = [torch.empty_like(here) for _ in range(self.count)]
        with rank_loss_named():
            dist.all_gather(everywhere, here)
        self.bytes_exchanged += SCALAR * len(sums)
        sums_of_ranks = [sums_of_rank.tolist() for sums_of_rank in everywhere]
        different: dict[int, int] = {}
        firsts: dict[int, int] = {}
        for rank, theirs in enumerate(sums_of_ranks):
            if theirs[0] != sums_of_ranks[0][0]:
                different[rank] = 0
            elif shards:
                first = firsts.setdefault(theirs[1], rank)
                if theirs[2] != sums_of_ranks[first][2]:
                    different[rank] = first
        if different:
            raise RanksDifferError(
                f"after step {step} the weights of rank {', '.join(map(str, different))} differ from those of rank "
                f"{', '.join(map(str, sorted(set(different.values()))))}: their machines or versions compute "
                "differently, or their data differ where directions are shared; start again from the last checkpoint"
            )

    def describe(self) -> dict[str, Any]:
        """What was shared and what it cost this rank, for a record of the run.

        `scalars_a_step` and `bytes_a_step` are means over the steps; the bytes are what the optimizer hands to the
        others (checksums included). `bytes_gathered` is there where parameters are sharded: see there.
        """
        steps = max(1, self.steps)
        return {
            "share": self.share,
            "ranks": self.count,
            "steps": self.steps,
            "scalars_a_step": self.scalars / steps,
            "bytes_exchanged": self.bytes_exchanged,
            "bytes_a_step": self.bytes_exchanged / steps,
            **({"bytes_gathered": self.bytes_gathered} if self.bytes_gathered else {}),
        }


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
