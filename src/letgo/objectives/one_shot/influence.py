"""Influence unlearning: one Newton step that takes back what the forget set did to the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from letgo.core.errors import NonFiniteLossError, UserError
from letgo.core.values import Count, Positive, Seed, Weight
from letgo.data.pairs import generator_of
from letgo.models.head import output_head
from letgo.objectives.likelihood import check_above, label_counts, label_hidden, sequence_logps
from letgo.objectives.one_shot.data import Batches, Data, relative_length, rows_in, trained
from letgo.objectives.retain import cross_entropy

_LEAST_HELD = 16
_HELD_BYTES = 1 << 30

Vector = list[Tensor]
"""A vector of the trained parameters' dimension: one float32 tensor for each parameter."""
Gradients = Callable[[int, int], Iterator[Vector]]
"""A function of a first and a last number: the gradients of these samples, in order, made anew at each call."""


def influence(
    model: Any,
    data: Data,
    *,
    hessian: Literal["woodfisher", "gnb"] = "woodfisher",
    alpha: Positive = 0.2,
    damping: Positive = 1.0,
    samples: Count = 1000,
    held: Count | None = None,
    retain_share: Weight = 0.0,
    batch_size: Count = 4,
    seed: Seed = 0,
) -> None:
    """θ ← θ_o + α H⁻¹ v, v = (1/|D_f|) Σ_{D_f} ∇ℓ − ρ (1/|D_r|) Σ_{D_r} ∇ℓ, ℓ a row's mean cross-entropy (influence
    unlearning as in SOUL, arXiv 2404.18239, section 4, equation 4, where ρ = 0 and the sum's scale is α's).

    H is the empirical Fisher matrix of retain rows, λI + (1/N) Σ g gᵀ (`woodfisher`; Singh and Alistarh, arXiv
    2004.14340), whose inverse is exact, or the damped diagonal of the Gauss-Newton-Bartlett estimate (`gnb`; Sophia,
    arXiv 2305.14342): λ + (1/n) Σ B ĝ ⊙ ĝ with ĝ the gradient of the mean cross-entropy of B labels that are drawn
    from the model.

    Args:
        model: a causal LM, changed in place.
        data: forget and retain set.
        hessian: "woodfisher" or "gnb".
        alpha: α > 0, the length of the step.
        damping: λ > 0.
        samples: N, the retain rows that H is made of (fewer where there are fewer).
        held: gradients held in memory at once for `woodfisher`, each as large as the trained parameters in float32; by
            default as many as 1 GB has room for, but at least 16 (see `gradients_held`).
        retain_share: ρ ≥ 0; with 1, the forget gradient less the retain gradient, as in public code.
        batch_size: rows in a batch of the means' and of `gnb`'s passes.
        seed: of the labels that `gnb` draws.

    `woodfisher` keeps `held` + 3 vectors and N² numbers, and costs about N + N²/(2 held) gradients of single rows:
    with 1,000 rows and 16 held, 32,000; with all held, 2,000 of them. `gnb` keeps 3 vectors and costs N rows.

    Raises:
        UserError: a setting is out of range, or there is no retain set.
        NonFiniteLossError: a gradient is not finite.
    """
    for name, value in (("alpha", alpha), ("damping", damping), ("samples", samples), ("held", held)):
        if value is not None:
            check_above("influence", name, value)
    check_above("influence", "retain_share", retain_share, equal=True)
    if hessian not in ("woodfisher", "gnb"):
        raise UserError(f"influence: hessian must be woodfisher or gnb, not {hessian!r}")
    if data.retain is None:
        raise UserError("influence unlearning needs a retain set: the curvature is taken from it")
    parameters = trained(model)
    was_training = model.training
    model.eval()
    try:
        v = _mean_gradient(model, parameters, data.forget, batch_size, data.advance)
        if retain_share:
            of_retain = _mean_gradient(model, parameters, data.retain, batch_size, data.advance)
            torch._foreach_sub_(v, of_retain, alpha=retain_share)
        count = min(samples, rows_in(data.retain))
        if hessian == "gnb":
            step = _divided_by_gnb(model, parameters, data, v, count, damping, batch_size, seed)
        else:
            gradients = _row_gradients(model, parameters, data.retain, data.advance)
            step = inverse_fisher_product(gradients, v, count, damping, held or gradients_held(parameters))
    finally:
        model.train(was_training)
    if not all(bool(torch.isfinite(s).all()) for s in step):
        raise NonFiniteLossError("the influence step is not finite")
    share = alpha * relative_length(step, parameters)
    data.say(
        f"influence: the step is {share:.2g} of the weights' length (alpha {alpha:g}, to which it is proportional)"
    )
    with torch.no_grad():
        for parameter, change in zip(parameters, step, strict=True):
            parameter.add_(change.to(parameter.dtype), alpha=alpha)


def gradients_held(parameters: Sequence[Tensor]) -> int:
    """How many gradients are held at once by default."""
    size = sum(p.numel() * max(4, p.element_size()) for p in parameters)
    return max(_LEAST_HELD, _HELD_BYTES // max(1, size))


def inverse_fisher_product(gradients: Gradients, v: Vector, count: int, damping: float, held: int) -> Vector:
    """F⁻¹ v, exactly, F = λI + (1/N) Σ_i g_i g_iᵀ, by the Sherman-Morrison recursion

        F_i⁻¹ = F_{i−1}⁻¹ − w_i w_iᵀ / (N + g_iᵀ w_i),   w_i = F_{i−1}⁻¹ g_i,   F_0⁻¹ = I/λ.

    The vectors w_i are as many as there are samples, and as long as the parameters; but each is a combination of g_1 …
    g_i, so the recursion runs on their coefficients, and needs of the gradients only their products with each other
    and with v. Those are made a block of `held` gradients at a time, the others streamed past it.

    Args:
        gradients: of the numbers of a first and a last sample (not included), their gradients, made anew.
        v: the vector, of any length.
        count: N.
        damping: λ > 0.
        held: gradients in memory at once.
    """
    products = torch.zeros(count, count, dtype=torch.float64)
    with_v = torch.zeros(count, dtype=torch.float64)
    for start in range(0, count, held):
        _take_products(gradients, v, start, min(start + held, count), products, with_v)
    weights = sherman_morrison(products, with_v, damping)
    result = [t / damping for t in v]
    for weight, g in zip(weights.tolist(), gradients(0, count), strict=True):
        torch._foreach_add_(result, g, alpha=weight)
    return result


def _take_products(gradients: Gradients, v: Vector, start: int, stop: int, products: Tensor, with_v: Tensor) -> None:
    """The products of one block of gradients with each other, with all later ones and with v, entered in place. Only
    in here does the block exist."""
    # One matrix for each parameter, with a gradient in each row: products are taken a block at a time.
    block = [torch.empty((stop - start, t.numel()), dtype=t.dtype, device=t.device) for t in v]

    def with_block(g: Sequence[Tensor]) -> Tensor:
        return sum((rows @ t.flatten().to(rows.dtype)).double().cpu() for rows, t in zip(block, g, strict=True))  # type: ignore[return-value]

    for i, g in enumerate(gradients(start, stop)):
        for rows, t in zip(block, g, strict=True):
            rows[i] = t.flatten()
    with_v[start:stop] = with_block(v)
    for j in range(start, stop):
        products[start:stop, j] = with_block([rows[j - start] for rows in block])
    for j, other in enumerate(gradients(stop, len(with_v)), stop):
        products[start:stop, j] = products[j, start:stop] = with_block(other)


def sherman_morrison(products: Tensor, with_v: Tensor, damping: float) -> Tensor:
    """The coefficients c of F⁻¹ v = v/λ + Σ_i c_i g_i, from K_ij = g_iᵀ g_j and b_i = g_iᵀ v.

    w_i = Σ_k W_ik g_k; after step i, F_i⁻¹ v = v/λ + Σ_k c_k g_k.
    """
    count = len(with_v)
    w = torch.zeros_like(products)
    seen = torch.zeros_like(products)  # w_iᵀ g_j
    scale = torch.zeros_like(with_v)
    c = torch.zeros_like(with_v)
    for i in range(count):
        w[i, i] = 1 / damping
        # w_i = g_i/λ − Σ_{j<i} w_j (w_jᵀ g_i) / (N + g_jᵀ w_j)
        w[i] -= (seen[:i, i] / scale[:i]) @ w[:i]
        seen[i] = w[i] @ products
        scale[i] = count + seen[i, i]
        # F_i⁻¹ v = F_{i−1}⁻¹ v − w_i (g_iᵀ F_{i−1}⁻¹ v) / (N + g_iᵀ w_i)
        c -= w[i] * ((with_v[i] / damping + products[i] @ c) / scale[i])
    return c


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Vector:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    whole = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True))
    return [g.detach().to(torch.promote_types(g.dtype, torch.float32)) for g in whole]


def _row_gradients(
    model: Any, parameters: Sequence[Tensor], batches: Batches, advance: Callable[[str, int], None]
) -> Gradients:
    """The gradients of single rows' mean cross-entropy."""

    def gradients(start: int, stop: int) -> Iterator[Vector]:
        for part in islice(batches(1), start, stop):
            advance("gradients of retain rows", 1)
            yield _gradient(cross_entropy(model, part), parameters)

    return gradients


def _mean_gradient(
    model: Any,
    parameters: Sequence[Tensor],
    batches: Batches,
    batch_size: int,
    advance: Callable[[str, int], None],
) -> Vector:
    """The gradient of the mean over rows of each row's mean cross-entropy."""
    total = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
    rows = 0
    for part in batches(batch_size):
        means = -(sequence_logps(model, part) / label_counts(part).clamp(min=1)).sum()
        torch._foreach_add_(total, _gradient(means, parameters))
        rows += len(part["labels"])
        advance("mean gradient", len(part["labels"]))
    torch._foreach_div_(total, max(1, rows))
    return total


def _divided_by_gnb(
    model: Any,
    parameters: Sequence[Tensor],
    data: Data,
    v: Vector,
    count: int,
    damping: float,
    batch_size: int,
    seed: int,
) -> Vector:
    """v / (λ + ĥ), ĥ the mean over batches of B ĝ ⊙ ĝ."""
    diagonal = [torch.zeros_like(t) for t in v]
    batches = rows = 0
    for number, part in enumerate((data.retain or data.forget)(batch_size)):
        if rows >= count:
            break
        logits = output_head(model)(label_hidden(model, part))
        generator = generator_of(seed, number)
        with torch.no_grad():
            drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(logits.device)
        gradient = _gradient(F.cross_entropy(logits, drawn), parameters)
        torch._foreach_addcmul_(diagonal, gradient, gradient, value=len(drawn))
        del gradient, logits
        batches, rows = batches + 1, rows + len(part["labels"])
        data.advance("curvature", len(part["labels"]))
    return [t / (damping + d / max(1, batches)) for t, d in zip(v, diagonal, strict=True)]
