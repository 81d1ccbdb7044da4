"""What every plan is made of: phases of training, and the work between the two evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from letgo.data.pairs import ForgetRetainDataset
from letgo.planning.optimizers import OptimizerCost
from letgo.planning.report import Phase
from letgo.planning.tracing import Traced
from letgo.training.config import UnlearnConfig


@dataclass(frozen=True)
class Work:
    """What lies between the two evaluations of a run."""

    phases: tuple[Phase, ...]
    flops: Mapping[str, float]
    """By stage."""
    steps: int
    batch: torch.Size
    """Shape of the micro-batch, (rows, length)."""
    checkpoints: int = 0
    """Bytes on disk of those that are there at once."""
    references: int = 0
    """Bytes in letgo's cache."""


class PlannedRun(Protocol):
    """What the stages of a one-shot method ask of the run that is planned."""

    args: UnlearnConfig
    config: Any
    """The model's."""
    model: Any
    """Without values."""
    dataset: ForgetRetainDataset
    dtype: torch.dtype
    weights: int
    """Bytes; so are those below."""
    adapters: int
    trained: list[nn.Parameter]
    trained_bytes: int
    largest: int
    held: dict[str, int]

    def fragmented(self) -> float:
        """Resident bytes for each byte alive."""
        ...

    def part(self, name: str, rows: int) -> dict[str, Tensor]:
        """A micro-batch of so many rows, as it will be."""
        ...


def gathered_item(passes: Traced, fragmented: float) -> dict[str, int]:
    """Of a model that lies in shards: what a pass puts together of it, and gradients on their way to their shards."""
    return {"gathered layers": int(fragmented * passes.gathered)} if passes.gathered else {}


def training_phases(
    common: Mapping[str, int],
    passes: Traced,
    cost: OptimizerCost,
    *,
    fragmented: float,
    trained: int,
    largest: int,
    names: tuple[str, str] = ("train", "step"),
) -> tuple[Phase, Phase]:
    """A first-order step: its passes, then the optimizer's own.

    Args:
        common: what is alive in both beside the optimizer's state.
        passes: forward and backward.
        cost: of the optimizer.
        fragmented: resident bytes for each byte alive.
        trained: bytes of the trained parameters.
        largest: bytes of the largest of them.
        names: of the two phases.
    """
    common = {**common, "optimizer state": int(cost.state * trained)}
    first = {
        **common,
        "gradients": int(fragmented * passes.gradients),
        "activations": int(fragmented * max(0, passes.peak - passes.gradients - passes.gathered)),
        "copies that the optimizer holds": int(cost.held * trained),
        **gathered_item(passes, fragmented),
    }
    within = int(max(0, fragmented * (cost.step * trained + cost.largest * largest) - passes.gradients))
    second = {**common, "gradients": passes.gradients, "within the optimizer's step": within}
    return Phase(names[0], first), Phase(names[1], second)
