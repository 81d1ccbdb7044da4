"""Averages of the weights along a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.optim.base import Closure, ParamsT, check_choice, check_number, trained_parameters
from letgo.optim.engine.inner import PassingWrapper
from letgo.optim.engine.shards import cut_like, forget_gathered, is_distributed, local
from letgo.optim.smoothing import weights_at


class WeightAveraging(PassingWrapper):
    r"""Any optimizer, and an average of the weights that it passes through.

    .. code-block:: text

        input: base optimizer B, start s, period k
        for t = 1, 2, ...
            x = step of B
            if t >= s and (t - s) mod k = 0:
                mean (SWA):  a = a + (x - a) / (number of weights averaged, this one too)
                ema:         a = decay a + (1 - decay) x           (the first time a = x)

    The run goes on from x; `finish()` puts a in its place, `finished()` does so for a while.

    Source: Izmailov et al., stochastic weight averaging (arXiv 1803.05407); in unlearning, from step 100 every 5 steps:
    Fan et al., arXiv 2502.05374.

    Args:
        params: parameters or groups.
        lr: the base's rate.
        base: name in the catalog; any grade.
        start: s, the first step whose weights count.
        every: k.
        kind: `mean` or `ema`.
        decay: of `ema`.
        weight_decay: of the base.
        base_options: more settings of the base.

    The average is kept in float32 at least: one copy of the parameters. It has no part in the loss, so there is no
    forget term to confine it to.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        base: str = "adamw",
        start: int = 100,
        every: int = 5,
        kind: Literal["mean", "ema"] = "mean",
        decay: float = 0.99,
        weight_decay: float = 0.0,
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_number("start", start, low=1)
        check_number("every", every, low=1)
        check_choice("kind", kind, ("mean", "ema"))
        check_number("decay", decay, high=1.0)
        super().__init__(params, lr, base, base_options, weight_decay)
        self.start, self.every, self.kind, self.decay = int(start), int(every), kind, decay
        self.steps_taken = 0
        self.count = 0
        self.averages: list[Tensor] = []

    def step(self, closure: Closure | None = None) -> Any:
        """One step of the base, whose `step` says what it needs and returns; then the average, if it is time."""
        loss = super().step(closure)
        self.steps_taken += 1
        if self.steps_taken >= self.start and (self.steps_taken - self.start) % self.every == 0:
            self._average()
        return loss

    @torch.no_grad()
    def _average(self) -> None:
        self.count += 1
        weights = [p.detach().to(torch.promote_types(p.dtype, torch.float32)) for p in trained_parameters(self)]
        if not self.averages:
            self.averages = [w.clone() for w in weights]
            return
        share = 1 / self.count if self.kind == "mean" else 1 - self.decay
        for average, weight in zip(self.averages, weights, strict=True):
            local(average).lerp_(local(weight), share)

    @torch.no_grad()
    def finish(self) -> None:
        """Put the average in the place of the weights; they stay as they are if no step was averaged."""
        for p, average in zip(trained_parameters(self), self.averages, strict=bool(self.averages)):
            local(p).copy_(local(average))
        forget_gathered(trained_parameters(self))

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Within: the weights are the average, to evaluate it. After: as they were, bit for bit."""
        with weights_at(trained_parameters(self), self.averages or trained_parameters(self)):
            yield

    def extra_state(self) -> dict[str, Any]:
        counters = {"steps_taken": self.steps_taken, "count": self.count, "averages": list(self.averages)}
        return {**super().extra_state(), **counters}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        super().load_extra_state(extra)
        self.steps_taken = int(extra.get("steps_taken", 0))
        self.count = int(extra.get("count", 0))
        averages = extra.get("averages", [])
        pairs = zip(averages, trained_parameters(self), strict=False)
        self.averages = [(a if is_distributed(a) else cut_like(a, p)).detach().clone().to(p.device) for a, p in pairs]
