"""Gradients of SAM and of randomized smoothing for functions of one vector, as printed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def grad(f: Function, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def sam_gradient(f: Function, rest: Function | None, x: Tensor, rho: float) -> Tensor:
    g = grad(f, x)
    total = grad(f, x + rho * g / g.norm())
    return total if rest is None else total + grad(rest, x)


def smoothed_gradient(f: Function, rest: Function | None, x: Tensor, sigma: float, us: list[Tensor]) -> Tensor:
    total = sum((grad(f, x + sigma * u) for u in us), torch.zeros_like(x)) / len(us)
    return total if rest is None else total + grad(rest, x)
