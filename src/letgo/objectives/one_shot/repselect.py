"""RepSelect: one step up the forget set's loss, without the directions that other knowledge shares."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.values import Count, Natural, Positive, Seed, Weight
from letgo.data.pairs import generator_of
from letgo.models.forward import find_blocks
from letgo.models.head import reference_head
from letgo.models.running import evaluating
from letgo.objectives.likelihood import Part, label_counts, label_hidden
from letgo.objectives.one_shot.data import Batches, Data, relative_length
from letgo.objectives.retain import cross_entropy, kl_to_reference

Collapse = Literal["soft", "hard", "quadratic"]
Adapters = Mapping[str, tuple[Tensor, Tensor]]
"""Layer's name -> A of shape (rank, inputs) and B of shape (outputs, rank)."""
_ATTENTION = re.compile(r"attn|attention")
_TRIES = 60


def repselect(
    model: Any,
    data: Data,
    *,
    rank: Natural | None = None,
    collapse: Collapse = "soft",
    draw_out_lr: Weight = 1e-2,
    draw_out_rank: Count = 8,
    budget: Positive = 1e-2,
    budget_rows: Count = 128,
    step: Positive | None = None,
    batch_size: Count = 4,
    seed: Seed = 0,
) -> None:
    """W ← W + α collapse(G) for every trained matrix of the MLPs, G = Σ over the forget set's batches of ∇_W ℓ, ℓ the
    batch's mean cross-entropy (RepSelect, arXiv 2606.17168).

    1. Adapters W x + B A x learn the forget set for an epoch (SGD, rate `draw_out_lr`): what relearning would use.
    2. G is taken with these adapters on, which are then dropped.
    3. The `rank` largest singular values S_i of G are turned round, to S_q² / S_i (see `collapsed`).
    4. α is the largest for which the mean KL divergence from the model as it was, on retain rows, is within `budget`;
       `within_budget` searches it. With `step`, α is that.

    Args:
        model: a causal LM, changed in place.
        data: forget and retain set.
        rank: q, the components of G that are damped; 0 for none. By default an eighth of the matrix's smaller side
            (the authors take 512 of 4,096).
        collapse: "soft" divides a component by its size over the q-th, "quadratic" by the square of that, "hard" takes
            it away.
        draw_out_lr: of the adapters; 0 for none.
        draw_out_rank: of the adapters.
        budget: the largest KL divergence.
        budget_rows: so many retain rows at most are looked at for it.
        step: α, in place of the search.
        batch_size: rows in a batch.
        seed: of the adapters and the batches' order.

    Beside the weights, two copies of the matrices are held in float32 at least, and a decomposition of one at a time.

    Raises:
        UserError: no matrix to change, no retain set for the search, or no step within the budget.
        NonFiniteLossError: a gradient is not finite.
    """
    layers = mlp_layers(model)
    if data.retain is None and step is None:
        raise UserError("repselect needs a retain set, on which its step is bounded: give one, or the setting 'step'")
    weights = [layer.weight for layer in layers.values()]
    was_training = model.training
    model.eval()  # no dropout
    try:
        adapters = drawn_out(model, layers, data, draw_out_lr, draw_out_rank, batch_size, seed)
        with attached(layers, adapters):
            gradients = _summed_gradients(model, weights, data, batch_size)
        directions = [collapsed(g, min(g.shape) // 8 if rank is None else rank, collapse) for g in gradients]
        del gradients, adapters
        if not all(bool(torch.isfinite(d).all()) for d in directions):
            raise NonFiniteLossError("repselect: the forget gradient is not finite")
        originals = [weight.detach().clone() for weight in weights]

        @torch.no_grad()
        def go(alpha: float) -> None:
            for weight, original, direction in zip(weights, originals, directions, strict=True):
                weight.copy_(original.to(direction.dtype).add(direction, alpha=alpha))

        spent = ""
        if step is None:
            assert data.retain is not None
            length = relative_length(directions, originals)
            if not length:
                raise UserError("repselect: the forget set has no gradient: there is nothing to step along")
            divergence = _divergence(model, data.retain, batch_size, budget_rows)

            def after(alpha: float) -> float:
                go(alpha)
                data.advance("searching the step", 1)
                return divergence()

            step = within_budget(after, budget, 1e-3 / length)
            spent = f", at a KL divergence of {after(step):.2g} on retain rows"
        else:
            go(step)
    finally:
        model.train(was_training)
    share = step * relative_length(directions, originals)
    data.say(f"repselect: the step is {share:.2g} of the weights' length in {len(weights)} matrices{spent}")


def collapsed(gradient: Tensor, rank: int, kind: Collapse = "soft") -> Tensor:
    """G − G V (I − F) Vᵀ, then the same from the left with U; F = diag(f_i) over the q largest singular values S_i,
    f_i = S_q / S_i (`soft`), its square (`quadratic`) or 0 (`hard`). So S_i becomes f_i² S_i; the rest stays."""
    if not rank:
        return gradient
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    factor = torch.where(s > 0, s[-1] / s, torch.ones_like(s))
    factor = {"soft": factor, "quadratic": factor.square(), "hard": torch.zeros_like(s)}[kind]
    return gradient - (u * (s * (1 - factor.square()))) @ vh


def within_budget(after: Callable[[float], float], budget: float, start: float) -> float:
    """The α with 0.95 budget ≤ after(α) ≤ budget: from `start` by factors of 8 until it is bracketed, then by halves of
    the logarithm. Where the divergence jumps over that, the largest α met that is within the budget.

    Raises:
        UserError: none is.
    """
    low, high, alpha = 0.0, math.inf, start
    for _ in range(_TRIES):
        value = after(alpha)
        if 0.95 * budget <= value <= budget:
            return alpha
        # What is not finite is over it too.
        low, high = (alpha, high) if value <= budget else (low, alpha)
        alpha = 8 * low if high == math.inf else high / 8 if not low else math.sqrt(low * high)
    if not low:
        raise UserError(f"repselect: no step keeps the KL divergence within {budget:g}: give a larger budget")
    return low


def mlp_layers(model: Any) -> dict[str, Any]:
    """The linear layers of the blocks, outside attention, whose weights are trained, by their names.

    Raises:
        UserError: there are none.
    """
    from transformers.pytorch_utils import Conv1D

    name, blocks = find_blocks(model)
    layers = {
        f"{name}.{inner}": module
        for inner, module in blocks.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module.weight.requires_grad and not _ATTENTION.search(inner)
    }
    if not layers:
        raise UserError("repselect changes the linear layers of the MLPs, and none is trained here; see 'trainable'")
    return layers


def drawn_out(
    model: Any, layers: Mapping[str, Any], data: Data, lr: float, rank: int, batch_size: int, seed: int
) -> Adapters:
    """Adapters that have learnt the forget set for an epoch: A drawn as peft draws it, B from 0; empty where the rate
    is 0."""
    if not lr:
        return {}
    generator = torch.Generator().manual_seed(seed)
    adapters = {name: _adapter(layer, rank, generator) for name, layer in layers.items()}
    learnt = [matrix for pair in adapters.values() for matrix in pair]
    parts = list(data.forget(batch_size))
    for index in torch.randperm(len(parts), generator=generator_of(seed, 0)).tolist():
        with attached(layers, adapters):
            slopes = torch.autograd.grad(cross_entropy(model, parts[index]), learnt)
        with torch.no_grad():
            torch._foreach_sub_(learnt, list(slopes), alpha=lr)
        data.advance("drawing the forget set out", len(parts[index]["labels"]))
    return adapters


@contextmanager
def attached(layers: Mapping[str, Any], adapters: Adapters) -> Iterator[None]:
    """Within: each layer that has an adapter gives W x + B A x."""

    def hook(a: Tensor, b: Tensor) -> Callable[..., Tensor]:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + (args[0].to(a.dtype) @ a.T @ b.T).to(output.dtype)

        return add

    handles = [layers[name].register_forward_hook(hook(*pair)) for name, pair in adapters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adapter(layer: Any, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    weight = layer.weight
    # A convolution of GPT-2's kind has its weight the other way round.
    outputs, inputs = weight.shape if isinstance(layer, nn.Linear) else reversed(weight.shape)
    kind = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
    a = (2 * torch.rand(rank, inputs, generator=generator) - 1) / math.sqrt(inputs)
    return a.to(**kind).requires_grad_(), torch.zeros(outputs, rank, requires_grad=True, **kind)


def _summed_gradients(model: Any, weights: Sequence[Tensor], data: Data, batch_size: int) -> list[Tensor]:
    """Σ over batches of the gradient of the batch's mean cross-entropy, in float32 at least."""
    wide = [torch.promote_types(weight.dtype, torch.float32) for weight in weights]
    total = [torch.zeros_like(weight, dtype=dtype) for weight, dtype in zip(weights, wide, strict=True)]
    for part in data.forget(batch_size):
        slopes = torch.autograd.grad(cross_entropy(model, part), list(weights))
        for kept, slope in zip(total, slopes, strict=True):
            kept.add_(slope)
        data.advance("forget gradient", len(part["labels"]))
    return total


def _divergence(model: Any, retain: Batches, batch_size: int, rows: int) -> Callable[[], float]:
    """The mean KL divergence from the model as it is now, at the label tokens of the first retain rows."""
    head = reference_head(model)
    parts: list[Part] = []
    seen = 0
    with evaluating(model):
        for part in retain(min(batch_size, rows)):
            parts.append({**part, "reference_hidden": label_hidden(model, part)})
            seen += len(part["labels"])
            if seen >= rows:
                break
    counts = [int(label_counts(part).sum()) for part in parts]

    def now() -> float:
        with evaluating(model):
            values = [float(kl_to_reference(model, part, reference_head=head)) for part in parts]
        return math.fsum(v * c for v, c in zip(values, counts, strict=True)) / sum(counts)

    return now
