"""SIFT's use of Muon: the forget and the retain term's leading directions, kept from interfering."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from letgo.core.values import Count
from letgo.optim.base import Closure, ParamsT, check_number, check_takes_part, given_closure, parameters_of, state_like
from letgo.optim.engine.shards import gathered, local, piece_of
from letgo.optim.muon import Muon, rate_for
from letgo.optim.zeroth_order_subspace import matrix_sign

TERMS = ("forget", "retain")
Factors = tuple[Tensor, Tensor, Tensor]
"""Singular vectors of rows (rows, k), singular values (k,), singular vectors of columns (columns, k)."""


class Sift(Muon):
    r"""Muon on the forget and the retain term at once: the leading directions of both, made orthogonal to one another.

    .. code-block:: text

        input: lr, rank k, b, weight decay w
        for a matrix of A rows and B columns that is no embedding, and each term t of forget, retain:
            b_t = b b_t + g_t;   M_t = g_t + b b_t
            U_t, V_t = singular vectors of the k largest singular values of M_t       k <= min(A, B) / 2
        D = msign([U_r U_f]) msign([V_r V_f])^T           msign: the nearest matrix with orthonormal columns
        x = (1 - lr w) x - lr sqrt(max(1, A / B)) D
        for all other parameters: step of AdamW with g_f + g_r

    Source: SIFT (arXiv 2604.04231), with RMU's loss on three matrices of a model, k = 256, lr = 0.016 and w = 0.1. Its
    code takes singular vectors exactly and msign by Newton-Schulz iterations; here both are exact.

    Singular values play no part, so neither do the weights of the terms: the two always count alike. Nor does clipping.
    Where both terms have one gradient, D is U V^T, as Muon's but of rank k; where their directions are orthogonal as
    they are, D is U_r V_r^T + U_f V_f^T.

    Args:
        params: parameters or groups.
        lr: the rate of matrices; schedulers change it, and AdamW's follows.
        rank: k.
        orthogonal: False for U_r V_r^T + U_f V_f^T without msign.
        weight_decay: w.
        momentum: b.
        adamw_rate, betas, adamw_eps, use_muon: as in `Muon`; so is what is an embedding (`attach`).

    A closure that can be asked for its terms is needed. The state is two copies of the parameters. Each step takes two
    singular value decompositions of every matrix, the price of which grows with A B min(A, B). Over shards every rank
    gathers two momenta of a matrix at a time and takes the same decompositions. `interference` is, as the mean over
    matrices, sum |(U^T U - I) S (V^T V - I)| / (2k (2k - 1)) of the joined vectors and values of the last step: 0 where
    the terms don't interfere.
    """

    combines = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.016,
        *,
        rank: Count = 256,
        orthogonal: bool = True,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        adamw_rate: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        use_muon: bool | None = None,
    ) -> None:
        check_number("rank", rank, low=1)
        self.rank, self.orthogonal = int(rank), orthogonal
        self.interference = 0.0
        super().__init__(
            params,
            lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adamw_rate=adamw_rate,
            betas=betas,
            adamw_eps=adamw_eps,
            use_muon=use_muon,
        )

    @property
    def needs_closure(self) -> bool:
        return True

    @property
    def asks_for_terms(self) -> bool:
        return True

    def directions(self, shape: torch.Size) -> int:
        return 2 * self._rank(shape)

    def _rank(self, shape: torch.Size) -> int:
        return max(1, min(self.rank, min(shape) // 2))

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step; returns the sum of the terms' losses.

        Raises:
            ValueError: there is no closure, or it takes no `part`.
        """
        closure = given_closure(closure, "Sift takes the terms of the loss apart")
        check_takes_part(closure, "Sift")
        losses, evaluated, gradients = [], [], []
        for term in TERMS:
            losses.append(self._loss_with_grad(closure, term))
            evaluated += self.last_losses
            gradients.append({p: p.grad for p in parameters_of(self)})
            for p in gradients[-1]:
                p.grad = None
        self.last_losses = evaluated
        forget, retain = gradients
        found = []
        for group in self.param_groups:
            rest = []
            for p, chosen in zip(group["params"], group["muon"], strict=True):
                pair = [g for g in (forget[p], retain[p]) if g is not None]
                if not pair or not p.numel():
                    continue
                if chosen:
                    found.append(self._step_terms(group, p, forget[p], retain[p]))
                else:
                    p.grad = sum(pair[1:], pair[0])
                    rest.append(p)
            self._step_rest(group, rest)
        self.interference = sum(found) / len(found) if found else 0.0
        return losses[0] + losses[1]

    def _step_terms(self, group: dict[str, Any], p: Tensor, *gradients: Tensor | None) -> float:
        """Move a matrix; returns by how much its terms interfere."""
        lr, momentum, factors = float(group["lr"]), group["momentum"], []
        for term, gradient in zip(TERMS, gradients, strict=True):
            b = local(state_like(self.state[p], f"{term}_buffer", p)).mul_(momentum)
            if gradient is not None:
                b.add_(local(gradient))
            ahead = b * momentum if gradient is None else b.mul(momentum).add_(local(gradient))
            factors.append(leading(gathered(ahead, p), self._rank(p.shape)))
        (u, s, v), x = joined(factors[1], factors[0]), local(p)
        interference = float(between(u, s, v))
        if self.orthogonal and len(s):
            u, v = matrix_sign(u.t()).t(), matrix_sign(v.t()).t()
        x.mul_(1 - lr * group["weight_decay"])
        x.add_(piece_of(p).of(u @ v.t()), alpha=-lr * rate_for(p.shape, "original"))
        return interference


def leading(matrix: Tensor, rank: int) -> Factors:
    """The factors of a matrix's largest singular values, those of rounding's size left out."""
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    u, s, v = torch.linalg.svd(wide, full_matrices=False)
    kept = (s > 0) & (s > s[0] * torch.finfo(s.dtype).eps * max(matrix.shape))
    count = min(rank, int(kept.sum()))
    return u[:, :count], s[:count], v[:count].t()


def joined(first: Factors, second: Factors) -> Factors:
    u, s, v = zip(first, second, strict=True)
    return torch.cat(u, dim=1), torch.cat(s), torch.cat(v, dim=1)


def between(u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """SIFT's measure of how much two tasks' directions interfere."""
    count = len(s)
    if count < 2:
        return s.new_zeros(())
    one = torch.eye(count, dtype=s.dtype, device=s.device)
    return ((u.t() @ u - one) @ (s[:, None] * (v.t() @ v - one))).abs().sum() / (count * (count - 1))
