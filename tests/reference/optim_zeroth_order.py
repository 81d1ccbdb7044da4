"""Plain zeroth-order steps: whole vectors, every formula as printed. Directions are given, not drawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[list[Tensor]], Tensor]


def moved(xs: list[Tensor], direction: list[Tensor], distance: float) -> list[Tensor]:
    return [x + distance * v for x, v in zip(xs, direction, strict=True)]


def estimate(
    f: Function, xs: list[Tensor], directions: list[list[Tensor]], mu: float, difference: str = "central"
) -> list[Tensor]:
    """g = (1/q) sum_i [f(x + mu v_i) - f(x - mu v_i)] / (2 mu) v_i, or its forward form."""
    total = [torch.zeros_like(x) for x in xs]
    for v in directions:
        if difference == "central":
            slope = float(f(moved(xs, v, mu)) - f(moved(xs, v, -mu))) / (2 * mu)
        else:
            slope = float(f(moved(xs, v, mu)) - f(xs)) / mu
        total = [t + slope * part / len(directions) for t, part in zip(total, v, strict=True)]
    return total


class Descent:
    """x <- x - lr g."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def step(self, xs: list[Tensor], gs: list[Tensor]) -> list[Tensor]:
        return [x - self.lr * g for x, g in zip(xs, gs, strict=True)]


class RAdaZO:
    """R-AdaZO (arXiv 2502.01014): the second moment is of the first moment; no bias correction."""

    def __init__(self, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.m: list[Tensor] = []
        self.v: list[Tensor] = []

    def step(self, xs: list[Tensor], gs: list[Tensor]) -> list[Tensor]:
        if not self.m:
            self.m = [torch.zeros_like(x) for x in xs]
            self.v = [torch.zeros_like(x) for x in xs]
        new = []
        for i, (x, g) in enumerate(zip(xs, gs, strict=True)):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * self.m[i] * self.m[i]
            new.append(x - self.lr * self.m[i] / (torch.sqrt(self.v[i]) + self.eps))
        return new


class Momentum:
    """m <- b m + g; x <- x - lr m."""

    def __init__(self, lr: float, b: float = 0.9) -> None:
        self.lr, self.b = lr, b
        self.m: list[Tensor] = []

    def step(self, xs: list[Tensor], gs: list[Tensor]) -> list[Tensor]:
        self.m = [self.b * m + g for m, g in zip(self.m, gs, strict=True)] if self.m else gs
        return [x - self.lr * m for x, m in zip(xs, self.m, strict=True)]


class SignDescent:
    """x <- x - lr sign(g)."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def step(self, xs: list[Tensor], gs: list[Tensor]) -> list[Tensor]:
        return [x - self.lr * torch.sign(g) for x, g in zip(xs, gs, strict=True)]


class Adam:
    """Adam (arXiv 1412.6980), algorithm 1."""

    def __init__(self, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.t = 0
        self.m: list[Tensor] = []
        self.v: list[Tensor] = []

    def step(self, xs: list[Tensor], gs: list[Tensor]) -> list[Tensor]:
        if self.t == 0:
            self.m = [torch.zeros_like(x) for x in xs]
            self.v = [torch.zeros_like(x) for x in xs]
        self.t += 1
        new = []
        for i, (x, g) in enumerate(zip(xs, gs, strict=True)):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * g
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * g * g
            m_hat = self.m[i] / (1 - self.beta1**self.t)
            v_hat = self.v[i] / (1 - self.beta2**self.t)
            new.append(x - self.lr * m_hat / (torch.sqrt(v_hat) + self.eps))
        return new


def zo_muon_step(
    f: Callable[[Tensor, Tensor], Tensor],
    w: Tensor,
    b: Tensor,
    p: Tensor,
    psis: list[Tensor],
    us: list[Tensor],
    mu: float,
    lr: float,
) -> tuple[Tensor, Tensor]:
    """ZO-Muon (arXiv 2602.17155) on one matrix, with forward differences; the vector b moves by g / |g|."""
    s = (w.shape[0] / p.shape[1]) ** 0.5
    base = float(f(w, b))
    slopes = [(float(f(w + mu * s * p @ psi, b + mu * u)) - base) / mu for psi, u in zip(psis, us, strict=True)]
    inside = sum((c * psi for c, psi in zip(slopes, psis, strict=True)), torch.zeros_like(psis[0])) / len(psis)
    left, _, right = torch.linalg.svd(inside, full_matrices=False)
    g = sum((c * u for c, u in zip(slopes, us, strict=True)), torch.zeros_like(b)) / len(us)
    return w - lr * p @ (left @ right), b - lr * g / g.norm()


class FZOO:
    """FZOO (arXiv 2506.09034): one-sided losses, the step divided by their sample standard deviation."""

    def __init__(self, lr: float, mu: float) -> None:
        self.lr, self.mu = lr, mu

    def step(self, f: Function, xs: list[Tensor], directions: list[list[Tensor]]) -> list[Tensor]:
        base = float(f(xs))
        losses = [float(f(moved(xs, v, self.mu))) for v in directions]
        mean = sum(losses) / len(losses)
        spread = (sum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1)) ** 0.5
        new = xs
        for loss, v in zip(losses, directions, strict=True):
            new = moved(new, v, -self.lr * (loss - base) / (self.mu * len(losses) * spread))
        return new


class Subspace:
    """LOZO-M (arXiv 2410.07698) on one matrix, its rows in a subspace: everything dense, with whole projectors."""

    def __init__(self, lr: float, b: float) -> None:
        self.lr, self.b = lr, b
        self.basis: Tensor | None = None
        self.m = torch.zeros(())

    def step(
        self, f: Callable[[Tensor], Tensor], w: Tensor, p: Tensor, psis: list[Tensor], mu: float
    ) -> tuple[Tensor, Tensor]:
        """New weights, and the dense momentum that moved them."""
        vs = [(w.shape[0] / p.shape[1]) ** 0.5 * p @ psi for psi in psis]
        g = sum((float(f(w + mu * v) - f(w - mu * v)) / (2 * mu) * v / len(vs) for v in vs), torch.zeros_like(w))
        if self.basis is not None and not torch.equal(self.basis, p):
            self.m = p @ p.t() @ self.m
        self.basis = p
        self.m = self.b * self.m + g
        return w - self.lr * self.m, self.m


class SVRG:
    """MeZO-SVRG (arXiv 2404.08080), its anchor's estimate from the directions that are given then."""

    def __init__(self, lr: float, mu: float, difference: str = "central") -> None:
        self.lr, self.mu, self.difference = lr, mu, difference
        self.y: list[Tensor] = []
        self.h: list[Tensor] = []

    def step(self, f: Function, xs: list[Tensor], directions: list[list[Tensor]], anchor: bool) -> list[Tensor]:
        g = estimate(f, xs, directions, self.mu, self.difference)
        if anchor:
            self.y, self.h = xs, g
        else:
            there = estimate(f, self.y, directions, self.mu, self.difference)
            g = [h + here - t for h, here, t in zip(self.h, g, there, strict=True)]
        return [x - self.lr * part for x, part in zip(xs, g, strict=True)]
