"""Any first-order optimizer with its direction quantized to N bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from letgo.core.catalog import settings_of
from letgo.core.errors import located
from letgo.optim.base import Closure, ClosureOptimizer, ParamsT, adapt, check_number, state_like
from letgo.optim.engine.shards import gathered, is_distributed, local, piece_of
from letgo.optim.registry import OPTIMIZERS, refuse_shards


class Compressed(ClosureOptimizer):
    r"""A first-order optimizer whose direction is quantized to N bits before it moves the weights.

    .. code-block:: text

        input: base optimizer B, bits N, block size, lr, weight decay w
        for t = 1, 2, ...
            d = direction of B at grad f(x)                     (B's step at rate 1)
            x = (1 - lr w) x
            without error feedback:  x = x - lr Q(d; N)
            with error feedback:     p = d + e;  x = x - lr Q(p; N);  e = p - Q(p; N)
        Q(m; N):  per block of consecutive values, s = max |m| / (2^(N-1) - 1):  s round(m / s)
        Q(m; 1) = sign(m), with error feedback mean |m| of the block times sign(m)

    Source: theta - lr Q(m; N) of "Downgrade to Upgrade" (arXiv 2510.00761), whose quantizer for N > 1 is not known: the
    symmetric absmax quantizer per block is ours. Error feedback: Karimireddy et al. (arXiv 1901.09847), algorithm 1,
    whose 1-bit quantizer has the scale that the plain sign lacks; the error is kept in the direction's units (theirs
    is lr times it: the same while lr is constant), so that a rate of 0 moves nothing.

    Args:
        params: parameters or groups. A group's own settings go to the base where it has them.
        lr: the rate.
        base: name in the catalog of an optimizer whose direction does not depend on the weights themselves.
        bits: N, 1 to 8.
        block: values that share a scale.
        error_feedback: add what quantization left out to the next step; a copy of the parameters more.
        weight_decay: w, decoupled and not quantized (the base has none).
        base_options: more settings of the base.

    The base steps stand-ins for the parameters that are zero before each step, so its direction is read without
    rounding; they are one copy of the parameters.

    Blocks are of a whole tensor, sharded or not. Where a shard of a parameter begins inside a block, so that ranks
    would have to share a scale, every rank gathers the direction of that parameter (and drops it again): as much on
    the wire as FSDP2's own gathering of it, and one whole tensor in memory at a time. Where `block` divides the
    elements of a shard, and for the plain signs, nothing is exchanged.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        base: str = "adamw",
        bits: int = 8,
        block: int = 256,
        error_feedback: bool = False,
        weight_decay: float = 0.0,
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_number("lr", lr)
        check_number("weight_decay", weight_decay)
        check_number("block", block, low=1)
        if bits not in range(1, 9):
            raise ValueError(f"bits must be a whole number from 1 to 8, not {bits}")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.bits = int(bits)
        self.block = int(block)
        self.error_feedback = error_feedback
        with located("base, base_options" if base_options else "base"):
            self.base = self._make_base(base, dict(base_options or {}))

    def children(self) -> list[torch.optim.Optimizer]:
        return [self.base]

    def _make_base(self, name: str, options: dict[str, Any]) -> torch.optim.Optimizer:
        if OPTIMIZERS.record(name).grade not in ("first", "compressed", "second"):
            raise ValueError(f"base must be an optimizer that steps from gradients, {name!r} is not")
        OPTIMIZERS.check_settings(name, options, skip=("lr", "weight_decay"))
        make = OPTIMIZERS.load(name)
        known = settings_of(make)
        if "weight_decay" in known:
            options["weight_decay"] = 0.0
        groups = []
        for group in self.param_groups:
            kept = {k: v for k, v in group.items() if k in known and k not in ("lr", "weight_decay")}
            groups.append({**kept, "params": _stand_ins(group["params"])})
        optimizer: torch.optim.Optimizer = make(groups, lr=1.0, **options)
        refuse_shards(name, optimizer)
        if adapt(optimizer).needs_closure:
            raise ValueError(f"base must be an optimizer that steps from gradients, {name!r} needs a closure")
        return optimizer

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step from `.grad`, after running the closure with gradients enabled if there is one."""
        loss = self._loss_with_grad(closure)
        self._follow()
        self._step_base()
        for group, base_group in zip(self.param_groups, self.base.param_groups, strict=True):
            for p, stand_in in zip(group["params"], base_group["params"], strict=True):
                if p.grad is not None:
                    compressed_step(
                        p,
                        local(stand_in).neg(),
                        state_like(self.state[p], "error", p) if self.error_feedback else None,
                        lr=float(group["lr"]),
                        bits=self.bits,
                        block=self.block,
                        weight_decay=group["weight_decay"],
                    )
        return loss

    def _follow(self) -> None:
        """Make the stand-ins again if the parameters have been sharded since (accelerate does so with FSDP2)."""
        for group, base_group in zip(self.param_groups, self.base.param_groups, strict=True):
            pairs = zip(group["params"], base_group["params"], strict=True)
            if any(is_distributed(p) != is_distributed(stand_in) for p, stand_in in pairs):
                base_group["params"] = _stand_ins(group["params"])
                self.base.state.clear()

    def _step_base(self) -> None:
        """Afterwards every stand-in is minus the base's direction; the gradients were lent, not copied."""
        pairs = [
            pair
            for group, base_group in zip(self.param_groups, self.base.param_groups, strict=True)
            for pair in zip(group["params"], base_group["params"], strict=True)
        ]
        for p, stand_in in pairs:
            stand_in.zero_()
            stand_in.grad = p.grad
        self.base.step()
        for _, stand_in in pairs:
            stand_in.grad = None

    def extra_state(self) -> dict[str, Any]:
        self._follow()
        return {"base": self.base.state_dict()}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        self._follow()
        if "base" in extra:
            self.base.load_state_dict(extra["base"])


def _stand_ins(parameters: Sequence[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros_like(p)) for p in parameters]


def compressed_step(
    parameter: Tensor, d: Tensor, error: Tensor | None, *, lr: float, bits: int, block: int, weight_decay: float
) -> None:
    """x -= lr Q(d), or with an error buffer x -= lr Q(d + error) and the error renewed; in place.

    Args:
        d: the direction at this rank's rows.
    """
    x = local(parameter)
    if weight_decay:
        x.mul_(1 - lr * weight_decay)
    if error is None:
        x.add_(_quantized_rows(parameter, d, bits, block, scaled_sign=False), alpha=-lr)
        return
    carried = local(error).add_(d)
    taken = _quantized_rows(parameter, carried, bits, block, scaled_sign=True)
    x.add_(taken, alpha=-lr)
    carried.sub_(taken)


def _quantized_rows(parameter: Tensor, m: Tensor, bits: int, block: int, *, scaled_sign: bool) -> Tensor:
    """Q(m; N) at this rank's rows of a parameter, by the blocks of the whole."""
    piece = piece_of(parameter)
    if piece.cut_at_multiples_of(block) or (bits == 1 and not scaled_sign):
        return quantize(m, bits, block, scaled_sign)
    return piece.of(quantize(gathered(m, parameter), bits, block, scaled_sign))


def quantize(m: Tensor, bits: int, block: int = 256, scaled_sign: bool = False) -> Tensor:
    """Q(m; N): symmetric round-to-nearest with a scale per `block` consecutive values; for 1 bit the sign.

    Args:
        m: any shape.
        bits: N, 1 to 8. N bits have 2^N - 1 levels, zero among them; 1 bit has the two signs (and 0 for 0).
        scaled_sign: give the signs of a block the size mean |m|.

    Returns:
        A new tensor of m's shape and dtype.
    """
    if bits == 1 and not scaled_sign:
        return torch.sign(m)
    count = m.numel()
    if count == 0:
        return m.clone()
    flat = m.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -count % block)).view(-1, block)
    if bits == 1:
        sizes = torch.full((len(padded), 1), block, dtype=m.dtype, device=m.device)
        sizes[-1] = block - (-count % block)
        quantized = torch.sign(padded) * (padded.abs().sum(1, keepdim=True) / sizes)
    else:
        scale = padded.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        quantized = (padded / scale).round_().mul_(scale)
    return quantized.view(-1)[:count].view(m.shape)
