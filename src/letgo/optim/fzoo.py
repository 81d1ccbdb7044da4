"""FZOO: one-sided evaluations with a common baseline, the step divided by the spread of their losses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated, Literal

from letgo.core.values import Seed, Within
from letgo.optim.base import ParamsT, check_number
from letgo.optim.engine.noise import NoiseKind
from letgo.optim.zeroth_order import ZOSGD, EngineKind


class FZOO(ZOSGD):
    r"""Zeroth-order descent along one-sided differences, as large as the losses' spread says.

    .. code-block:: text

        input: lr, mu, q, weight decay w
        for t = 1, 2, ...
            l_0 = f(x);  l_i = f(x + mu v_i)  for i = 1 .. q                              q + 1 evaluations
            g = (1/q) sum_i v_i (l_i - l_0) / mu
            s = standard deviation of l_1 .. l_q                                          over q - 1
            x = (1 - lr w) x - lr g / s                                                   no step where s = 0

    Where l_0 is about the mean of the l_i, a weight moves by about lr / (mu sqrt(q)), whatever the loss: only lr / mu
    matters. So lr = 1e-7, mu = 1e-3 and q = 8 move a weight by about 3.5e-5 a step.

    Source: FZOO (arXiv 2506.09034), of which the update is known, and neither the rates nor the memory-sharing forward
    pass. With `engine="batched"` and a `rank`, all evaluations but the first are one forward pass.

    Args:
        num_directions: q, at least 2.
        noise: of the v_i; Rademacher in the source.
        others: see `ZerothOrder`. There is no state.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-7,
        *,
        mu: float = 1e-3,
        num_directions: Annotated[int, Within(2)] = 8,
        noise: NoiseKind = "rademacher",
        weight_decay: float = 0.0,
        seed: Seed = 0,
        nonfinite: Literal["raise", "skip"] = "raise",
        engine: EngineKind = "in_place",
        rank: int = 0,
        evaluations_at_once: int | None = None,
    ) -> None:
        check_number("num_directions", num_directions, low=2)
        super().__init__(
            params,
            lr,
            mu=mu,
            num_directions=num_directions,
            noise=noise,
            difference="forward",
            weight_decay=weight_decay,
            seed=seed,
            nonfinite=nonfinite,
            engine=engine,
            rank=rank,
            evaluations_at_once=evaluations_at_once,
        )

    def coefficients(self, losses: Sequence[float], directions: int) -> list[float]:
        if self.blind:
            return super().coefficients(losses, directions)
        spread = statistics.stdev(losses[1:])
        return [c / spread if spread else 0.0 for c in super().coefficients(losses, directions)]
