"""Plain first-order steps, as the papers print them, one parameter at a time and everything out of place."""

from __future__ import annotations

import torch
from torch import Tensor


class SignSGD:
    """signSGD (arXiv 1802.04434), algorithm 1."""

    def __init__(self, lr: float, weight_decay: float = 0.0) -> None:
        self.lr, self.weight_decay = lr, weight_decay

    def step(self, xs: list[Tensor], gs: list[Tensor]) -> list[Tensor]:
        return [x - self.lr * self.weight_decay * x - self.lr * torch.sign(g) for x, g in zip(xs, gs, strict=True)]


class OneBitAdam:
    """Adam whose direction is replaced by its sign. All of Adam is here, to show that only the sign of m matters."""

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
            new.append(x - self.lr * torch.sign(m_hat / (torch.sqrt(v_hat) + self.eps)))
        return new


def quantized(m: Tensor, bits: int, block: int, scaled_sign: bool) -> Tensor:
    """Symmetric absmax quantization, block after block of the flattened tensor."""
    if bits == 1 and not scaled_sign:
        return torch.sign(m)
    parts = []
    for part in m.flatten().split(block):
        if bits == 1:
            parts.append(torch.sign(part) * part.abs().mean())
        else:
            scale = part.abs().max() / (2 ** (bits - 1) - 1)
            parts.append(scale * torch.round(part / scale) if scale > 0 else part)
    return torch.cat(parts).view_as(m)


def compressed(
    xs: list[Tensor], ds: list[Tensor], errors: list[Tensor], lr: float, bits: int, block: int, error_feedback: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """x - lr Q(d), or error feedback (arXiv 1901.09847), algorithm 1; returns the weights and the errors."""
    if not error_feedback:
        return [x - lr * quantized(d, bits, block, False) for x, d in zip(xs, ds, strict=True)], errors
    new_xs, new_errors = [], []
    for x, d, e in zip(xs, ds, errors, strict=True):
        p = d + e
        delta = quantized(p, bits, block, True)
        new_xs.append(x - lr * delta)
        new_errors.append(p - delta)
    return new_xs, new_errors
