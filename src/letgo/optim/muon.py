"""Muon for whole models: matrices by Muon, everything else by AdamW, over shards too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from letgo.optim.base import Closure, ClosureOptimizer, ParamsT, check_betas, check_choice, check_number, state_like
from letgo.optim.engine.adam import adamw_step
from letgo.optim.engine.shards import gathered, local, piece_of
from letgo.optim.engine.vocabulary import vocabulary_parameters

Coefficients = tuple[float, float, float]
NEWTON_SCHULZ: Coefficients = (3.4445, -4.7750, 2.0315)
"""Of torch.optim.Muon, from Keller Jordan's post."""
AdjustLR = Literal["original", "match_rms_adamw"]


class Muon(ClosureOptimizer):
    r"""The momentum of hidden matrices, orthogonalised; AdamW for everything else.

    .. code-block:: text

        input: lr, b, weight decay w, AdamW's rate a as a multiple of lr
        for a matrix of A rows and B columns that is no embedding:
            m = b m + (1 - b) g
            u = (1 - b) g + b m  (nesterov), else m
            o = Newton-Schulz of u                             singular values of about 1
            x = (1 - lr w) x - lr s o                          s = sqrt(max(1, A / B)), or 0.2 sqrt(max(A, B))
        for embeddings, output heads, vectors and all other parameters:
            step of AdamW at the rate a lr

    Source: Jordan et al., Muon (kellerjordan.github.io/posts/muon); matrices as in torch.optim.Muon, the rest as in
    torch.optim.AdamW; `match_rms_adamw` is of Moonlight (arXiv 2502.16982).

    **The two rates.** A step moves a weight of a matrix by lr / sqrt(B), as root mean square over the matrix, and a
    weight under AdamW by at most its rate, which the first steps reach. So a is by default the root mean square of
    1 / sqrt(B) over all weights that Muon moves: 1 / 24 for a width of 576. With `match_rms_adamw`, which makes Muon's
    step as large as AdamW's usual one (0.2 of its rate), a is 1.

    **What is an embedding** only the model can say: call `attach(model)` before the first step (letgo's trainer and
    attacks do). Without it they are matrices like others, unless a group says `use_muon: False`.

    Args:
        params: parameters or groups. A group may hold `use_muon`.
        lr: Muon's rate; schedulers change it, and AdamW's follows.
        weight_decay: w, of both.
        momentum: b.
        nesterov: look ahead along the momentum.
        ns_coefficients: of the Newton-Schulz iteration.
        eps: the least norm that the iteration divides by.
        ns_steps: of the iteration, which runs in bf16.
        adjust_lr_fn: s: `original` or `match_rms_adamw`.
        adamw_rate: a; None for the one above.
        betas: of AdamW.
        adamw_eps: of AdamW.
        use_muon: True for matrices alone, embeddings too; False for AdamW alone; None to choose as above.

    The state is one copy of the matrices and two of the rest. Over shards each step sends every matrix's rows to every
    rank (as FSDP2's own gathering of the weights does), and every rank orthogonalises every matrix; three whole
    matrices are in memory at a time. torch's own steps through DTensors stop at matrices of fewer rows than ranks.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = NEWTON_SCHULZ,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: AdjustLR | None = None,
        adamw_rate: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        use_muon: bool | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps), ("adamw_eps", adamw_eps)):
            check_number(name, value)
        check_number("momentum", momentum, high=1.0)
        check_number("ns_steps", ns_steps, low=1, high=100)
        check_choice("adjust_lr_fn", adjust_lr_fn, (None, "original", "match_rms_adamw"))
        check_number("adamw_rate", 1.0 if adamw_rate is None else adamw_rate)
        check_betas("betas", betas)
        if len(ns_coefficients) != 3:
            raise ValueError(f"ns_coefficients must be three numbers, not {len(ns_coefficients)}")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": tuple(ns_coefficients),
            "eps": eps,
            "ns_steps": int(ns_steps),
            "adjust_lr_fn": adjust_lr_fn,
            "adamw_rate": adamw_rate,
            "betas": tuple(betas),
            "adamw_eps": adamw_eps,
            "use_muon": use_muon,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._choose(self.param_groups[-1], embeddings=set())

    def attach(self, model: nn.Module) -> None:
        """Leave the model's embeddings and output head to AdamW, adapters on them too."""
        embeddings = vocabulary_parameters(model)
        for group in self.param_groups:
            self._choose(group, embeddings)

    def _choose(self, group: dict[str, Any], embeddings: set[int]) -> None:
        """Note in a group which of its parameters are Muon's: by their places, because accelerate puts shards in the
        place of parameters."""
        chosen, params = group["use_muon"], group["params"]
        if chosen and (other := next((p for p in params if p.dim() != 2), None)) is not None:
            raise ValueError(f"use_muon: a parameter of shape {tuple(other.shape)} is no matrix, and left to AdamW")
        matrix = [p.dim() == 2 and min(p.shape) > 1 and id(p) not in embeddings for p in params]
        group["muon"] = matrix if chosen is None else [bool(chosen)] * len(params)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step from `.grad`, after running the closure with gradients enabled if there is one."""
        loss = self._loss_with_grad(closure)
        for group in self.param_groups:
            pairs = list(zip(group["params"], group["muon"], strict=True))
            for p in (p for p, chosen in pairs if chosen and p.grad is not None and p.numel()):
                self._step_matrix(group, p)
            self._step_rest(group, [p for p, chosen in pairs if not chosen and p.grad is not None])
        return loss

    def _step_matrix(self, group: dict[str, Any], p: Tensor) -> None:
        x, g, momentum, lr = local(p), local(p.grad), group["momentum"], float(group["lr"])  # type: ignore[arg-type]
        m = local(state_like(self.state[p], "momentum_buffer", p)).lerp_(g, 1 - momentum)
        whole = gathered(g.lerp(m, momentum) if group["nesterov"] else m, p)
        direction = orthogonalised(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])
        x.mul_(1 - lr * group["weight_decay"])
        x.add_(piece_of(p).of(direction), alpha=-lr * rate_for(p.shape, group["adjust_lr_fn"]))

    def _step_rest(self, group: dict[str, Any], params: list[Tensor]) -> None:
        adamw_step(
            params,
            [self.state[p] for p in params],
            lr=float(group["lr"]) * self.adamw_rate(group),
            betas=group["betas"],
            eps=group["adamw_eps"],
            weight_decay=group["weight_decay"],
        )

    def adamw_rate(self, group: dict[str, Any]) -> float:
        """AdamW's rate in a group, as a multiple of the group's own."""
        if group["adamw_rate"] is not None:
            return float(group["adamw_rate"])
        if group["adjust_lr_fn"] == "match_rms_adamw":
            return 1.0
        weights = sum(p.numel() for p in self.matrices())
        squares = sum(self.directions(p.shape) * rate_for(p.shape, "original") ** 2 for p in self.matrices())
        return math.sqrt(squares / weights) if weights else 1.0

    def directions(self, shape: torch.Size) -> int:
        """The rank of a matrix's step: how many singular values of it are about 1."""
        return min(shape)

    def matrices(self) -> Iterator[Tensor]:
        """The parameters that Muon moves."""
        for group in self.param_groups:
            for p, chosen in zip(group["params"], group["muon"], strict=True):
                if chosen and p.requires_grad:
                    yield p


def rate_for(shape: torch.Size, adjust_lr_fn: AdjustLR | None) -> float:
    """What the rate of a matrix is multiplied by."""
    rows, columns = shape
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))


def orthogonalised(matrix: Tensor, coefficients: Coefficients, steps: int, eps: float) -> Tensor:
    """A matrix with its singular values brought to about 1 (0.7 to 1.2) by Newton-Schulz iterations in bf16."""
    a, b, c = coefficients
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T
