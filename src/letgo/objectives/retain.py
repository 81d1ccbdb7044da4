"""Retain terms: what holds the rest of the model where it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from letgo.core.values import Natural
from letgo.models.forward import block_number
from letgo.models.head import OutputHead, output_head
from letgo.objectives.chunks import summed
from letgo.objectives.likelihood import (
    Part,
    label_hidden,
    layer_hidden,
    mean_squares,
    over_positions,
    over_tokens,
    summed_logps,
)


def cross_entropy(model: Any, retain: Part) -> Tensor:
    """ℓ_r = mean −log π_θ(y_t | x, y_<t) over the retain set's label tokens (GradDiff, NPO_GDR)."""
    return over_tokens(-summed_logps(model, retain), retain)


def kl_to_reference(model: Any, retain: Part, *, reference_head: OutputHead | None = None) -> Tensor:
    """ℓ_r = mean_t Σ_v π_ref(v) log( π_ref(v) / π_θ(v) ) = mean KL(π_ref ‖ π_θ) over the positions that predict the
    retain set's label tokens (TOFU, arXiv 2401.06121, section 3: "KL minimization"; MUSE, arXiv 2407.06460, KLR).

    Args:
        retain: the retain part, with `reference_hidden` of shape (label tokens, width).
        reference_head: the output layer that π_ref comes from; see `Objective.prepare`.
    """
    head = output_head(model)
    teacher = teacher_of(head, reference_head)

    def summand(logits: Tensor, reference: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(reference).to(logits.dtype).log_softmax(-1)
        # Spelt out: torch's own has no batching rule, so that it would run evaluation by evaluation under vmap.
        return (target.exp() * (target - logits.log_softmax(-1))).sum()

    return over_tokens(summed(head, summand, label_hidden(model, retain), retain["reference_hidden"]), retain)


def embedding_difference(model: Any, retain: Part, *, layer: Natural | str | None = None) -> Tensor:
    """ℓ_r = mean over real tokens of (1/d) ‖h_ℓ(x) − h_ℓ^ref(x)‖²   (RMU's retain loss, arXiv 2403.03218, section 4).

    Args:
        retain: the retain part, with `reference_layer_hidden` of shape (real tokens, width).
        layer: ℓ, as in `block_number`.
    """
    hidden = layer_hidden(model, retain, block_number(model, layer))
    return over_positions(mean_squares(hidden, retain["reference_layer_hidden"]), retain)


def teacher_of(head: OutputHead, reference_head: OutputHead | None) -> Callable[[Tensor], Tensor]:
    """The output layer for stored hidden states.

    Raises:
        ValueError: the model's own would serve, but it is being trained and so is not the reference's any more.
    """
    if reference_head is not None:
        return reference_head
    if head.trained:
        raise ValueError("the output layer is trained: call objective.prepare(model) before training, to keep a copy")
    return head
