"""Zeroth-order optimizers: gradients estimated from the loss at perturbed weights, no backward pass.

`ZerothOrder` evaluates and estimates; a subclass turns an estimate into an update. What a step does to the weights is
a function of the weights, the state and a few scalars (one per direction), which is why ranks need to exchange scalars
only and why a run can be replayed from a log of kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from letgo.errors import NonFiniteLossError
from letgo.optim.base import (
    Closure,
    ClosureOptimizer,
    ParamsT,
    as_float,
    check_choice,
    check_number,
    parameters_of,
    state_like,
)
from letgo.optim.noise import NOISE_KINDS, Direction, NoiseKind, rounded, rows_of
from letgo.optim.perturbation import InPlaceEngine, SharedDraws

if TYPE_CHECKING:
    from letgo.optim.replay_log import ReplayLog

Difference = Literal["central", "forward"]


@dataclass
class Estimate:
    """A gradient estimate (1/q) sum_i c_i v_i, kept as its q coefficients and directions."""

    directions: list[Direction]
    coefficients: list[float]

    def blocks(self, index: int) -> Iterator[tuple[slice, Tensor, float]]:
        """The estimate at tensor `index`: rows, values and a factor; the estimate there is factor * values.

        With one direction the factor is its coefficient, so that the update is rounded once. With more, the sum is
        taken in the precision of the noise and the factor is 1.
        """
        q = len(self.directions)
        if q == 1:
            for rows, values in self.directions[0].blocks(index):
                yield rows, values, self.coefficients[0]
            return
        for parts in zip(*(d.blocks(index) for d in self.directions), strict=True):
            rows, total = parts[0]
            total.mul_(self.coefficients[0] / q)
            for (_, values), coefficient in zip(parts[1:], self.coefficients[1:], strict=True):
                total.add_(values, alpha=coefficient / q)
            yield rows, total, 1.0


class ZerothOrder(ClosureOptimizer):
    r"""Base of the zeroth-order optimizers: estimate, then `update`.

    .. code-block:: text

        for i = 1 .. q:
            draw v_i                          E[v v^T] = I: rademacher, gaussian or sphere (see letgo.optim.noise)
            central:  c_i = (f(x + mu v_i) - f(x - mu v_i)) / (2 mu)            2 q evaluations
            forward:  c_i = (f(x + mu v_i) - f(x)) / mu                         q + 1 evaluations
        g = (1/q) sum_i c_i v_i

    In a `torch.distributed` run every rank draws the same directions and the losses are averaged over the ranks, so
    that all of them take the same step; nothing else is exchanged.

    Args (of every subclass, beside its own):
        num_directions: q.
        mu: the perturbation's root mean square per coordinate, in any kind of noise. A unit-sphere radius r as papers
            state it is mu = r / sqrt(number of parameters). With bf16 or fp16 weights it is rounded to their dtype.
        noise: `rademacher` (cheapest), `gaussian` or `sphere`.
        difference: `central` or `forward`.
        seed: of the noise. The global generators are neither used nor seeded; draws that the closure itself makes from
            them (dropout) are the same in all evaluations of a step.
        nonfinite: what to do when an evaluation is NaN or infinite: `raise` a `NonFiniteLossError`, or `skip` the step
            (the next one has new noise). The weights are untouched in both cases.
        engine: `in_place` perturbs each tensor while a function reads it; `saved` perturbs all of them in memory and
            puts kept originals back (memory of the weights twice, but right for any code that evaluates them).
    """

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        num_directions: int,
        mu: float,
        noise: NoiseKind,
        difference: Difference,
        seed: int,
        nonfinite: Literal["raise", "skip"],
        engine: Literal["in_place", "saved"],
    ) -> None:
        check_number("lr", defaults["lr"])
        check_number("weight_decay", defaults.get("weight_decay", 0.0))
        check_number("num_directions", num_directions, low=1)
        check_number("mu", mu, open_low=True)
        check_choice("noise", noise, NOISE_KINDS)
        check_choice("difference", difference, ("central", "forward"))
        check_choice("nonfinite", nonfinite, ("raise", "skip"))
        check_choice("engine", engine, ("in_place", "saved"))
        super().__init__(params, defaults)
        self.num_directions = int(num_directions)
        self.mu = mu
        self.noise: NoiseKind = noise
        self.difference = difference
        self.seed = int(seed)
        self.nonfinite = nonfinite
        self.steps_taken = 0
        self.log: ReplayLog | None = None
        self._mu = mu
        self._engine = InPlaceEngine(always_save=engine == "saved")

    @property
    def needs_closure(self) -> bool:
        return True

    @property
    def phase(self) -> str:
        return "zeroth_order"

    def options(self) -> dict[str, Any]:
        """The constructor's settings that are not a group's, as far as updates depend on them."""
        return {"num_directions": self.num_directions, "noise": self.noise, "seed": self.seed}

    def extra_state(self) -> dict[str, Any]:
        return {"steps_taken": self.steps_taken, "seed": self.seed}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self.steps_taken = int(extra.get("steps_taken", 0))
        self.seed = int(extra.get("seed", self.seed))

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; returns the mean of the losses that it evaluated (which is f(x) up to O(mu^2)).

        Raises:
            ValueError: there is no closure.
            NonFiniteLossError: a loss was NaN or infinite and `nonfinite="raise"`.
        """
        if closure is None:
            raise ValueError(
                f"{type(self).__name__} is zeroth order: step(closure) needs a closure that evaluates the loss"
            )
        parameters = parameters_of(self)
        self._mu = _representable(self.mu, parameters)
        directions = self.directions(parameters)
        losses, like = self._evaluate(closure, directions, parameters)
        finite = all(map(math.isfinite, losses))
        mean = like.new_tensor(math.fsum(losses) / len(losses) if finite else math.nan)
        if not finite and self.nonfinite == "raise":
            raise NonFiniteLossError(
                f"{type(self).__name__}, step {self.steps_taken}: the losses at the perturbed weights are {losses}; "
                f"the weights are as before the step. A smaller mu or lr may help, or nonfinite='skip'"
            )
        coefficients = self._coefficients(losses) if finite else []
        if self.log is not None:
            self.log.add([float(group["lr"]) for group in self.param_groups], coefficients)
        if finite:
            self.apply(Estimate(directions, coefficients))
        self.steps_taken += 1
        return mean

    def directions(self, parameters: Sequence[Tensor]) -> list[Direction]:
        """The directions of the step that comes next."""
        keys = [(self.seed, self.steps_taken, i) for i in range(self.num_directions)]
        return [Direction(self.noise, key, parameters) for key in keys]

    def update(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        """Move one parameter, given the estimate at `index`."""
        raise NotImplementedError

    def _evaluate(
        self, closure: Closure, directions: list[Direction], parameters: list[Tensor]
    ) -> tuple[list[float], Tensor]:
        """All losses of a step, averaged over the ranks, and a tensor like the closure's loss."""
        trainable = [i for i, p in enumerate(parameters) if p.requires_grad]
        draws = SharedDraws(parameters)
        shifts = (self._mu, -self._mu) if self.difference == "central" else (self._mu,)
        losses: list[Any] = [closure()] if self.difference == "forward" else []
        for direction in directions:
            losses += [self._engine.evaluate(closure, direction, shift, trainable, draws) for shift in shifts]
            if len(directions) > 1:
                direction.forget()
        like = losses[-1].detach() if isinstance(losses[-1], Tensor) else torch.tensor(as_float(losses[-1]))
        self.last_losses = _averaged_over_ranks([as_float(loss) for loss in losses], like.device)
        return self.last_losses, like

    def _coefficients(self, losses: Sequence[float]) -> list[float]:
        if self.difference == "forward":
            return [(loss - losses[0]) / self._mu for loss in losses[1:]]
        return [(up - down) / (2 * self._mu) for up, down in zip(losses[::2], losses[1::2], strict=True)]

    def apply(self, estimate: Estimate) -> None:
        """Update every parameter with an estimate."""
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and parameter.numel():
                    if group["weight_decay"]:
                        parameter.mul_(1 - float(group["lr"]) * group["weight_decay"])
                    self.update(group, parameter, estimate, index)
                index += 1


class ZOSGD(ZerothOrder):
    r"""Zeroth-order gradient descent: MeZO's method with noise made once per direction and no drift.

    .. code-block:: text

        input: lr, mu, q, momentum b, weight decay w
        m = 0
        for t = 1, 2, ...
            g = (1/q) sum_i v_i (f(x + mu v_i) - f(x - mu v_i)) / (2 mu)
            m = b m + g                        (b = 0: no m is kept)
            x = (1 - lr w) x - lr m

    Without weight decay and momentum the weights after a step are exactly x - lr g, rounded once.

    Source: Malladi et al., Fine-Tuning Language Models with Just Forward Passes (arXiv 2305.17333), algorithm 1, where
    noise is Gaussian; `noise="gaussian", num_directions=1` is that method without its rounding drift.

    Args:
        momentum: b, as in `torch.optim.SGD`; with it the state is a copy of the parameters.
        others: see `ZerothOrder`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-6,
        *,
        momentum: float = 0.0,
        mu: float = 1e-3,
        num_directions: int = 1,
        noise: NoiseKind = "rademacher",
        difference: Difference = "central",
        weight_decay: float = 0.0,
        seed: int = 0,
        nonfinite: Literal["raise", "skip"] = "raise",
        engine: Literal["in_place", "saved"] = "in_place",
    ) -> None:
        check_number("momentum", momentum, high=1.0)
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
            num_directions=num_directions,
            mu=mu,
            noise=noise,
            difference=difference,
            seed=seed,
            nonfinite=nonfinite,
            engine=engine,
        )

    def update(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        buffer = state_like(self.state[parameter], "momentum_buffer", parameter) if momentum else None
        for rows, values, factor in estimate.blocks(index):
            if buffer is None:
                rows_of(parameter)[rows].add_(values, alpha=-lr * factor)
            else:
                m = rows_of(buffer)[rows].mul_(momentum).add_(values, alpha=factor)
                rows_of(parameter)[rows].add_(m, alpha=-lr)


class AdaZO(ZerothOrder):
    r"""Adaptive zeroth order: Adam's form, with the second moment taken of the first moment.

    .. code-block:: text

        input: lr, mu, q, (b1, b2), eps, weight decay w
        m = v = 0
        for t = 1, 2, ...
            g = (1/q) sum_i v_i (f(x + mu v_i) - f(x - mu v_i)) / (2 mu)
            m = b1 m + (1 - b1) g
            v = b2 v + (1 - b2) m^2
            x = (1 - lr w) x - lr m / (sqrt(v) + eps)

    There is no bias correction, so the first steps are up to 1 / sqrt(1 - b2) (about 30) times the rate.

    Source: R-AdaZO (arXiv 2502.01014), its published code, which is very likely the "AdaZO" of "Downgrade to Upgrade"
    (arXiv 2510.00761). All parameters are perturbed together, where that code perturbs one tensor at a time.

    Args: see `ZerothOrder`. m and v are two copies of the parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-6,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        mu: float = 1e-3,
        num_directions: int = 1,
        noise: NoiseKind = "rademacher",
        difference: Difference = "central",
        weight_decay: float = 0.0,
        seed: int = 0,
        nonfinite: Literal["raise", "skip"] = "raise",
        engine: Literal["in_place", "saved"] = "in_place",
    ) -> None:
        for i, beta in enumerate(betas):
            check_number(f"betas[{i}]", beta, high=1.0)
        check_number("eps", eps)
        super().__init__(
            params,
            {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay},
            num_directions=num_directions,
            mu=mu,
            noise=noise,
            difference=difference,
            seed=seed,
            nonfinite=nonfinite,
            engine=engine,
        )

    def update(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        state = self.state[parameter]
        exp_avg, exp_avg_sq = state_like(state, "exp_avg", parameter), state_like(state, "exp_avg_sq", parameter)
        for rows, values, factor in estimate.blocks(index):
            ada_zo(
                rows_of(parameter)[rows],
                values,
                factor,
                rows_of(exp_avg)[rows],
                rows_of(exp_avg_sq)[rows],
                lr=float(group["lr"]),
                betas=group["betas"],
                eps=group["eps"],
            )


def ada_zo(
    x: Tensor, g: Tensor, factor: float, m: Tensor, v: Tensor, *, lr: float, betas: tuple[float, float], eps: float
) -> None:
    """AdaZO's update of x, m and v, in place, with the gradient factor * g."""
    beta1, beta2 = betas
    m.mul_(beta1).add_(g, alpha=(1 - beta1) * factor)
    v.mul_(beta2).addcmul_(m, m, value=1 - beta2)
    x.addcdiv_(m, v.sqrt().add_(eps), value=-lr)


def _representable(mu: float, parameters: Sequence[Tensor]) -> float:
    """mu rounded to the coarsest dtype, so that +-mu is added to low-precision weights with no rounding of its own."""
    for dtype in (torch.bfloat16, torch.float16):
        if any(p.dtype == dtype for p in parameters) and rounded(mu, dtype):
            return rounded(mu, dtype)
    return mu


def _averaged_over_ranks(losses: list[float], device: torch.device) -> list[float]:
    """The mean over the ranks of each loss, in one exchange of a few scalars; as they are without other ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return losses
    # MPS and others without float64 have no process groups either.
    stacked = torch.tensor(losses, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(stacked)
    return (stacked / torch.distributed.get_world_size()).tolist()
