"""The model as its own teacher, with the label's logit taken down: the rest of its distribution stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from letgo.core.values import Natural, Weight
from letgo.data.encode import IGNORE
from letgo.models.head import OutputHead, output_head
from letgo.objectives.chunks import summed
from letgo.objectives.likelihood import Part, label_hidden, label_positions, labels_of, over_tokens
from letgo.objectives.retain import teacher_of


def undial(model: Any, forget: Part, *, strength: Weight = 10.0, reference_head: OutputHead | None = None) -> Tensor:
    """ℓ_f = mean_t −Σ_v q_t(v) log π_θ(v | x, y_<t), q_t = softmax(z_t − γ 1[v = y_t]), z_t the reference model's
    logits   (UNDIAL, arXiv 2402.10052).

    Args:
        forget: the forget part, with `reference_hidden` of shape (label tokens, width).
        strength: γ ≥ 0, what the label's logit loses (3, 10 and 30 are in use).
        reference_head: the output layer that z_t comes from; see `Objective.prepare`.
    """
    head, labels = output_head(model), labels_of(forget)
    teacher = teacher_of(head, reference_head)

    def summand(logits: Tensor, reference: Tensor, label: Tensor) -> Tensor:
        with torch.no_grad():
            adjusted = teacher(reference).to(logits.dtype)
            target = adjusted.scatter_add(1, label[:, None], adjusted.new_full((len(label), 1), -strength)).softmax(-1)
        return -(target * logits.log_softmax(-1)).sum()

    return over_tokens(summed(head, summand, label_hidden(model, forget), forget["reference_hidden"], labels), forget)


def ce_u(model: Any, forget: Part, *, ignore_first: Natural = 0) -> Tensor:
    """ℓ_f = mean_t −log(1 − π_θ(y_t | x, y_<t))   (CE-U, arXiv 2503.01224).

    There it is written as the cross-entropy −Σ_v q_t(v) log π_θ(v | x, y_<t) to the model's own distribution with the
    label made impossible, q_t = softmax(z_t with z_t[y_t] = −∞), held fixed. As π_θ(v) = (1 − π_θ(y_t)) q_t(v) for all
    other words, its gradient is that of −log(1 − π_θ(y_t)), and its value larger by q_t's entropy, which, were it left
    in, an optimizer that sees values alone would lower too.

    Args:
        ignore_first: so many label tokens at the start of every row are left out of the sum (the paper's training
            settings leave out one); the mean is over all label tokens.
    """
    head = output_head(model)
    hidden, labels = label_hidden(model, forget), labels_of(forget)
    if ignore_first:
        kept = (_number_in_row(forget) >= ignore_first).nonzero()[:, 0]
        hidden, labels = hidden[kept], labels[kept]

    def summand(logits: Tensor, label: Tensor) -> Tensor:
        # Of logits, not of the label's log-probability: where that is nearly 0, nothing would be left of 1 − π.
        others = logits.scatter(1, label[:, None], -torch.inf).logsumexp(-1)
        return (logits.logsumexp(-1) - others).sum()

    return over_tokens(summed(head, summand, hidden, labels), forget)


def _number_in_row(part: Part) -> Tensor:
    """For each label token how many label tokens come before it in its row, of shape (tokens,)."""
    counted = part["labels"][:, 1:] != IGNORE
    return (counted.cumsum(dim=1) - 1)[label_positions(part)]
