"""Negative preference optimization: the forget set as answers that are dispreferred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

from letgo.errors import UserError
from letgo.objectives.likelihood import over_rows, sequence_logps


def npo(model: Any, batch: Mapping[str, Tensor], *, beta: float = 0.1) -> Tensor:
    """ℓ_f = −(2/β) E log σ( −β log( π_θ(y|x) / π_ref(y|x) ) )   (NPO, arXiv 2404.05868, equation 3).

    Log-probabilities are sums over a row's label tokens. As β → 0 the gradient becomes gradient ascent's on the same
    sums; with β > 0 a row that is forgotten well stops pulling.

    Args:
        model: a causal LM, π_θ.
        batch: the forget batch, with `reference_logps` of shape (rows,): log π_ref(y|x), π_ref the initial model.
        beta: inverse temperature β > 0.
    """
    if beta <= 0:
        raise UserError(f"npo: beta must be above 0, not {beta}")
    ratio = sequence_logps(model, batch) - batch["reference_logps"]
    return over_rows(-2.0 / beta * logsigmoid(-beta * ratio), batch)
