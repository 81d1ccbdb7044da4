"""ZO-Muon: estimates in a random subspace, orthogonalised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.core.values import Seed
from letgo.optim.base import ParamsT, check_number
from letgo.optim.engine.low_rank import LowRankDirection
from letgo.optim.engine.noise import Direction, NoiseKind, mix, noise_dtype, noise_values
from letgo.optim.engine.row_blocks import cells_of, product
from letgo.optim.engine.shards import Piece, piece_of
from letgo.optim.zeroth_order import Difference, EngineKind, Estimate, ZerothOrder


class SubspaceDirection(LowRankDirection):
    """A direction whose matrices are sqrt(m / r) P Psi: P (m, r) with orthonormal columns, Psi (r, n) random.

    P is a function of its own key, shared by all directions of a period; the factor makes the root mean square of an
    entry 1. Averaged over P, E[v v^T] = I.

    Args:
        projection_key: P is a function of it and of the position of the tensor.
        projections: index -> P, made when first asked for and kept for the period by whoever owns the dict.
    """

    def __init__(
        self,
        kind: NoiseKind,
        key: Sequence[int],
        tensors: Sequence[Tensor],
        rank: int,
        projection_key: Sequence[int],
        projections: dict[int, Tensor],
        pieces: Sequence[Piece] | None = None,
    ) -> None:
        super().__init__(kind, key, tensors, rank, pieces)
        self.projection_key = mix(*projection_key)
        self.projections = projections
        self._subspace_factors: dict[int, tuple[Tensor, Tensor]] = {}

    def projection(self, index: int) -> Tensor:
        """P, of shape (rows, r)."""
        if index not in self.projections:
            tensor = self.tensors[index]
            shape, dtype = (tensor.shape[0], self.rank), noise_dtype(tensor.dtype)
            gaussian = noise_values("gaussian", mix(self.projection_key, index), shape, dtype, tensor.device)
            self.projections[index] = torch.linalg.qr(gaussian).Q
        return self.projections[index]

    def factors(self, index: int) -> tuple[Tensor, Tensor]:
        """sqrt(m / r) P, of shape (rows, r), and Psi^T, of shape (columns, r)."""
        if index not in self._subspace_factors:
            _, psi = super().factors(index)
            scale = math.sqrt(self.tensors[index].shape[0] / self.rank)
            self._subspace_factors[index] = (self.projection(index) * scale, psi)
        return self._subspace_factors[index]

    def forget(self) -> None:
        super().forget()
        self._subspace_factors.clear()


class ZOMuon(ZerothOrder):
    r"""ZO-Muon: every matrix's gradient estimated in a random subspace, its singular values set to 1.

    .. code-block:: text

        input: lr, mu, q, rank r, period k, weight decay w
        for t = 1, 2, ...
            every k steps, for every matrix (m, n): P = orthonormal basis of r random directions of its m rows
            draw Psi_1 .. Psi_q (r, n);  c_i = (f(x + mu s P Psi_i) - f(x)) / mu        s = sqrt(m / r)
            S = (1/q) sum_i c_i Psi_i
            x = (1 - lr w) x - lr P msign(S)                    msign(S) = (S S^T)^(-1/2) S

    Source: Lang et al., Powering Up Zeroth-Order Training via Subspace Gradient Orthogonalization (arXiv 2602.17155).
    Ours: s, so that mu is the root mean square of the perturbation here too (theirs is mu s, for each matrix); msign
    by an eigendecomposition of the r x r matrix S S^T instead of Newton-Schulz iterations; and tensors that are not
    matrices (or have a side of at most r), whose estimate g moves them by -lr g / |g|, which is msign of one column.

    Args:
        lr: spectral norm of a matrix's step.
        rank: r.
        period: k.
        others: see `ZerothOrder`. The projections take r / n of the parameters' memory; no other state.

    Over shards nothing is gathered: S is small and made of noise and scalars alone, so every rank has all of it and
    multiplies out its own rows of P msign(S). A tensor that is no matrix is made whole on every rank, one at a time,
    for its norm; the projections are whole on every rank.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        *,
        rank: int = 64,
        period: int = 100,
        mu: float = 1e-3,
        num_directions: int = 4,
        noise: Literal["rademacher", "gaussian"] = "gaussian",
        difference: Difference = "forward",
        weight_decay: float = 0.0,
        seed: Seed = 0,
        nonfinite: Literal["raise", "skip"] = "raise",
        engine: EngineKind = "in_place",
        evaluations_at_once: int | None = None,
    ) -> None:
        check_number("rank", rank, low=1)
        check_number("period", period, low=1)
        super().__init__(
            params,
            {"lr": lr, "weight_decay": weight_decay},
            num_directions=num_directions,
            mu=mu,
            noise=noise,
            difference=difference,
            seed=seed,
            nonfinite=nonfinite,
            engine=engine,
            rank=rank,
            evaluations_at_once=evaluations_at_once,
        )
        self.period = int(period)
        self._projections: dict[int, Tensor] = {}
        self._projected = -1

    def options(self) -> dict[str, Any]:
        return {**super().options(), "period": self.period}

    def directions(self, parameters: Sequence[Tensor]) -> list[Direction]:
        number = self.steps_taken // self.period
        if number != self._projected:
            self._projections, self._projected = {}, number
        pieces = list(map(piece_of, parameters))
        return [
            SubspaceDirection(
                self.noise,
                (self.seed, self.steps_taken, i),
                parameters,
                self.rank,
                (self.seed, number),
                self._projections,
                pieces,
            )
            for i in range(self.num_directions)
        ]

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        super().load_extra_state(extra)
        self._projected = -1  # of another seed, perhaps

    def update(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        lr = float(group["lr"])
        first = estimate.directions[0]
        piece = first.pieces[index]
        if isinstance(first, SubspaceDirection) and first.is_low_rank(index):
            psis = [d.factors(index)[1].t() for d in estimate.directions if isinstance(d, SubspaceDirection)]
            weighted = [psi * (c / len(psis)) for psi, c in zip(psis, estimate.coefficients, strict=True)]
            signs = matrix_sign(torch.stack(weighted).sum(0)).t()
            for block in cells_of(piece):
                block.of(piece.local).sub_(product(first.projection(index), signs, block, piece), alpha=lr)
            return
        whole = torch.zeros(parameter.shape, dtype=noise_dtype(parameter.dtype), device=parameter.device)
        for direction, c in zip(estimate.directions, estimate.coefficients, strict=True):
            whole.add_(direction.tensor(index), alpha=c)
        norm = torch.linalg.vector_norm(whole)
        if norm > 0:
            piece.local.sub_(piece.of(whole) / norm, alpha=lr)


def matrix_sign(matrix: Tensor) -> Tensor:
    """(S S^T)^(-1/2) S for S of shape (r, n), r <= n: its singular values become 1 (those of rounding's size 0)."""
    values, vectors = torch.linalg.eigh(matrix.double() @ matrix.double().t())
    kept = values > values[-1] * 1e-12
    powers = torch.where(kept, values.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), torch.zeros_like(values))
    return ((vectors * powers) @ vectors.t()).to(matrix.dtype) @ matrix
