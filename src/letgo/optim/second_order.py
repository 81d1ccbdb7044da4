"""Second order: Sophia, with three estimates of the Hessian's diagonal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from letgo.core.values import Count, Seed
from letgo.optim.base import (
    Closure,
    ClosureOptimizer,
    HessianClosure,
    ParamsT,
    check_betas,
    check_choice,
    check_number,
    given_closure,
    parameters_of,
    state_like,
)
from letgo.optim.engine.noise import Direction, mix
from letgo.optim.engine.shards import has_shards, local

HessianKind = Literal["empirical_fisher", "hutchinson", "gnb"]

SOUL_BATCH = 5120
"""The batch size that SOUL's code puts in Sophia's denominator whatever the batch is."""


class Sophia(ClosureOptimizer):
    r"""Sophia: momentum divided by a running diagonal of the Hessian, clipped per coordinate.

    .. code-block:: text

        input: lr, (b1, b2), rho, eps, period k, weight decay w
        m = h = 0
        for t = 1, 2, ...
            g = grad f(x)
            m = b1 m + (1 - b1) g
            if t mod k = 1:  h = b2 h + (1 - b2) h^           h^ an estimate at x of the diagonal of the Hessian
            x = (1 - lr w) x - lr clip(m / max(rho h, eps), 1)

        hutchinson         h^ = u * (H u), u random signs (or normal): unbiased for any twice differentiable loss
        gnb                h^ = B g^ * g^, g^ = gradient of the mean cross-entropy of B labels drawn from the model's
                           own distribution: unbiased for the Gauss-Newton diagonal
        empirical_fisher   h^ = B g * g with the training gradient, k = 1, B = 5120, and the momentum average applied
                           twice a step: what SOUL's code does, which draws no labels. Biased; costs nothing

    Source: Liu et al., Sophia (arXiv 2305.14342), algorithm 3 (with its code's eps and rho for gamma);
    `empirical_fisher`: the code of Jia et al., SOUL (arXiv 2404.18239). The Hessian of a step is computed before the
    step that uses it.

    In a `torch.distributed` run estimates are of all ranks' rows. On replicas `hutchinson` and `gnb` sum their
    gradients over the ranks themselves (DDP does not see those: with `hutchinson` the training gradient too, so that
    such a step exchanges two tensors a parameter, and a `gnb` one what DDP does and as much again). On FSDP2's shards
    `gnb` lets FSDP2 do so, in one more backward pass; `hutchinson` is refused: FSDP2 gives no second derivatives.

    Args:
        params: parameters or groups.
        lr: the largest distance that a weight moves in a step.
        betas: b1, b2.
        rho: how much of the curvature counts; larger clips less.
        eps: floor of the denominator; a coordinate of no or negative curvature moves by its momentum's sign.
        weight_decay: w, decoupled.
        hessian: `empirical_fisher`, `hutchinson` (the step needs the closure when h is due, and the model a double
            backward: in transformers, eager attention) or `gnb` (needs `hessian_closure`).
        hessian_every: k; None is 1 for `empirical_fisher` and 10 for the others.
        batch_size: B; None is 5120 for `empirical_fisher` and what `hessian_closure` returns for `gnb`, summed over
            the ranks.
        noise: u of `hutchinson`: `rademacher` or `gaussian`.
        seed: of u, and of the generator that `hessian_closure` is given.

    Attributes:
        hessian_closure: for `gnb`, a function of a generator that returns the mean cross-entropy of sampled labels and
            their number, and calls no backward; `gnb_loss` makes both from logits.
        clip_fraction: the share of coordinates that the last step clipped (1: sign descent; 0: Newton's method); on
            shards, of those that this rank holds.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        hessian: HessianKind = "empirical_fisher",
        hessian_every: int | None = None,
        batch_size: Count | None = None,
        noise: Literal["rademacher", "gaussian"] = "rademacher",
        seed: Seed = 0,
    ) -> None:
        check_number("lr", lr)
        check_betas("betas", betas)
        check_number("rho", rho)
        check_number("eps", eps, open_low=True)
        check_number("weight_decay", weight_decay)
        check_choice("hessian", hessian, ("empirical_fisher", "hutchinson", "gnb"))
        check_choice("noise", noise, ("rademacher", "gaussian"))
        soul = hessian == "empirical_fisher"
        hessian_every = (1 if soul else 10) if hessian_every is None else hessian_every
        check_number("hessian_every", hessian_every, low=1)
        super().__init__(
            params, {"lr": lr, "betas": tuple(betas), "rho": rho, "eps": eps, "weight_decay": weight_decay}
        )
        self.hessian = hessian
        self.hessian_every = int(hessian_every)
        self.batch_size = SOUL_BATCH if soul and batch_size is None else batch_size
        self.noise = noise
        self.seed = int(seed)
        self.steps_taken = 0
        self.hessian_closure: HessianClosure | None = None
        self._clipped: list[Tensor] = []
        self._coordinates = 0

    @property
    def needs_closure(self) -> bool:
        return self.hessian == "hutchinson" and self._due

    @property
    def costly_every(self) -> int:
        return self.hessian_every

    def use_labels(self, hessian_closure: HessianClosure) -> None:
        self.hessian_closure = hessian_closure

    @property
    def _due(self) -> bool:
        return self.steps_taken % self.hessian_every == 0

    @property
    def clip_fraction(self) -> float:
        return float(sum(float(c) for c in self._clipped)) / max(1, self._coordinates)

    def extra_state(self) -> dict[str, Any]:
        return {"steps_taken": self.steps_taken, "seed": self.seed}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self.steps_taken = int(extra.get("steps_taken", 0))
        self.seed = int(extra.get("seed", self.seed))

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step from `.grad`, after running the closure with gradients enabled if there is one.

        Raises:
            ValueError: the Hessian is due and what estimates it is missing: the closure for `hutchinson`,
                `hessian_closure` for `gnb`; or parameters are sharded and the estimate is `hutchinson`.
        """
        estimates: dict[int, Tensor] = {}
        if self.hessian == "hutchinson" and self._due:
            loss, estimates = self._hutchinson(closure)
        else:
            loss = self._loss_with_grad(closure)
        if self.hessian == "gnb" and self._due:
            estimates = self._gauss_newton_bartlett()
        self._clipped, self._coordinates = [], 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if self.hessian == "empirical_fisher" and self._due:
                    estimates[id(p)] = local(p.grad).square() * float(self.batch_size or 1)
                self._step_parameter(group, p, p.grad, estimates.get(id(p)))
        self.steps_taken += 1
        return loss

    def _step_parameter(self, group: dict[str, Any], p: Tensor, grad: Tensor, estimate: Tensor | None) -> None:
        state = self.state[p]
        self._clipped.append(
            sophia(
                local(p),
                local(grad),
                local(state_like(state, "exp_avg", p)),
                local(state_like(state, "hessian", p)),
                estimate,
                lr=float(group["lr"]),
                betas=group["betas"],
                rho=group["rho"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                twice=self.hessian == "empirical_fisher",
            )
        )
        self._coordinates += local(p).numel()

    def check_shards(self) -> None:
        if self.hessian == "hutchinson":
            raise ValueError(
                "hessian='hutchinson' differentiates gradients once more, which FSDP2 does not let be done to shards: "
                "take hessian='gnb' or 'empirical_fisher', or replicas (DDP)"
            )

    def _hutchinson(self, closure: Closure | None) -> tuple[Any, dict[int, Tensor]]:
        closure = given_closure(closure, "Sophia with hessian='hutchinson' differentiates gradients in this step")
        parameters = parameters_of(self)
        if has_shards(parameters):
            self.check_shards()
        kind: Literal["rademacher", "gaussian"] = "gaussian" if self.noise == "gaussian" else "rademacher"
        direction = Direction(kind, (self.seed, self.steps_taken), parameters)
        mode = _HessianProducts({p: i for i, p in enumerate(parameters) if p.requires_grad}, direction)
        with torch.enable_grad(), mode:
            loss = closure()
        self.last_losses = [float(loss.detach())]
        # In the order of the parameters, which is that of all ranks.
        used = [p for p in parameters if p.requires_grad and p.grad is not None]
        _average_over_ranks([p.grad for p in used if p.grad is not None])
        _average_over_ranks([mode.totals[p] for p in used if p in mode.totals])
        return loss, {id(p): total for p, total in mode.totals.items()}

    def _gauss_newton_bartlett(self) -> dict[int, Tensor]:
        if self.hessian_closure is None:
            raise ValueError(
                "Sophia with hessian='gnb' needs optimizer.hessian_closure: a function of a torch.Generator that "
                "returns letgo.optim.gnb_loss(logits, labels, generator)"
            )
        parameters = [p for p in parameters_of(self) if p.requires_grad]
        # Ranks have rows of their own, whose labels must not be drawn by the same numbers.
        rank = dist.get_rank() if _ranks() > 1 else 0
        seed = mix(self.seed, self.steps_taken, *([rank] if rank else []))
        generator = torch.Generator(parameters[0].device).manual_seed(seed)
        with torch.enable_grad():
            loss, count = self.hessian_closure(generator)
        size = float(count if self.batch_size is None else self.batch_size)
        if _ranks() > 1 and self.batch_size is None:
            counted = torch.tensor(size, dtype=torch.float64, device=parameters[0].device)
            dist.all_reduce(counted)
            size = counted.item()
        gradients: Sequence[Tensor | None]
        if has_shards(parameters):
            gradients = _sharded_gradients(loss, parameters)
        else:
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            _average_over_ranks([g for g in gradients if g is not None])
        return {id(p): local(g).square() * size for p, g in zip(parameters, gradients, strict=True) if g is not None}


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over the ranks of the run, in place."""
    if _ranks() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(_ranks())


def _sharded_gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of a loss at shards, which only a backward pass of FSDP2 hands out; `.grad` stays as it is."""
    kept = [p.grad for p in parameters]
    try:
        for p in parameters:
            p.grad = None
        with torch.enable_grad():
            loss.backward()
        return [p.grad for p in parameters]
    finally:
        for p, grad in zip(parameters, kept, strict=True):
            p.grad = grad


def sophia(
    x: Tensor,
    g: Tensor,
    m: Tensor,
    h: Tensor,
    estimate: Tensor | None,
    *,
    lr: float,
    betas: tuple[float, float],
    rho: float,
    eps: float,
    weight_decay: float,
    twice: bool = False,
) -> Tensor:
    """Sophia's update of x, m and h, in place; returns the number of coordinates clipped.

    Args:
        estimate: of the Hessian's diagonal, or None where it is not due.
        twice: average the gradient into m a second time, as SOUL's code does.
    """
    beta1, beta2 = betas
    if estimate is not None:
        h.mul_(beta2).add_(estimate, alpha=1 - beta2)
    for _ in range(2 if twice else 1):
        m.mul_(beta1).add_(g, alpha=1 - beta1)
    if weight_decay:
        x.mul_(1 - lr * weight_decay)
    ratio = m / (h * rho).clamp_min_(eps)
    clipped = (ratio.abs() >= 1).sum()
    x.add_(ratio.clamp_(-1, 1), alpha=-lr)
    return clipped


class _HessianProducts(TorchFunctionMode):
    """Turns every `loss.backward()` inside into gradients that can be differentiated again, and adds up u * (H u).

    Gradients are added to `.grad` as `backward` would, so one evaluation of the closure serves both. A window of
    micro-batches calls it once each; the sum of the products is the product of the sum.
    """

    def __init__(self, index_of: dict[Tensor, int], direction: Direction) -> None:
        super().__init__()
        self.index_of = index_of
        self.direction = direction
        self.totals: dict[Tensor, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.Tensor.backward:
            return func(*args, **(kwargs or {}))
        parameters = list(self.index_of)
        gradients = torch.autograd.grad(args[0], parameters, create_graph=True, allow_unused=True)
        used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        for p, g in used:
            p.grad = g.detach().clone() if p.grad is None else p.grad + g.detach()
        curved = [(p, g) for p, g in used if g.requires_grad]
        us = [self.direction.tensor(self.index_of[p]).to(p.dtype) for p, _ in curved]
        products = torch.autograd.grad(
            [g for _, g in curved], [p for p, _ in curved], grad_outputs=us, allow_unused=True
        )
        for (p, _), u, product in zip(curved, us, products, strict=True):
            if product is not None:
                self.totals[p] = self.totals.get(p, 0) + u * product.detach()
        return None


def gnb_loss(
    logits: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None, ignore_index: int = -100
) -> tuple[Tensor, int]:
    """The loss of the Gauss-Newton-Bartlett estimate: mean cross-entropy of labels drawn from the model itself.

    Args:
        logits: (..., vocabulary).
        labels: (...), aligned with the logits; only where they are `ignore_index` matters: those places are left out.
        generator: draws the labels; the one that Sophia hands to its `hessian_closure`.

    Returns:
        The mean cross-entropy, a scalar, and the number of labels drawn.
    """
    flat = logits.flatten(0, -2)
    if labels is not None:
        flat = flat[labels.flatten() != ignore_index]
    if not len(flat):
        raise ValueError("every label is ignored: there is no token to draw a label for")
    with torch.no_grad():
        drawn = torch.multinomial(F.softmax(flat.float(), dim=-1), 1, generator=generator).squeeze(-1)
    return F.cross_entropy(flat.float() if flat.dtype != torch.float64 else flat, drawn), len(flat)
