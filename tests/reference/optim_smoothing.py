"""Gradients of SAM, of randomized smoothing and straight through rounding, as printed."""

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


def rounded_rows(x: Tensor, bits: int) -> Tensor:
    """Each row on 2^b levels, number by number."""
    top = 2 ** (bits - 1) - 1
    rows = []
    for row in x.tolist():
        scale = max(abs(value) for value in row) / top
        rows.append([min(max(round(value / scale), -top - 1), top) * scale for value in row])
    return torch.tensor(rows, dtype=x.dtype)


def straight_through_gradient(f: Function, rest: Function | None, x: Tensor, alpha: float, bits: int) -> Tensor:
    total = grad(f, x) + alpha * grad(f, rounded_rows(x, bits))
    return total if rest is None else total + grad(rest, x)
