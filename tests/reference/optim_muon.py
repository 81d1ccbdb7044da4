"""Muon as printed, with the Newton-Schulz iteration in full precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def newton_schulz(g: Tensor, steps: int = 5) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / g.norm()
    for _ in range(steps):
        x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
    return x


class Muon:
    def __init__(self, lr: float, momentum: float, weight_decay: float, match_rms: bool) -> None:
        self.lr, self.momentum, self.weight_decay, self.match_rms = lr, momentum, weight_decay, match_rms
        self.m: Tensor | None = None

    def step(self, x: Tensor, g: Tensor) -> Tensor:
        self.m = (1 - self.momentum) * g + (0 if self.m is None else self.momentum * self.m)
        u = (1 - self.momentum) * g + self.momentum * self.m
        rows, columns = x.shape
        factor = 0.2 * math.sqrt(max(rows, columns)) if self.match_rms else math.sqrt(max(1, rows / columns))
        return x - self.lr * self.weight_decay * x - self.lr * factor * newton_schulz(u)


def singular_values(x: Tensor) -> Tensor:
    return torch.linalg.svdvals(x.double())
