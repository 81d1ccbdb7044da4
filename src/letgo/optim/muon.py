"""torch's Muon, over shards too."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from letgo.optim.base import state_like
from letgo.optim.engine.shards import gathered, is_sharded, local, piece_of

KEPT = ("lr", "weight_decay", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
"""Settings of a group that do not concern the momentum."""


class Muon(torch.optim.Muon):
    r"""torch's Muon, which it is where parameters are whole; of sharded ones it gathers one matrix at a time.

    .. code-block:: text

        m = b m + (1 - b) g                                 on this rank's rows
        u = (1 - b) g + b m  (nesterov), else m             on this rank's rows
        o = Newton-Schulz of u                              of the whole matrix, on every rank
        x = (1 - lr w) x - lr' o                            on this rank's rows; lr' is torch's for the shape

    Source: torch.optim.Muon, whose own steps through DTensors stop at matrices of fewer rows than ranks.

    Args: those of `torch.optim.Muon`.

    Cost over shards: each step sends every matrix's rows to every rank (as FSDP2's own gathering of the weights does),
    and every rank orthogonalises every matrix; three whole matrices are in memory at a time.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step from `.grad`, after running the closure with gradients enabled if there is one."""
        shards = {id(p): p for group in self.param_groups for p in group["params"] if is_sharded(p)}
        if not shards:
            return self._step_whole(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kept = {number: p.grad for number, p in shards.items()}
        for p in shards.values():
            p.grad = None  # torch's step leaves out what has none
        self._step_whole()
        for number, p in shards.items():
            p.grad = kept[number]
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) in shards and p.grad is not None:
                    self._step_shard(group, p, p.grad)
        return loss

    def _step_whole(self, closure: Any = None) -> Any:
        # Unwrapped: torch wraps the step of a class in its hooks, which are to run once a step.
        return inspect.unwrap(torch.optim.Muon.step)(self, closure)

    def _step_shard(self, group: dict[str, Any], p: Tensor, grad: Tensor) -> None:
        x, g, momentum = local(p), local(grad), group["momentum"]
        m = local(state_like(self.state[p], "momentum_buffer", p)).lerp_(g, 1 - momentum)
        whole = gathered(g.lerp(m, momentum) if group["nesterov"] else m, p)
        # torch's own step of a matrix that has our rows where they belong, without momentum.
        stand_in, piece = torch.zeros_like(whole, dtype=p.dtype), piece_of(p)
        piece.of(stand_in).copy_(x)
        stand_in.grad = whole
        settings = {k: v for k, v in group.items() if k in KEPT}
        torch.optim.Muon([stand_in], **settings, momentum=0.0, nesterov=False).step()
        x.copy_(piece.of(stand_in))
