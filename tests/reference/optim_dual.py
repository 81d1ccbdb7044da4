"""DualOptim and DualOptim+ as printed, one parameter, one step at a time and everything out of place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Own:
    """A term's own moments and the number of its steps."""

    m: Tensor | float = 0.0
    v: Tensor | float = 0.0
    t: int = 0


class Dual:
    """`plus`: with the shared base M, V; without, M and V stay 0, and each term is AdamW with moments of its own."""

    def __init__(self, lr: float, plus: bool, weight_decay: float = 0.01) -> None:
        self.lr, self.plus, self.weight_decay = lr, plus, weight_decay
        self.beta1, self.beta2, self.base1, self.base2, self.eps = 0.9, 0.95, 0.8, 0.97, 1e-8
        self.own = {"forget": Own(), "retain": Own()}
        self.m: Tensor | float = 0.0
        self.v: Tensor | float = 0.0
        self.t = 0

    def step(self, x: Tensor, g: Tensor, term: str, rate: float = 1.0) -> Tensor:
        lr, own = self.lr * rate, self.own[term]
        self.t += 1
        own.t += 1
        x = x * (1 - lr * self.weight_decay)
        m_hat = self.m / (1 - self.base1 ** (self.t - 1)) if self.t > 1 else 0.0
        v_hat = self.v / (1 - self.base2 ** (self.t - 1)) if self.t > 1 else 0.0
        own.m = self.beta1 * own.m + (1 - self.beta1) * (g - m_hat)
        own.v = self.beta2 * own.v + (1 - self.beta2) * (g * g - v_hat)
        up = own.m / (1 - self.beta1**own.t) + m_hat
        down = torch.sqrt(torch.abs(own.v / (1 - self.beta2**own.t) + v_hat)) + self.eps
        if self.plus:
            self.m = self.base1 * self.m + (1 - self.base1) * g
            self.v = self.base2 * self.v + (1 - self.base2) * g * g
        return x - lr * up / down
