"""torch's own step of AdamW on states that an optimizer here keeps under names of its own, over shards too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from letgo.optim.base import state_like
from letgo.optim.engine.shards import local


def adamw_step(
    params: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step of `torch.optim.AdamW`, to the bit, of parameters that all have a gradient.

    Args:
        states: where `step`, `exp_avg` and `exp_avg_sq` of each parameter are kept.
    """
    for state in states:
        state.setdefault("step", torch.tensor(0.0))

    def moment(name: str) -> list[Tensor]:
        return [local(state_like(s, name, p)) for s, p in zip(states, params, strict=True)]

    adamw(
        [local(p) for p in params],
        [local(p.grad) for p in params],  # type: ignore[arg-type]
        moment("exp_avg"),
        moment("exp_avg_sq"),
        [],
        [state["step"] for state in states],
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
