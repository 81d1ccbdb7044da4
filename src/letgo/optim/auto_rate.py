"""A zeroth-order optimizer at a rate that is found by trying, before its first step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.values import Count, Seed, Share
from letgo.optim.base import Closure, ParamsT, check_number, given_closure, parameters_of, trained_parameters
from letgo.optim.engine.inner import PassingWrapper, follow
from letgo.optim.engine.perturbation import SharedDraws
from letgo.optim.engine.shards import forget_gathered, local, piece_of, summed
from letgo.optim.zeroth_order import ZerothOrder

_MOST_TRIALS = 40
_HALVINGS = 2
"""Of the factor 2 between a rate that holds and one that does not: the rate is found to within 2^(1/4)."""


class AutoRate(PassingWrapper):
    r"""A zeroth-order optimizer at the largest rate whose steps lower the loss as their slope promises.

    .. code-block:: text

        input: zeroth-order optimizer Z with its rate lr, n trial steps, share s
        before the first step, on its rows:
            x_0 = x;   D(a) = x_0 - (x after n steps of Z at the rate a lr, from x_0)
            a_0: such that D(a_0) has the root mean square mu
            slope = (f(x_0 + D(a_0)) - f(x_0 - D(a_0))) / (2 a_0)
            a = the largest of a_0 2^i with f(x_0) - f(x_0 - D(a)) >= s a slope, as have all smaller ones tried
        then steps of Z at a (lr now)

    Along a parabola the loss falls by half of what its slope promises where it is lowest: with s = 1/2 and one trial
    step of a plain method that is the rate found. More trial steps let momenta grow to their usual size. So the rate
    found does not depend on lr, which is where the search begins. The weights, the state of Z and the global generators
    are as before the search; a scheduler's changes of lr change the rate in proportion.

    Source: ours, after Armijo's rule (1966).

    Args:
        params: parameters or groups. The rates of groups keep their relation.
        lr: the rate from which the search begins.
        base: name in the catalog of a zeroth-order optimizer.
        steps: n.
        share: s.
        mu: of the base.
        num_directions: q, of the base.
        weight_decay: of the base.
        seed: of the base's noise.
        base_options: more settings of the base.

    The search takes some ten trials of n steps of the base, with one more evaluation each, and a copy of the weights.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-6,
        *,
        base: str = "zo_sgd",
        steps: Count = 10,
        share: Share = 0.5,
        mu: float = 1e-3,
        num_directions: int = 1,
        weight_decay: float = 0.0,
        seed: Seed = 0,
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_number("steps", steps, low=1)
        check_number("share", share, open_low=True)
        options = {"mu": mu, "num_directions": num_directions, "seed": seed, **(base_options or {})}
        super().__init__(params, lr, base, options, weight_decay)
        if not isinstance(self.base, ZerothOrder):
            raise ValueError(f"base must be a zeroth-order optimizer, {base!r} is not")
        for group in self.param_groups:
            group["start_lr"] = group["lr"]
        self.steps, self.share = int(steps), float(share)
        self.found = False

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "scale": self.scale, "found": self.found}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        super().load_extra_state(extra)
        self.scale, self.found = float(extra.get("scale", 1.0)), bool(extra.get("found", False))

    def notes(self) -> list[str]:
        if not self.found:
            return []
        rates = sorted({self.scale * float(group["start_lr"]) for group in self.param_groups})
        shown = ", ".join(f"{rate:.3g}" for rate in rates)
        name = type(self.base).__name__
        return [f"auto_rate: {name} stepped at {shown}, {self.scale:.3g} times the rates shown for its steps"]

    def prepare(self, closure: Closure) -> None:
        if not self.found:
            follow(self.base, self)
            self.scale, self.found = self._search(closure), True

    def step(self, closure: Closure | None = None) -> Any:
        """One step of the base; the first one looks for the rate, if `prepare` has not.

        Raises:
            ValueError: there is no closure.
            UserError: no rate lowers the loss.
        """
        closure = given_closure(closure, "AutoRate evaluates the loss itself")
        self.prepare(closure)
        return super().step(closure)

    @torch.no_grad()
    def _search(self, closure: Closure) -> float:
        base: Any = self.base
        weights = [local(p) for p in trained_parameters(self)]
        kept, state = [w.clone() for w in weights], copy.deepcopy(base.state_dict())
        rates, on_step, base.on_step = [g["lr"] for g in base.param_groups], base.on_step, None
        draws = SharedDraws(parameters_of(self))

        def put(values: Sequence[Tensor]) -> None:
            for weight, value in zip(weights, values, strict=True):
                weight.copy_(value)
            forget_gathered(parameters_of(self))

        def loss() -> float:
            draws.restore()
            value: float = base.loss_here(closure)
            return value

        def trial(a: float) -> float:
            """The loss after n steps at a times the rates; not finite where a step met one that is not."""
            put(kept)
            base.load_state_dict(copy.deepcopy(state))
            for outer, inner in zip(self.param_groups, base.param_groups, strict=True):
                inner["lr"] = a * float(outer["start_lr"])
            draws.restore()
            try:
                for _ in range(self.steps):
                    base.step(closure)
            except NonFiniteLossError:
                return math.nan
            return loss()

        def slope_at(a: float) -> float:
            """Of the loss in a, after `trial(a)`."""
            below = loss()
            put([k + (k - w) for k, w in zip(kept, weights, strict=True)])
            return (loss() - below) / (2 * a)

        try:
            before = loss()
            a = self._first(trial, kept, weights)
            slope = slope_at(a)
            if not (math.isfinite(before) and slope > 0):
                raise UserError(
                    f"auto_rate: the steps of {type(base).__name__} do not lower the loss ({before:.4g}; its slope "
                    f"along them is {-slope:.2g}), so no rate can be found: give more num_directions or steps, another "
                    "mu, or the rate itself to the optimizer alone"
                )
            return largest(lambda a: before - trial(a) >= self.share * a * slope, a)
        finally:
            put(kept)
            base.load_state_dict(state)
            for group, rate in zip(base.param_groups, rates, strict=True):
                group["lr"] = rate
            base.on_step = on_step
            draws.restore()

    def _first(self, trial: Callable[[float], float], kept: Sequence[Tensor], weights: Sequence[Tensor]) -> float:
        """a_0, at which the trial steps go about mu far; the weights are those after them."""
        pieces = [piece_of(p) for p in trained_parameters(self)]
        count = sum(math.prod(piece.shape) for piece in pieces)
        a, mu = 1.0, self.base.mu  # type: ignore[attr-defined]
        for _ in range(_MOST_TRIALS):
            after = trial(a)
            squares = [
                (piece.group, float((k.double() - w.double()).square().sum()))
                for piece, k, w in zip(pieces, kept, weights, strict=True)
            ]
            total, _ = summed(squares, torch.float64, pieces[0].local.device)
            length = math.sqrt(total / max(1, count))
            if not length:
                break
            if math.isfinite(after) and mu / 2 <= length <= 2 * mu:
                return a
            nearer = mu / length if math.isfinite(after) and math.isfinite(length) else 0.1
            # A power of 2: the same whatever the order in which ranks sum.
            a = 2.0 ** round(math.log2(a * nearer))
        raise UserError(
            f"auto_rate: no rate moves the weights by about mu ({mu:g}): the loss is the same everywhere, or not "
            "finite, or lr is 0"
        )


def largest(holds: Callable[[float], bool], a: float) -> float:
    """The largest a at which something holds, if it holds below some a and not above: to within 2^(1/4).

    Raises:
        UserError: it holds at all that were tried, or at none.
    """
    factor = 2.0 if holds(a) else 0.5
    for _ in range(_MOST_TRIALS):
        a *= factor
        if holds(a) == (factor < 1):
            low = a if factor < 1 else a / 2
            for halving in range(1, _HALVINGS + 1):
                between = low * 2 ** (0.5**halving)
                low = between if holds(between) else low
            return low
    raise UserError(
        "auto_rate: the loss falls as promised at every rate that was tried"
        if factor > 1
        else "auto_rate: the loss falls as its slope promises at no rate: give more num_directions, or another mu"
    )
