"""Saliency masks, unit by unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def masks(gradients: list[Tensor], keep: float, unit: str) -> list[Tensor]:
    """1 where a weight is salient, of the gradients' shapes."""
    sizes: list[tuple[float, int, int]] = []
    for number, g in enumerate(gradients):
        for row, part in enumerate(parts(g, unit)):
            sizes.append((math.sqrt(sum(value**2 for value in part.flatten().tolist())), number, row))
    sizes.sort(key=lambda size: -size[0])
    chosen = {(number, row) for size, number, row in sizes[: max(1, round(keep * len(sizes)))] if size > 0}
    whole = []
    for number, g in enumerate(gradients):
        rows = [torch.full_like(p, float((number, row) in chosen)) for row, p in enumerate(parts(g, unit))]
        whole.append(torch.cat([r.flatten() for r in rows]).view(g.shape))
    return whole


def parts(g: Tensor, unit: str) -> list[Tensor]:
    if unit == "tensor":
        return [g]
    return list(g.flatten()) if unit == "weight" or g.dim() < 2 else list(g)


def masked(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
    return mask * after + (1 - mask) * before
