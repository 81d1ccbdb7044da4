"""A placebo of zeroth order: steps as large as another optimizer's, in directions that know nothing of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letgo.core.values import Seed
from letgo.optim.base import ParamsT
from letgo.optim.engine.inner import PassingWrapper
from letgo.optim.zeroth_order import ZerothOrder


class RandomWalk(PassingWrapper):
    r"""A zeroth-order optimizer that is told nothing of the loss: each of its loss differences is 1.

    .. code-block:: text

        input: zeroth-order optimizer Z with lr, q and its other settings
        for t = 1, 2, ...
            draw v_1 .. v_q as Z does
            step of Z with the estimate  (1/q) sum_i v_i

    With `base="zo_sgd"` and q = 1 that is x - lr v: every weight moves by lr (root mean square), each step in a new
    direction. A base whose step does not grow with the loss differences (`ada_zo`, `zo_adam`, `zo_sign_sgd`, `zo_muon`)
    walks as far as it goes when it descends, at the same settings. So what a hybrid's zeroth-order phase does beyond
    moving the weights is seen with this one in its place: `fozo` with `zo="random_walk"`,
    `zo_options={"base": "ada_zo"}` and the same `zo_lr`. `zo_sgd`'s own steps are lr |c| long: take that for lr.

    Source: ours, a control of zeroth-order phases.

    Args:
        params: parameters or groups.
        lr: the base's rate.
        base: name in the catalog of a zeroth-order optimizer.
        mu: of the base; without effect, because the loss is evaluated at the weights alone.
        num_directions: q, of the base.
        weight_decay: of the base.
        seed: of the base's noise.
        base_options: more settings of the base.

    A step evaluates the loss once, to report it; whatever it is, the weights move alike.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        base: str = "zo_sgd",
        mu: float = 1e-3,
        num_directions: int = 1,
        weight_decay: float = 0.0,
        seed: Seed = 0,
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        options = {"mu": mu, "num_directions": num_directions, "seed": seed, **(base_options or {})}
        super().__init__(params, lr, base, options, weight_decay)
        if not isinstance(self.base, ZerothOrder):
            raise ValueError(f"base must be a zeroth-order optimizer, {base!r} is not")
        self.base.blind = True
