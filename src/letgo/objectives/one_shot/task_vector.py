"""Task vector: the change that fine-tuning on the forget set makes, with the opposite sign."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from letgo.core.values import Count, Positive, Seed
from letgo.objectives.likelihood import check_above
from letgo.objectives.one_shot.data import Data, fine_tune, relative_length, trained
from letgo.objectives.retain import cross_entropy


def task_vector(
    model: Any,
    data: Data,
    *,
    alpha: Positive = 5.0,
    lr: Positive = 1e-5,
    epochs: Count = 10,
    batch_size: Count = 4,
    seed: Seed = 0,
) -> None:
    """θ ← θ_o − α (θ_ft − θ_o), θ_ft the model fine-tuned on the forget set (task arithmetic, Ilharco et al., arXiv
    2212.04089, section 4; as a baseline with α = 5 in MUSE, arXiv 2407.06460).

    Args:
        model: a causal LM, changed in place.
        data: the forget set.
        alpha: α > 0.
        lr: rate of the fine-tuning (AdamW, constant).
        epochs: of the fine-tuning.
        batch_size: rows in a batch of it.
        seed: of the batches' order.

    One copy of the trained parameters is held beside the fine-tuning's own state.
    """
    check_above("task_vector", "alpha", alpha)
    parameters = trained(model)
    original = [parameter.detach().clone() for parameter in parameters]

    settings: dict[str, Any] = {"lr": lr, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    advance = partial(data.advance, "fine-tuning on the forget set")
    fine_tune(model, data.forget, cross_entropy, advance=advance, **settings)
    with torch.no_grad():
        share = alpha * relative_length((p - b for p, b in zip(parameters, original, strict=True)), original)
        data.say(f"task_vector: the step is {share:.2g} of the weights' length (alpha {alpha:g} times the task vector)")
        for parameter, before in zip(parameters, original, strict=True):
            # (1 + α) θ_o − α θ_ft, as one rounding of a difference.
            parameter.copy_(torch.sub(before, parameter - before, alpha=alpha))
