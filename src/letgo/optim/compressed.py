"""First-order directions compressed to few bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from letgo.optim.base import Closure, ClosureOptimizer, ParamsT, check_number, state_like
from letgo.optim.engine.shards import local


class SignSGD(ClosureOptimizer):
    r"""Gradient descent with 1-bit gradients.

    .. code-block:: text

        input: lr, weight decay w
        for t = 1, 2, ...
            g = grad f(x)
            x = (1 - lr w) x - lr sign(g)

    Source: Bernstein et al., signSGD (arXiv 1802.04434), algorithm 1; in unlearning, arXiv 2510.00761 with Q(.; 1).

    Args:
        params: parameters or groups.
        lr: how far every weight moves in a step.
        weight_decay: w, decoupled.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-5, *, weight_decay: float = 0.0) -> None:
        check_number("lr", lr)
        check_number("weight_decay", weight_decay)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step from `.grad`, after running the closure with gradients enabled if there is one."""
        loss = self._loss_with_grad(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            sign_descent(
                params,
                [p.grad for p in params],
                None,
                lr=float(group["lr"]),
                beta=0.0,
                weight_decay=group["weight_decay"],
            )
        return loss


class SignAdam(ClosureOptimizer):
    r"""1-bit Adam, which is Signum: the sign of the momentum.

    .. code-block:: text

        input: lr, b, weight decay w
        m = 0
        for t = 1, 2, ...
            g = grad f(x)
            m = b m + (1 - b) g
            x = (1 - lr w) x - lr sign(m)

    The sign of Adam's direction m^ / (sqrt(v^) + eps) is the sign of m: the second moment plays no part in it, nor do
    the bias corrections, so none of them is kept.

    Source: "signAdam" of arXiv 2510.00761; Signum of arXiv 1802.04434, algorithm 2.

    Args:
        params: parameters or groups.
        lr: how far every weight moves in a step.
        beta: b, Adam's first beta.
        weight_decay: w, decoupled.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-5, *, beta: float = 0.9, weight_decay: float = 0.0) -> None:
        check_number("lr", lr)
        check_number("beta", beta, high=1.0)
        check_number("weight_decay", weight_decay)
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step from `.grad`, after running the closure with gradients enabled if there is one."""
        loss = self._loss_with_grad(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            sign_descent(
                params,
                [p.grad for p in params],
                [state_like(self.state[p], "exp_avg", p) for p in params],
                lr=float(group["lr"]),
                beta=group["beta"],
                weight_decay=group["weight_decay"],
            )
        return loss


def sign_descent(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor] | None,
    *,
    lr: float,
    beta: float,
    weight_decay: float,
) -> None:
    """params -= lr sign(momentum), in place; of the gradient itself where `exp_avgs` is None."""
    for i, (x, g) in enumerate(zip(map(local, params), map(local, grads), strict=True)):
        direction = g if exp_avgs is None else local(exp_avgs[i]).mul_(beta).add_(g, alpha=1 - beta)
        if weight_decay:
            x.mul_(1 - lr * weight_decay)
        x.add_(torch.sign(direction), alpha=-lr)
