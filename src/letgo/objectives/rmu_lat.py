"""RMU under a latent attack: the forget set's hidden states are steered while an adversary pushes them back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from letgo.core.errors import UserError
from letgo.core.signatures import taking
from letgo.core.values import Natural, Positive
from letgo.models.forward import block_number, real_columns, shifted
from letgo.objectives.likelihood import Part, label_counts, token_logps
from letgo.objectives.rmu import rmu


@taking(rmu)
def rmu_lat(
    model: Any,
    forget: Part,
    *,
    attacked_layer: Natural | str | None = None,
    inner_steps: Natural = 16,
    inner_lr: Positive = 5e-2,
    radius: Positive = 2.0,
    **of_rmu: Any,
) -> Tensor:
    """ℓ_f of `rmu` with δ_t added to the input of block `attacked_layer` at every token   (latent adversarial training,
    arXiv 2407.15549, on RMU).

    δ is the batch's: `adversary` finds it before the step, and the loss is a function of the weights with δ fixed.

    Args:
        forget: the forget part, with `latent` of shape (real tokens, width): δ; without it ℓ_f is RMU's.
        attacked_layer: the block whose input is shifted, as in `block_number`, `layer` or one below it; by default
            `layer`.
        inner_steps: of the adversary; with 0 there is none.
        inner_lr: of its AdamW.
        radius: the longest that a token's δ_t may be.
    """
    if "latent" not in forget:
        return rmu(model, forget, **of_rmu)
    block = attacked_block(model, of_rmu.get("layer"), attacked_layer)
    with shifted(model, block, spread(forget, forget["latent"])):
        return rmu(model, forget, **of_rmu)


def adversary(
    model: Any,
    forget: Part,
    *,
    layer: Natural | str | None = None,
    attacked_layer: Natural | str | None = None,
    inner_steps: Natural = 16,
    inner_lr: Positive = 5e-2,
    radius: Positive = 2.0,
) -> Tensor | None:
    """δ of shape (real tokens, width), float32 at least, after so many AdamW steps (no decay) from 0 on
    `adversary_loss`, each followed by a projection to ‖δ_t‖ ≤ radius; None where there are no steps.

    Padding has no δ, and a row's δ does not depend on the rows beside it.
    """
    if not inner_steps:
        return None
    block = attacked_block(model, layer, attacked_layer)
    delta = no_shift(model, forget).requires_grad_()
    optimizer = torch.optim.AdamW([delta], lr=inner_lr, weight_decay=0.0)
    for _ in range(inner_steps):
        with torch.enable_grad():
            [delta.grad] = torch.autograd.grad(adversary_loss(model, forget, delta, block), [delta])
        optimizer.step()
        with torch.no_grad():
            delta.mul_((radius / delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0))
    return delta.detach()


def adversary_loss(model: Any, forget: Part, delta: Tensor, block: int) -> Tensor:
    """Σ over rows of the row's mean −log π_θ(y_t | x, y_<t), with δ added to the input of `block`."""
    # A row's mean, not the batch's: then other rows do not scale its gradient.
    share = 1.0 / label_counts(forget).clamp(min=1)
    with shifted(model, block, spread(forget, delta)):
        logps = token_logps(model, forget)
    return -(logps * share.repeat_interleave(label_counts(forget))).sum()


def no_shift(model: Any, forget: Part) -> Tensor:
    """δ = 0, of shape (real tokens, width)."""
    weight = model.get_input_embeddings().weight
    tokens, width = int(forget["attention_mask"].sum()), model.config.get_text_config().hidden_size
    return torch.zeros(tokens, width, device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))


def attacked_block(model: Any, layer: int | str | None, attacked_layer: int | str | None) -> int:
    """The block whose input is shifted.

    Raises:
        UserError: it lies above the layer whose hidden states are steered, where the shift would change nothing.
    """
    number = block_number(model, layer)
    attacked = number if attacked_layer is None else block_number(model, attacked_layer)
    if attacked > number:
        raise UserError(
            f"rmu_lat: attacked_layer {attacked} lies above layer {number}: what is added there does not reach the "
            f"hidden states that are steered; give one of 0 to {number}"
        )
    return attacked


def spread(part: Part, packed: Tensor) -> Tensor:
    """Values at real tokens, of shape (real tokens, width), at their places: (rows, real columns, width), else 0."""
    mask = part["attention_mask"][:, real_columns(part["attention_mask"])]
    rows, columns = mask.nonzero(as_tuple=True)
    return packed.new_zeros(*mask.shape, packed.shape[-1]).index_put((rows, columns), packed)
