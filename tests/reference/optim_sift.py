"""SIFT's update of one matrix as printed, with full singular value decompositions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def polar(a: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns."""
    u, s, v = torch.linalg.svd(a, full_matrices=False)
    kept = s > 1e-9
    return u[:, kept] @ v[kept]


class Sift:
    def __init__(self, lr: float, rank: int, orthogonal: bool, weight_decay: float, momentum: float = 0.95) -> None:
        self.lr, self.rank, self.orthogonal = lr, rank, orthogonal
        self.weight_decay, self.momentum = weight_decay, momentum
        self.b: dict[str, Tensor | float] = {"forget": 0.0, "retain": 0.0}

    def step(self, x: Tensor, gradients: dict[str, Tensor]) -> Tensor:
        us, vs = {}, {}
        for term, g in gradients.items():
            self.b[term] = self.momentum * self.b[term] + g
            u, _, v = torch.linalg.svd(g + self.momentum * self.b[term])
            us[term], vs[term] = u[:, : self.rank], v[: self.rank].T
        u, v = (torch.cat([w["retain"], w["forget"]], dim=1) for w in (us, vs))
        if self.orthogonal:
            u, v = polar(u), polar(v)
        rows, columns = x.shape
        return (1 - self.lr * self.weight_decay) * x - self.lr * math.sqrt(max(1, rows / columns)) * (u @ v.T)
