"""How far along the true gradient a step moves the weights: so that a phase that is only a random walk is seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letgo.optim.base import trained_parameters

MEASURES = ("moved", "step_size")


@dataclass(frozen=True)
class Moved:
    """A step x' = x - s of d weights, beside the gradient g of the whole loss at x."""

    cosine: float
    """<s, g> / (|s| |g|): 1 where the step goes down the steepest way. That of a random direction is about 0, with a
    standard deviation of 1 / sqrt(d). Of an estimate from q directions it is about sqrt(q / d). NaN where either is 0.
    """
    size: float
    """Root mean square of s over the weights."""


class Gauge:
    """Measures single steps of an optimizer: `before` it, then `after` it. It needs a copy of weights and gradients.

        gauge = Gauge(optimizer)
        gauge.before(closure)
        optimizer.step(closure)
        gauge.moved                  # what that step did

    The weights, the optimizer's state and the global generators are as without it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.gradients: list[Tensor | None] = []
        self.weights: list[Tensor] = []
        self.moved: Moved | None = None
        optimizer.register_step_post_hook(self._after)

    def before(self, closure: Callable[[], Any] | None = None) -> None:
        """Keep the weights, and the gradient: that which the closure computes, or which is in `.grad` already."""
        parameters = trained_parameters(self.optimizer)
        if closure is not None:
            devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
            with torch.random.fork_rng(devices), torch.enable_grad():
                closure()
        self.gradients = [None if p.grad is None else p.grad.detach().clone() for p in parameters]
        self.weights = [p.detach().clone() for p in parameters]
        if closure is not None:
            self.optimizer.zero_grad()

    def logged(self) -> dict[str, float]:
        """What the last step that was measured did, by the names of `MEASURES`; nothing when it is asked for again."""
        moved, self.moved = self.moved, None
        if moved is None:
            return {}
        # A step that moved nothing has no direction.
        return ({} if math.isnan(moved.cosine) else {"moved": moved.cosine}) | {"step_size": moved.size}

    def _after(self, *_: Any) -> None:
        if not self.weights:
            return
        steps = [w - p.detach() for w, p in zip(self.weights, trained_parameters(self.optimizer), strict=True)]
        with_gradient = [(s, g) for s, g in zip(steps, self.gradients, strict=True) if g is not None]
        self.gradients, self.weights = [], []
        length = math.sqrt(_product((s, s) for s in steps))
        slope = math.sqrt(_product((g, g) for _, g in with_gradient))
        cosine = _product(with_gradient) / (length * slope) if length and slope else math.nan
        self.moved = Moved(cosine, length / math.sqrt(max(1, sum(s.numel() for s in steps))))


def _product(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The inner product of two lists of tensors, in float64."""
    return math.fsum(float((a.double() * b.double()).sum()) for a, b in pairs)
