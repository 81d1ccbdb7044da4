"""DualOptim and DualOptim+: AdamW with moments of their own for the forget and the retain term, which take turns."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from letgo.core.values import Natural
from letgo.optim.base import (
    Closure,
    ClosureOptimizer,
    ParamsT,
    check_betas,
    check_number,
    check_takes_part,
    given_closure,
    state_like,
)
from letgo.optim.engine.adam import adamw_step
from letgo.optim.engine.shards import local

Term = Literal["forget", "retain"]


class DualOptim(ClosureOptimizer):
    r"""AdamW with moments of their own for the forget and the retain term, which never meet in one step.

    .. code-block:: text

        input: lr, retain rate r, N forget steps, M retain steps, (b1, b2), eps, weight decay w
        repeat
            N times:  step of AdamW on f_forget at the rate lr,    with the moments m_f, v_f and the count t_f
            M times:  step of AdamW on f_retain at the rate r lr,  with the moments m_r, v_r and the count t_r

    Source: Zhong et al., DualOptim (arXiv 2504.15827), as its published code has it: one forget step, then five retain
    steps.

    Args:
        params: parameters or groups.
        lr: the forget steps' rate; schedulers change it, and the retain steps' follows.
        retain_rate: r, the retain steps' rate as a multiple of lr.
        forget_steps, retain_steps: N and M; with 0 of one, it is AdamW on the other term.
        betas: b1 and b2.
        eps: of the denominator.
        weight_decay: w, decoupled, in every step.

    A closure that can be asked for its terms is needed: `closure(part="forget")`, `closure(part="retain")`. The state
    is four copies of the parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        retain_rate: float = 1.0,
        forget_steps: Natural = 1,
        retain_steps: Natural = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        for name, value in (("lr", lr), ("retain_rate", retain_rate), ("eps", eps), ("weight_decay", weight_decay)):
            check_number(name, value)
        check_betas("betas", betas)
        check_number("forget_steps", forget_steps)
        check_number("retain_steps", retain_steps)
        if forget_steps + retain_steps == 0:
            raise ValueError("forget_steps and retain_steps are both 0: one of the terms must be stepped")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})
        self.retain_rate = retain_rate
        self.forget_steps, self.retain_steps = int(forget_steps), int(retain_steps)
        self.steps_taken = 0

    @property
    def needs_closure(self) -> bool:
        return True

    @property
    def asks_for_terms(self) -> bool:
        return True

    @property
    def term(self) -> Term:
        """Whose turn the next step is."""
        return "forget" if self.steps_taken % (self.forget_steps + self.retain_steps) < self.forget_steps else "retain"

    def fit_total_steps(self, n: int) -> int:
        """The smallest number of steps >= n after which both terms have had their whole turn."""
        cycle = self.forget_steps + self.retain_steps
        return -(-n // cycle) * cycle

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step on the term whose turn it is; returns its loss.

        Raises:
            ValueError: there is no closure, or it takes no `part`.
        """
        closure = given_closure(closure, f"{type(self).__name__} asks for one term at a time")
        check_takes_part(closure, type(self).__name__)
        term = self.term
        loss = self._loss_with_grad(closure, term)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            lr = float(group["lr"]) * (1.0 if term == "forget" else self.retain_rate)
            self.update(group, params, term, lr)
        self.steps_taken += 1
        return loss

    def update(self, group: dict[str, Any], params: list[Tensor], term: Term, lr: float) -> None:
        """Move parameters that have the gradient of a term."""
        adamw_step(
            params,
            [self.state[p].setdefault(term, {}) for p in params],
            lr=lr,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def extra_state(self) -> dict[str, Any]:
        return {"steps_taken": self.steps_taken}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self.steps_taken = int(extra.get("steps_taken", 0))


class DualOptimPlus(DualOptim):
    r"""DualOptim with a base that both terms share: a term's own moments are of what the base leaves over.

    .. code-block:: text

        input: as DualOptim, and (B1, B2) of the base
        at step t, which is the t_k-th of term k, with its gradient g and its rate lr_k:
            x = (1 - lr_k w) x
            M^ = M / (1 - B1^(t-1)),  V^ = V / (1 - B2^(t-1))           0 at t = 1
            m_k = b1 m_k + (1 - b1) (g - M^)
            v_k = b2 v_k + (1 - b2) (g^2 - V^)                          may be negative
            x = x - lr_k (m_k / (1 - b1^t_k) + M^) / (sqrt|v_k / (1 - b2^t_k) + V^| + eps)
            M = B1 M + (1 - B1) g,    V = B2 V + (1 - B2) g^2

    Source: DualOptim+ (arXiv 2605.21539), as its published code has it, whose setting `alpha` is never used. Where v_k
    is about -V^, the denominator is small and the step large: that is the method's own.

    Args:
        base_betas: B1 and B2.
        others: see `DualOptim`.

    The state is six copies of the parameters. Of weights in 16 bits a step is computed in float32.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        retain_rate: float = 1.0,
        forget_steps: Natural = 1,
        retain_steps: Natural = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        base_betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        check_betas("base_betas", base_betas)
        super().__init__(
            params,
            lr,
            retain_rate=retain_rate,
            forget_steps=forget_steps,
            retain_steps=retain_steps,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
        )
        self.base_betas = (base_betas[0], base_betas[1])

    def update(self, group: dict[str, Any], params: list[Tensor], term: Term, lr: float) -> None:
        for p in params:
            own, base = (self.state[p].setdefault(name, {"step": torch.tensor(0.0)}) for name in (term, "base"))
            own["step"] += 1
            dual_plus(
                local(p),
                local(p.grad),  # type: ignore[arg-type]
                (local(state_like(own, "exp_avg", p)), local(state_like(own, "exp_avg_sq", p))),
                (local(state_like(base, "exp_avg", p)), local(state_like(base, "exp_avg_sq", p))),
                (int(own["step"]), int(base["step"])),
                lr=lr,
                betas=group["betas"],
                base_betas=self.base_betas,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )
            base["step"] += 1


def dual_plus(
    x: Tensor,
    g: Tensor,
    own: tuple[Tensor, Tensor],
    base: tuple[Tensor, Tensor],
    steps: tuple[int, int],
    *,
    lr: float,
    betas: tuple[float, float],
    base_betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """DualOptim+'s update of x, its term's moments and the base's, in place; `steps` are t_k and t - 1."""
    (m, v), (base_m, base_v), (taken, before) = own, base, steps
    (beta1, beta2), (base1, base2) = betas, base_betas
    g = g.to(torch.promote_types(g.dtype, torch.float32))
    first, second = (
        moment.to(g.dtype) / (1 - beta**before) if before else torch.zeros_like(g)
        for moment, beta in ((base_m, base1), (base_v, base2))
    )
    m.copy_(m.to(g.dtype).mul_(beta1).add_(g - first, alpha=1 - beta1))
    v.copy_(v.to(g.dtype).mul_(beta2).add_(g.square() - second, alpha=1 - beta2))
    base_m.copy_(base_m.to(g.dtype).mul_(base1).add_(g, alpha=1 - base1))
    base_v.copy_(base_v.to(g.dtype).mul_(base2).add_(g.square(), alpha=1 - base2))
    numerator = first.add_(m, alpha=1 / (1 - beta1**taken))
    denominator = second.add_(v, alpha=1 / (1 - beta2**taken)).abs_().sqrt_().add_(eps)
    x.copy_(x.to(g.dtype).mul_(1 - lr * weight_decay).addcdiv_(numerator, denominator, value=-lr))
