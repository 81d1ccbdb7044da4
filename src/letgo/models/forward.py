"""One way to run a causal LM for its logits at some positions only."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor


def logits_at(model: Any, positions: Tensor | int, **inputs: Any) -> Tensor:
    """Logits of a forward pass at `positions` of the sequence: a tensor of indices, or the last n.

    The output layer runs on those positions alone where the architecture allows it (with a vocabulary of 50,000 and a
    small model it costs as much as several layers). Shape (rows, positions, vocabulary).
    """
    if _takes_logits_to_keep(type(_unwrapped(model))):
        return model(logits_to_keep=positions, **inputs).logits
    logits = model(**inputs).logits
    return logits[:, -positions:] if isinstance(positions, int) else logits[:, positions]


def _takes_logits_to_keep(kind: Any) -> bool:
    return "logits_to_keep" in inspect.signature(kind.forward).parameters


def _unwrapped(model: Any) -> Any:
    """The transformers model inside what DDP and peft put around it."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
