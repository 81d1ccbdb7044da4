"""Gradient ascent with a weight on every token, so that what is forgotten already stops pulling.

The sources write ℓ = mean w(p_t) log p_t and take no gradient through w. That is a gradient, not a function of the
weights: an optimizer that sees values alone would descend another one (p log p rises as p falls below 1/e). So the
losses here are the functions whose gradients these are, F(p) with dF = w(p) d log p.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from letgo.core.values import Positive, Weight
from letgo.objectives.likelihood import Part, over_tokens, token_logps

_NODES = 32


def wga(model: Any, forget: Part, *, beta: Weight = 1.0) -> Tensor:
    """ℓ_f = mean (p_t^β − 1)/β, p_t = π_θ(y_t | x, y_<t), with the gradient mean p_t^β ∇ log p_t   (WGA, arXiv
    2502.19301, where it is mean w_t log p_t with w_t = p_t^β held fixed).

    At β = 0 it is gradient ascent.

    Args:
        beta: β ≥ 0, how fast a token that has become unlikely loses its weight (the paper's α).
    """
    logps = token_logps(model, forget)
    return over_tokens(torch.expm1(beta * logps) / beta if beta else logps, forget)


def satimp(model: Any, forget: Part, *, beta1: Positive = 5.0, beta2: Weight = 1.0) -> Tensor:
    """ℓ_f = mean ∫₀^{p_t} s^(β₁−1) (1 − s)^β₂ ds, with the gradient mean p_t^β₁ (1 − p_t)^β₂ ∇ log p_t   (SatImp, arXiv
    2505.11953, section 5, where it is mean w_t log p_t with w_t = p_t^β₁ (1 − p_t)^β₂ held fixed).

    The first factor is for saturation (what is forgotten already weighs little), the second for importance (what is
    certain, and so likely in any case, weighs little). At β₂ = 0 it is WGA.

    Args:
        beta1: β₁ > 0.
        beta2: β₂ ≥ 0.
    """
    chances = token_logps(model, forget).exp()
    # The integral with s = p r, by the Gauss-Jacobi rule for the weight r^(β₁−1): exact for whole β₂ up to 63.
    nodes, weights = (t.to(chances) for t in _jacobi(float(beta1)))
    inner = (1 - chances[:, None] * nodes) ** beta2
    return over_tokens(chances**beta1 * (inner * weights).sum(dim=1), forget)


@lru_cache(maxsize=8)
def _jacobi(beta1: Positive) -> tuple[Tensor, Tensor]:
    """Nodes and weights of ∫₀¹ r^(β₁−1) f(r) dr."""
    from scipy.special import roots_jacobi

    nodes, weights = roots_jacobi(_NODES, 0.0, beta1 - 1.0)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2**beta1)
