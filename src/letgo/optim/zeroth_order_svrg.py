"""Variance-reduced zeroth order: many directions now and then, few in between, corrected by what they say there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor

from letgo.core.values import Count, Seed
from letgo.optim.base import Closure, ParamsT, check_number, state_like, trained_parameters
from letgo.optim.engine.noise import Direction, NoiseKind
from letgo.optim.engine.perturbation import SharedDraws
from letgo.optim.engine.shards import local
from letgo.optim.zeroth_order import Difference, EngineKind, Estimate, ZerothOrder


class ZOSVRG(ZerothOrder):
    r"""Zeroth-order descent whose estimates are corrections of a better one, made at an anchor every k steps.

    .. code-block:: text

        input: lr, mu, q, k, directions at the anchor Q, weight decay w
        for t = 0, 1, ...
            if t is a multiple of k:
                y = x;  h = g = the estimate at x from Q directions                               2 Q evaluations
            else:
                draw v_1 .. v_q;  c_i = (f(x + mu v_i) - f(x - mu v_i)) / (2 mu)                  2 q evaluations
                                  b_i = (f(y + mu v_i) - f(y - mu v_i)) / (2 mu)                  2 q evaluations
                g = h + (1/q) sum_i (c_i - b_i) v_i
            x = (1 - lr w) x - lr g

    f is the loss on the step's own rows, at x and at y alike. So an estimate's variance is that of the difference of
    two gradients, which is small while x is near y; what h misses it misses for k steps.

    Source: Gautam et al., Variance-reduced Zeroth-Order Methods for Fine-Tuning Language Models: MeZO-SVRG (arXiv
    2404.08080). Ours: Q directions on the rows of the anchor's step, where theirs is one direction on all rows (a
    closure has no others); one rate, where theirs are two; the same directions and draws at x and y, where their public
    code draws others.

    Args:
        num_directions: q.
        period: k; with 1 every step is an anchor's, which is `zo_sgd` with Q directions.
        anchor_directions: Q.
        others: see `ZerothOrder`. y and h are two copies of the parameters (none where k is 1).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-6,
        *,
        period: Count = 10,
        anchor_directions: Count = 16,
        mu: float = 1e-3,
        num_directions: int = 1,
        noise: NoiseKind = "rademacher",
        difference: Difference = "central",
        weight_decay: float = 0.0,
        seed: Seed = 0,
        nonfinite: Literal["raise", "skip"] = "raise",
        engine: EngineKind = "in_place",
        rank: int = 0,
        evaluations_at_once: int | None = None,
    ) -> None:
        check_number("period", period, low=1)
        check_number("anchor_directions", anchor_directions, low=1)
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay},
            num_directions=num_directions,
            mu=mu,
            noise=noise,
            difference=difference,
            seed=seed,
            nonfinite=nonfinite,
            engine=engine,
            rank=rank,
            evaluations_at_once=evaluations_at_once,
        )
        self.period = int(period)
        self.anchor_directions = int(anchor_directions)
        self._anchoring = True

    @property
    def costly_every(self) -> int:
        return self.period

    def options(self) -> dict[str, Any]:
        return {**super().options(), "period": self.period, "anchor_directions": self.anchor_directions}

    def directions(self, parameters: Sequence[Tensor]) -> list[Direction]:
        # A first step that was skipped has left no anchor.
        anchored = all("anchor" in self.state.get(p, {}) for p in trained_parameters(self) if p.numel())
        self._anchoring = self.steps_taken % self.period == 0 or not anchored
        return self.draw(parameters, self.anchor_directions if self._anchoring else self.num_directions)

    def _evaluate(
        self, closure: Closure, directions: list[Direction], parameters: list[Tensor]
    ) -> tuple[list[float], Tensor]:
        draws = SharedDraws(parameters)
        here, like = super()._evaluate(closure, directions, parameters)
        if self._anchoring or not directions:
            return here, like
        draws.restore()
        with self._at_anchor():
            there, _ = super()._evaluate(closure, directions, parameters)
        self.last_losses = here + there
        return self.last_losses, like

    @contextmanager
    def _at_anchor(self) -> Iterator[None]:
        """Within: the weights are the anchor's, and the anchor is the weights. After, whatever happened: as before."""
        pairs = [
            (local(p), local(self.state[p]["anchor"])) for p in trained_parameters(self) if "anchor" in self.state[p]
        ]
        _exchange(pairs)
        try:
            yield
        finally:
            _exchange(pairs)

    def coefficients(self, losses: Sequence[float], directions: int) -> list[float]:
        if self.blind or self._anchoring:
            return super().coefficients(losses, directions)
        half = len(losses) // 2
        here, there = (super(ZOSVRG, self).coefficients(part, directions) for part in (losses[:half], losses[half:]))
        return [c - b for c, b in zip(here, there, strict=True)]

    def apply(self, estimate: Estimate) -> None:
        if self._anchoring and self.period > 1:
            for parameter in trained_parameters(self):
                local(state_like(self.state[parameter], "anchor", parameter)).copy_(local(parameter))
        super().apply(estimate)

    def update(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        lr = float(group["lr"])
        if self._anchoring and self.period == 1:
            estimate.move(index, lr)
            return
        x, h = local(parameter), local(state_like(self.state[parameter], "anchor_estimate", parameter))
        if self._anchoring:
            for block, values, factor in estimate.blocks(index):
                block.of(h).copy_(values * factor)
            estimate.move(index, lr)
            return
        for block, values, factor in estimate.blocks(index):
            block.of(x).add_(values * factor + block.of(h), alpha=-lr)


def _exchange(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for one, other in pairs:
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
