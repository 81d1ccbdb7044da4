"""Negative preference optimization: the forget set as answers that are dispreferred."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

from letgo.core.values import Positive
from letgo.objectives.likelihood import Part, label_counts, over_rows, sequence_logps


def npo(model: Any, forget: Part, *, beta: Positive = 0.1) -> Tensor:
    """ℓ_f = −(2/β) E log σ( −β log( π_θ(y|x) / π_ref(y|x) ) )   (NPO, arXiv 2404.05868, equation 3).

    Log-probabilities are sums over a row's label tokens. As β → 0 the gradient becomes gradient ascent's on the same
    sums; with β > 0 a row that is forgotten well stops pulling.

    Args:
        forget: the forget part, with `reference_logps` of shape (rows,): log π_ref(y|x), π_ref the initial model.
        beta: inverse temperature β > 0.
    """
    ratio = sequence_logps(model, forget) - forget["reference_logps"]
    return over_rows(-2.0 / beta * logsigmoid(-beta * ratio), forget)


def simnpo(model: Any, forget: Part, *, beta: Positive = 4.5, gamma: float = 0.0) -> Tensor:
    """ℓ_f = −(2/β) E log σ( −(β/|y|) log π_θ(y|x) − γ )   (SimNPO, arXiv 2410.07163).

    No reference model: what NPO measures against it, SimNPO measures against the answer's length |y|, in label tokens.

    Args:
        beta: inverse temperature β > 0.
        gamma: margin γ ≥ 0 of the reward. (Some code writes the argument as β (NLL/|y| − δ): then δ = γ/β.)
    """
    mean = sequence_logps(model, forget) / label_counts(forget).clamp(min=1)
    return over_rows(-2.0 / beta * logsigmoid(-beta * mean - gamma), forget)
