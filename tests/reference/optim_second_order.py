"""Sophia as its papers' codes print it, for scalars and vectors, out of place."""

from __future__ import annotations

import torch
from torch import Tensor


class SophiaG:
    """The official code: h of squared gradients of sampled labels, times the batch size where it is used."""

    def __init__(self, lr: float, beta1: float, beta2: float, rho: float, bs: int, weight_decay: float) -> None:
        self.lr, self.beta1, self.beta2, self.rho, self.bs, self.weight_decay = lr, beta1, beta2, rho, bs, weight_decay
        self.m: Tensor | float = 0.0
        self.h: Tensor | float = 0.0

    def update_hessian(self, g: Tensor) -> None:
        self.h = self.beta2 * self.h + (1 - self.beta2) * g * g

    def average(self, g: Tensor) -> None:
        self.m = self.beta1 * self.m + (1 - self.beta1) * g

    def step(self, p: Tensor, g: Tensor) -> Tensor:
        p = p * (1 - self.lr * self.weight_decay)
        self.average(g)
        ratio = torch.clamp(torch.abs(self.m) / (self.rho * self.bs * self.h + 1e-15), max=1)
        return p - self.lr * torch.sign(self.m) * ratio


class SoulSophia(SophiaG):
    """SOUL's code: h of squared training gradients, every step; the momentum averaged once more before the step."""

    def step(self, p: Tensor, g: Tensor) -> Tensor:
        self.average(g)
        self.update_hessian(g)
        return super().step(p, g)


def hessian_diagonal(f, x: Tensor) -> Tensor:
    return torch.diagonal(torch.autograd.functional.hessian(f, x))
