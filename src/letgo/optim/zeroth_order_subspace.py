"""Zeroth-order estimates in a random subspace that stays for a while: plain, with momentum, orthogonalised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from letgo.core.values import BelowOne, Count, Seed
from letgo.optim.base import ParamsT, check_number
from letgo.optim.engine.low_rank import LowRankDirection
from letgo.optim.engine.noise import Direction, NoiseKind, mix, noise_dtype, noise_values
from letgo.optim.engine.row_blocks import cells_of, product
from letgo.optim.engine.shards import Piece, piece_of
from letgo.optim.zeroth_order import Difference, EngineKind, Estimate, ZerothOrder, move_with_momentum


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
            self.projections[index] = basis(self.projection_key, index, self.tensors[index], self.rank)
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


def basis(key: int, index: int, tensor: Tensor, rank: int) -> Tensor:
    """The orthonormal columns of a key, of shape (rows, rank), for the matrix at a position."""
    shape, dtype = (tensor.shape[0], rank), noise_dtype(tensor.dtype)
    return torch.linalg.qr(noise_values("gaussian", mix(key, index), shape, dtype, tensor.device)).Q


class ZOSubspace(ZerothOrder):
    r"""Zeroth-order descent in a random subspace of every matrix that stays for k steps, with momentum kept inside it.

    .. code-block:: text

        input: lr, mu, q, rank r, period k, momentum b, weight decay w
        M = 0
        for t = 1, 2, ...
            every k steps, for every matrix (m, n): P = orthonormal basis of r random directions of its m rows
                                                    M = P^T P_before M
            draw Psi_1 .. Psi_q (r, n);  v_i = s P Psi_i                                s = sqrt(m / r)
            c_i = (f(x + mu v_i) - f(x - mu v_i)) / (2 mu)
            M = b M + (1/q) sum_i c_i Psi_i                                             (b = 0: no M is kept)
            x = (1 - lr w) x - lr s P M

    So the momentum takes r / m of the memory of `zo_sgd`'s, and averages estimates of the same r n coordinates. Of a
    momentum only the part in the new subspace is carried over, about r / m of its square.

    Source: Chen et al., Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank Structures: LOZO and
    LOZO-M (arXiv 2410.07698). Ours: an orthonormal basis on the rows' side, where theirs is Gaussian and on the
    columns'; the momentum of `zo_sgd`, not weighted by 1 - b; estimates whose mean over the subspaces is the gradient
    (theirs is r times that).

    Args:
        rank: r. Tensors that are not matrices, or have a side of at most r, move as under `zo_sgd`.
        period: k.
        momentum: b.
        others: see `ZerothOrder`. The projections take r / n of the parameters' memory, a momentum r / m.

    Over shards nothing is gathered: M is small and made of noise and scalars alone, so every rank has all of it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-6,
        *,
        rank: Count = 2,
        period: Count = 50,
        momentum: BelowOne = 0.9,
        mu: float = 1e-3,
        num_directions: int = 1,
        noise: Literal["rademacher", "gaussian"] = "gaussian",
        difference: Difference = "central",
        weight_decay: float = 0.0,
        seed: Seed = 0,
        nonfinite: Literal["raise", "skip"] = "raise",
        engine: EngineKind = "in_place",
        evaluations_at_once: int | None = None,
    ) -> None:
        check_number("rank", rank, low=1)
        check_number("period", period, low=1)
        check_number("momentum", momentum, high=1.0)
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay},
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
        lr, first = float(group["lr"]), estimate.directions[0]
        if not isinstance(first, SubspaceDirection) or not first.is_low_rank(index):
            self.update_whole(group, parameter, estimate, index)
            return
        piece = first.pieces[index]
        psis = [d.factors(index)[1].t() for d in estimate.directions if isinstance(d, SubspaceDirection)]
        weighted = [psi * (c / len(psis)) for psi, c in zip(psis, estimate.coefficients, strict=True)]
        inside = torch.stack(weighted).sum(0)
        if group["momentum"]:
            inside = self._with_momentum(self.state[parameter], group["momentum"], inside, first, index)
        step = self.step_inside(inside, parameter.shape[0]).t()
        for block in cells_of(piece):
            block.of(piece.local).sub_(product(first.projection(index), step, block, piece), alpha=lr)

    def step_inside(self, inside: Tensor, rows: int) -> Tensor:
        """What P times the rate is multiplied by, of shape (r, n), given M of a matrix of so many rows."""
        return inside * math.sqrt(rows / self.rank)

    def update_whole(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        """Move a tensor that has no subspace."""
        move_with_momentum(self, group, parameter, estimate, index)

    def _with_momentum(
        self, state: dict[str, Any], momentum: float, inside: Tensor, direction: SubspaceDirection, index: int
    ) -> Tensor:
        """M after a step, of the subspace now: b M + S."""
        tensor = direction.tensors[index]
        if "subspace" not in state:
            # In the parameter's dtype, as torch loads it.
            state["momentum_buffer"] = torch.zeros_like(inside, dtype=tensor.dtype)
        elif state["subspace"] != self._projected:
            before = basis(mix(self.seed, state["subspace"]), index, tensor, self.rank)
            carried = direction.projection(index).t() @ (before @ state["momentum_buffer"].to(before.dtype))
            state["momentum_buffer"].copy_(carried)
        state["subspace"] = self._projected
        buffer: Tensor = state["momentum_buffer"].mul_(momentum).add_(inside)
        return buffer.to(inside.dtype)


class ZOMuon(ZOSubspace):
    r"""ZO-Muon: every matrix's gradient estimated in a random subspace, its singular values set to 1.

    .. code-block:: text

        input: lr, mu, q, rank r, period k, momentum b, weight decay w
        for t = 1, 2, ...
            every k steps, for every matrix (m, n): P = orthonormal basis of r random directions of its m rows
            draw Psi_1 .. Psi_q (r, n);  c_i = (f(x + mu s P Psi_i) - f(x)) / mu        s = sqrt(m / r)
            S = b S + (1/q) sum_i c_i Psi_i                     (b = 0: no S is kept)
            x = (1 - lr w) x - lr P msign(S)                    msign(S) = (S S^T)^(-1/2) S

    Source: Lang et al., Powering Up Zeroth-Order Training via Subspace Gradient Orthogonalization (arXiv 2602.17155).
    Ours: s, so that mu is the root mean square of the perturbation here too (theirs is mu s, for each matrix); msign
    by an eigendecomposition of the r x r matrix S S^T instead of Newton-Schulz iterations; tensors that are not
    matrices (or have a side of at most r), whose estimate g moves them by -lr g / |g|, which is msign of one column;
    and the momentum of matrices, which is `zo_subspace`'s and off by default.

    Args:
        lr: spectral norm of a matrix's step.
        rank: r.
        period: k.
        momentum: b, of matrices.
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
        rank: Count = 64,
        period: Count = 100,
        momentum: BelowOne = 0.0,
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
        super().__init__(
            params,
            lr,
            rank=rank,
            period=period,
            momentum=momentum,
            mu=mu,
            num_directions=num_directions,
            noise=noise,
            difference=difference,
            weight_decay=weight_decay,
            seed=seed,
            nonfinite=nonfinite,
            engine=engine,
            evaluations_at_once=evaluations_at_once,
        )

    def step_inside(self, inside: Tensor, rows: int) -> Tensor:
        return matrix_sign(inside)

    def update_whole(self, group: dict[str, Any], parameter: Tensor, estimate: Estimate, index: int) -> None:
        piece = estimate.directions[0].pieces[index]
        whole = torch.zeros(parameter.shape, dtype=noise_dtype(parameter.dtype), device=parameter.device)
        for direction, c in zip(estimate.directions, estimate.coefficients, strict=True):
            whole.add_(direction.tensor(index), alpha=c)
        norm = torch.linalg.vector_norm(whole)
        if norm > 0:
            piece.local.sub_(piece.of(whole) / norm, alpha=float(group["lr"]))


def matrix_sign(matrix: Tensor) -> Tensor:
    """(S S^T)^(-1/2) S for S of shape (r, n), r <= n: its singular values become 1 (those of rounding's size 0)."""
    values, vectors = torch.linalg.eigh(matrix.double() @ matrix.double().t())
    kept = values > values[-1] * 1e-12
    powers = torch.where(kept, values.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), torch.zeros_like(values))
    return ((vectors * powers) @ vectors.t()).to(matrix.dtype) @ matrix
