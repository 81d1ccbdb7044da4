"""Wrappers that make any optimizer look for flat places: SAM, randomized smoothing, weight averaging.

SAM and randomized smoothing take gradients away from the weights themselves. They can do so for the whole loss
(`on="loss"`) or for its forget term alone (`on="forget"`), the rest being differentiated where the weights are. For
that the closure takes an argument:

    def closure(part=None):         # None: the whole loss; "forget", "retain": its terms, which add up to it
        optimizer.zero_grad()
        loss = compute_loss(part)
        if loss.requires_grad:
            loss.backward()
        return loss
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.core.values import Seed
from letgo.optim.base import (
    Closure,
    ParamsT,
    adapt,
    as_float,
    check_choice,
    check_number,
    check_takes_part,
    given_closure,
    trained_parameters,
)
from letgo.optim.engine.inner import Wrapper
from letgo.optim.engine.noise import Direction, noise_dtype
from letgo.optim.engine.shards import gathering_anew, local, piece_of, summed

SmoothedTerm = Literal["loss", "forget"]


class GradientSmoothing(Wrapper):
    """Base of SAM and randomized smoothing: replaces the gradient that the base optimizer steps from."""

    combines = True

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        base: str,
        base_options: Mapping[str, Any] | None,
        weight_decay: float,
        on: SmoothedTerm,
    ) -> None:
        check_choice("on", on, ("loss", "forget"))
        super().__init__(params, lr, base, base_options, weight_decay)
        if adapt(self.base).needs_closure or adapt(self.base).phase == "zeroth_order":
            raise ValueError(f"base must be an optimizer that steps from gradients, {base!r} needs a closure")
        self.on = on

    @property
    def needs_closure(self) -> bool:
        return True

    @property
    def asks_for_terms(self) -> bool:
        return self.on == "forget"

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; returns the loss (the sum of its terms) where the weights are or, if it is never evaluated
        there, where the gradient is taken.

        Raises:
            ValueError: there is no closure, or with `on="forget"` it takes no `part`.
        """
        closure = given_closure(closure, f"{type(self).__name__} evaluates the loss more than once")
        if self.on == "forget":
            check_takes_part(closure, "on='forget'")
        parameters = trained_parameters(self)
        self.last_losses = []
        loss, gradients = self.smoothed(closure, parameters)
        if self.on == "forget":
            retain, retain_gradients = self.gradient(closure, parameters, "retain")
            loss = loss + retain
            gradients = [_add(g, r) for g, r in zip(gradients, retain_gradients, strict=True)]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        self.step_base()
        return loss

    def smoothed(self, closure: Closure, parameters: list[Tensor]) -> tuple[Any, list[Tensor | None]]:
        """The loss (or its forget term) to report, and the gradient to step from."""
        raise NotImplementedError

    def gradient(
        self, closure: Closure, parameters: list[Tensor], part: str | None = None
    ) -> tuple[Any, list[Tensor | None]]:
        """The loss or a term of it, detached, and its gradient at the weights as they are."""
        for p in parameters:
            p.grad = None
        with torch.enable_grad():
            loss = closure() if part is None else closure(part=part)  # type: ignore[call-arg]
        self.last_losses.append(as_float(loss))
        gradients = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        return (loss.detach() if isinstance(loss, Tensor) else loss), gradients

    @property
    def part(self) -> str | None:
        return "forget" if self.on == "forget" else None


class SAM(GradientSmoothing):
    r"""Sharpness-aware minimization: the gradient at the worst point near the weights.

    .. code-block:: text

        input: base optimizer B, rho
        on the loss:         g = grad f(x);    e = rho g / |g|;  step of B with  grad f(x + e)
        on the forget term:  g = grad f_f(x);  e = rho g / |g|;  step of B with  grad f_f(x + e) + grad f_r(x)

    Source: Foret et al. (arXiv 2010.01412); on the forget term: Fan et al., arXiv 2502.05374.

    Args:
        params: parameters or groups.
        lr: the base's rate.
        base: name in the catalog of an optimizer that steps from gradients.
        rho: radius, in the Euclidean norm over all parameters.
        on: `loss` or `forget`.
        weight_decay: of the base.
        base_options: more settings of the base.

    The weights are put back from a copy, bit for bit.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        base: str = "adamw",
        rho: float = 0.01,
        on: SmoothedTerm = "loss",
        weight_decay: float = 0.0,
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_number("rho", rho)
        super().__init__(params, lr, base, base_options, weight_decay, on)
        self.rho = rho

    def smoothed(self, closure: Closure, parameters: list[Tensor]) -> tuple[Any, list[Tensor | None]]:
        loss, gradients = self.gradient(closure, parameters, self.part)
        squares = []
        for g in gradients:
            if g is not None:
                piece = piece_of(g)
                squares.append((piece.group, _squared_norm(piece.local)))
        # Of shards, each rank's sum of squares is added over the ranks: 8 bytes a step.
        total, _ = summed(squares, torch.float64, parameters[0].device) if squares else (0.0, 0)
        norm = math.sqrt(total)
        scale = self.rho / norm if norm > 0 else 0.0
        moved = [
            local(p) if g is None else local(p).add(local(g), alpha=scale)
            for p, g in zip(parameters, gradients, strict=True)
        ]
        with weights_at(parameters, moved):
            _, worst = self.gradient(closure, parameters, self.part)
        return loss, worst


def _squared_norm(gradient: Tensor) -> float:
    """|g|², row by row and then over the rows in float64: shards hold whole rows, so that however they are cut the sum
    is the same up to float64's rounding, which the step's own dtype does not see."""
    if gradient.dim() < 2 or gradient.numel() == 0:
        return float(gradient.double().square().sum())
    rows = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=noise_dtype(gradient.dtype))
    return float(rows.double().square().sum())


class RandomizedSmoothing(GradientSmoothing):
    r"""The gradient of the loss averaged over Gaussian noise on the weights, estimated by a few draws.

    .. code-block:: text

        input: base optimizer B, sigma, n draws
        u_1 .. u_n ~ N(0, I)
        on the loss:         step of B with  (1/n) sum_i grad f(x + sigma u_i)
        on the forget term:  step of B with  (1/n) sum_i grad f_f(x + sigma u_i) + grad f_r(x)

    Source: "FO-RS" of "Downgrade to Upgrade" (arXiv 2510.00761); on the forget term with n = 3 and sigma = 1e-4: Fan
    et al., arXiv 2502.05374.

    Args:
        params: parameters or groups.
        lr: the base's rate.
        base: name in the catalog of an optimizer that steps from gradients.
        sigma: standard deviation of the noise.
        num_draws: n.
        on: `loss` or `forget`.
        weight_decay: of the base.
        base_options: more settings of the base.
        seed: of the noise, which is not drawn from the global generators.

    The weights are put back from a copy, bit for bit.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        base: str = "adamw",
        sigma: float = 1e-4,
        num_draws: int = 3,
        on: SmoothedTerm = "loss",
        weight_decay: float = 0.0,
        base_options: Mapping[str, Any] | None = None,
        seed: Seed = 0,
    ) -> None:
        check_number("sigma", sigma)
        check_number("num_draws", num_draws, low=1)
        super().__init__(params, lr, base, base_options, weight_decay, on)
        self.sigma = sigma
        self.num_draws = int(num_draws)
        self.seed = int(seed)
        self.steps_taken = 0

    def smoothed(self, closure: Closure, parameters: list[Tensor]) -> tuple[Any, list[Tensor | None]]:
        losses: list[Any] = []
        total: list[Tensor | None] = [None] * len(parameters)
        for i in range(self.num_draws):
            direction = self.direction(i, parameters)
            moved = [direction.shifted(j, self.sigma) for j in range(len(parameters))]
            with weights_at(parameters, moved):
                loss, gradients = self.gradient(closure, parameters, self.part)
            losses.append(loss)
            shares = [None if g is None else g / self.num_draws for g in gradients]
            total = [_add(t, g) for t, g in zip(total, shares, strict=True)]
        self.steps_taken += 1
        return sum(losses) / len(losses), total

    def direction(self, draw: int, parameters: Sequence[Tensor]) -> Direction:
        """The noise of one draw of the step that comes next."""
        return Direction("gaussian", (self.seed, self.steps_taken, draw), parameters)

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "steps_taken": self.steps_taken, "seed": self.seed}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        super().load_extra_state(extra)
        self.steps_taken = int(extra.get("steps_taken", 0))
        self.seed = int(extra.get("seed", self.seed))


@contextmanager
def weights_at(parameters: Sequence[Tensor], moved: Sequence[Tensor]) -> Iterator[None]:
    """Within: the parameters have the values of `moved`. After, whatever happened: their original bits.

    Of sharded parameters, `moved` may hold whole DTensors' or this rank's values, and this rank's shards are copied.
    """
    originals = [local(p).clone() for p in parameters]
    try:
        for p, m in zip(parameters, moved, strict=True):
            local(p).copy_(local(m))
        with gathering_anew(parameters):
            yield
    finally:
        for p, original in zip(parameters, originals, strict=True):
            local(p).copy_(original)


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second
