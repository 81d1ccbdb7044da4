"""Forgetting by going on with the retain set alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from letgo.core.values import Weight
from letgo.objectives.likelihood import no_term


def l1_sparsity(model: Any, *, sparsity: Weight = 1e-6) -> Tensor:
    """ℓ_f = α ‖θ‖₁ over the trained parameters: what the retain set does not need goes to zero, and what was learnt of
    the forget set with it (ℓ₁-sparse MU, Jia et al., arXiv 2304.04934).

    Args:
        model: any model.
        sparsity: α ≥ 0.
    """
    total = no_term(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            total = total + parameter.abs().sum(dtype=torch.promote_types(parameter.dtype, torch.float32))
    return sparsity * total
