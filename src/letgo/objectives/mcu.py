"""Minor components: RMU on what is left of the hidden states without the directions that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from letgo.core.errors import UserError
from letgo.core.signatures import taking
from letgo.core.values import Natural
from letgo.models.forward import block_number
from letgo.objectives.likelihood import Part, layer_hidden
from letgo.objectives.rmu import rmu


@taking(rmu)
def mcu(model: Any, forget: Part, *, removed: Natural = 8, components: Tensor | None = None, **of_rmu: Any) -> Tensor:
    """ℓ_f = mean over real tokens of (1/d) ‖P h_ℓ(x) − c u‖², P = I − QQᵀ   (minor component unlearning, arXiv
    2605.11685, its RMU).

    The columns of Q span the mean and the removed − 1 leading principal components of the original model's h_ℓ over
    all real tokens of the forget set (`shared_components`).

    Args:
        removed: the directions that are left out, 8 or 32 in the source; with 0 it is RMU.
        components: Q, of shape (d, removed).
    """
    if not removed:
        return rmu(model, forget, **of_rmu)
    if components is None:
        raise UserError("mcu: the components of the original's hidden states are not there: objective.fit takes them")
    hidden = layer_hidden(model, forget, block_number(model, of_rmu.get("layer")))
    shared = components.to(hidden.device, hidden.dtype)
    return rmu(model, {**forget, "layer_hidden": hidden - (hidden @ shared) @ shared.t()}, **of_rmu)


def shared_components(model: Any, forget: Mapping[str, Sequence[Tensor]], *, removed: Natural = 8) -> Tensor | None:
    """Q in float64, of shape (d, removed), from the original's hidden states; None where nothing is removed. Beyond d
    directions there are none.

    Args:
        forget: `layer_hidden`: for each row a tensor of shape (real tokens, d).
    """
    if not removed:
        return None
    rows = forget["layer_hidden"]
    tokens, total, products = 0, torch.zeros(()), torch.zeros(())
    for row in (rows[number].double() for number in range(len(rows))):
        tokens, total, products = tokens + len(row), total + row.sum(0), products + row.t() @ row
    mean = total / tokens
    _, directions = torch.linalg.eigh(products / tokens - mean.outer(mean))
    # The mean is not at right angles to them.
    leading = directions.flip(1)[:, : removed - 1]
    return torch.linalg.qr(torch.cat([mean[:, None], leading], 1)).Q
