"""Zeroth-order estimates under other update rules: AdaZO's, Adam's, and the sign."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.core.values import Seed
from letgo.optim.base import ParamsT, check_betas, check_number, state_like
from letgo.optim.engine.noise import NoiseKind
from letgo.optim.engine.shards import local
from letgo.optim.zeroth_order import Difference, EngineKind, Estimate, ZerothOrder


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
    (arXiv 2510.00761). All parameters are perturbed together, where that code perturbs one tensor at a time; the
    differences are central and along Rademacher noise, where it takes forward ones along unit vectors
    (`difference="forward"` and `noise="sphere"` come near to that).

    Args: see `ZerothOrder`. m and v are two copies of the parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 3e-5,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
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
        check_betas("betas", betas)
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
            rank=rank,
            evaluations_at_once=evaluations_at_once,
        )

    def update(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        state, x = self.state[parameter], local(parameter)
        exp_avg, exp_avg_sq = (local(state_like(state, key, parameter)) for key in ("exp_avg", "exp_avg_sq"))
        for block, values, factor in estimate.blocks(index):
            ada_zo(
                block.of(x),
                values,
                factor,
                block.of(exp_avg),
                block.of(exp_avg_sq),
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


class ZOAdam(ZerothOrder):
    r"""Adam on the zeroth-order estimate.

    .. code-block:: text

        input: lr, mu, q, (b1, b2), eps, weight decay w
        m = v = 0
        for t = 1, 2, ...
            g = (1/q) sum_i v_i (f(x + mu v_i) - f(x - mu v_i)) / (2 mu)
            m = b1 m + (1 - b1) g
            v = b2 v + (1 - b2) g^2
            x = (1 - lr w) x - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    With Rademacher noise and q = 1 every |g_j| is the same, so v is one number for all coordinates and the step is
    that of a normalised momentum: `gaussian` or q > 1 tells coordinates apart.

    Source: AdaMM in form (Chen et al., ZO-AdaMM, arXiv 1910.06513) without its projection and without the maximum over
    past v; the Adam variant of MeZO (arXiv 2305.17333, appendix).

    Args: see `ZerothOrder`. m and v are two copies of the parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        mu: float = 1e-3,
        num_directions: int = 1,
        noise: NoiseKind = "gaussian",
        difference: Difference = "central",
        weight_decay: float = 0.0,
        seed: Seed = 0,
        nonfinite: Literal["raise", "skip"] = "raise",
        engine: EngineKind = "in_place",
        rank: int = 0,
        evaluations_at_once: int | None = None,
    ) -> None:
        check_betas("betas", betas)
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
            rank=rank,
            evaluations_at_once=evaluations_at_once,
        )

    def update(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        state, x = self.state[parameter], local(parameter)
        exp_avg, exp_avg_sq = (local(state_like(state, key, parameter)) for key in ("exp_avg", "exp_avg_sq"))
        state["step"] = state.get("step", 0) + 1
        for block, values, factor in estimate.blocks(index):
            zo_adam(
                block.of(x),
                values,
                factor,
                block.of(exp_avg),
                block.of(exp_avg_sq),
                state["step"],
                lr=float(group["lr"]),
                betas=group["betas"],
                eps=group["eps"],
            )


def zo_adam(
    x: Tensor,
    g: Tensor,
    factor: float,
    m: Tensor,
    v: Tensor,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Adam's update of x, m and v, in place, with the gradient factor * g."""
    beta1, beta2 = betas
    m.mul_(beta1).add_(g, alpha=(1 - beta1) * factor)
    v.mul_(beta2).add_(g.square(), alpha=(1 - beta2) * factor * factor)
    denominator = v.sqrt().div_(math.sqrt(1 - beta2**step)).add_(eps)
    x.addcdiv_(m, denominator, value=-lr / (1 - beta1**step))


class ZOSignSGD(ZerothOrder):
    r"""The sign of the zeroth-order estimate.

    .. code-block:: text

        input: lr, mu, q, weight decay w
        for t = 1, 2, ...
            g = (1/q) sum_i v_i (f(x + mu v_i) - f(x - mu v_i)) / (2 mu)
            x = (1 - lr w) x - lr sign(g)

    With q = 1 the sign is of one random direction, sign(c) sign(v): the size of the loss difference plays no part.

    Source: Liu et al., signSGD via Zeroth-Order Oracle (ICLR 2019), algorithm 1 with central differences.

    Args: see `ZerothOrder`. lr is how far every weight moves in a step.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-6,
        *,
        mu: float = 1e-3,
        num_directions: int = 1,
        noise: NoiseKind = "gaussian",
        difference: Difference = "central",
        weight_decay: float = 0.0,
        seed: Seed = 0,
        nonfinite: Literal["raise", "skip"] = "raise",
        engine: EngineKind = "in_place",
        rank: int = 0,
        evaluations_at_once: int | None = None,
    ) -> None:
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

    def update(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        x = local(parameter)
        for block, values, factor in estimate.blocks(index):
            sign = math.copysign(1.0, factor) if factor else 0.0
            block.of(x).add_(torch.sign(values), alpha=-float(group["lr"]) * sign)
