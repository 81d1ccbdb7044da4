"""Ranks of a `torch.distributed` run that are gone: what communication libraries raise then, by a name of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from letgo.core.errors import LetgoError, first_line

LOST = (
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "gloo/transport",
    "nccl",
)
"""What communication libraries say (in lower case) when a peer does not answer; gloo raises plain RuntimeErrors."""


class RankLostError(LetgoError):
    """A rank of the run has ended or does not answer, so that the others cannot go on."""


def has_ranks() -> bool:
    """Whether a process group is initialised, so that there are other ranks."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def is_rank_loss(error: BaseException) -> bool:
    """Whether an error is of ranks that do not answer, rather than of what one of them did."""
    import torch.distributed as dist

    if not isinstance(error, RuntimeError) or not has_ranks():
        return False
    return isinstance(error, dist.DistError) or any(words in str(error).lower() for words in LOST)


@contextmanager
def rank_loss_named() -> Iterator[None]:
    """Within: what a communication library raises when a rank is gone becomes a `RankLostError` that says so.

    For whatever a run does with its other ranks: the steps here are within it already, closures included.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_rank_loss(error):
            raise
        raise RankLostError(
            f"a rank is gone ({first_line(error)}); what it said last is in its own output; start again with --resume "
            "on however many are left"
        ) from error
