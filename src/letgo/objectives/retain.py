"""Retain terms: what holds the rest of the model where it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from letgo.objectives.likelihood import over_tokens, sequence_logps


def none(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Zero: no retain term."""
    return batch["input_ids"].new_zeros((), dtype=next(model.parameters()).dtype)


def cross_entropy(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """ℓ_r = mean −log π_θ(y_t | x, y_<t) over the retain set's label tokens (GradDiff, NPO_GDR)."""
    return over_tokens(-sequence_logps(model, batch), batch)
