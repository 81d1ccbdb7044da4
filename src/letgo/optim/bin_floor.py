"""A change that rounding can't undo: few weights reach the next bin of a format's grid, the others stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from letgo.core.errors import UserError
from letgo.core.values import Natural, Within
from letgo.optim.base import Closure, ParamsT, trained_parameters
from letgo.optim.engine.inner import PassingWrapper
from letgo.optim.engine.rounding import NF4, Codebook, Levels, blocks_of, flat_blocks, make_grid, unblocked
from letgo.optim.engine.shards import cut_like, forget_gathered, gathered, is_distributed, local, piece_of
from letgo.optim.engine.vocabulary import vocabulary_parameters
from letgo.optim.smoothing import weights_at

NF4_BLOCK = 64
INTO_BIN = 0.1
"""How far past a decision boundary a weight is moved at least, as a share of the distance of the levels around it."""


class BinFloor(PassingWrapper):
    r"""Any optimizer; at the end each matrix's largest updates reach the next bin of a grid, the others are undone.

    .. code-block:: text

        input: base optimizer B, share k, grid G of the original weights x0
        every step is B's
        at the end, of each matrix, with u = x - x0:
            hold still the largest |x0| of every block, which the scale of G is made of
            choose the share k of the weights with the largest |u| that have a next level in the direction of u
            chosen:  x = x0's level a, the next level b in the direction of u:  at least as far as a + 0.6 (b - a),
                     which is the decision boundary and a tenth of the way between the levels
            others:  x = x0

    So the grid of the result is that of the original, and every chosen weight is rounded to another level than before.
    An update of an unlearning run is 47 to 828 times smaller than a bin (MANSU's figure), so that rounding undoes it;
    and a chosen weight is moved by about half a bin, which is why only few can be.

    Source: the third part of MANSU (arXiv 2605.15138), which has no public code. Of the paper only the idea is known: a
    floor for each parameter's update. Its formula, its threshold and its rates are not, nor are its other two parts
    (attribution of a circuit, projection to the null space of the retain set) here. Assumed: the floor above, the share
    k for each matrix by itself, and that unchosen updates are dropped.

    Args:
        params: parameters or groups.
        lr: the base's rate.
        base: name in the catalog; any grade.
        keep: k, above 0 to 1.
        grid: `even` levels, as the attack `quantize` has them; `nf4`, in blocks of 64; `own`, the grid on which the
            model's weights lie already (letgo's trainer knows how to read it; else set `levels_of`).
        bits: of the even grid, 2 to 8.
        group_size: weights of a row that share a scale in the even grid; 0 for the whole row.
        weight_decay: of the base.
        base_options: more settings of the base.

    Vectors, embeddings and output heads, which such formats do not round, keep the base's update (embeddings and heads
    once `attach` was called with the model). Adapters are refused: what is rounded is the merged matrix. The original
    weights are one copy of the parameters. `floored` counts, after `finish`: the weights of the matrices, those chosen,
    and those of them that are in another bin once they are rounded to the parameters' own dtype.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        base: str = "adamw",
        keep: Annotated[float, Within(0, 1, above=True)] = 0.01,
        grid: Literal["even", "nf4", "own"] = "even",
        bits: Annotated[int, Within(2, 8)] = 4,
        group_size: Natural = 64,
        weight_decay: float = 0.0,
        base_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, not {keep}")
        super().__init__(params, lr, base, base_options, weight_decay)
        self.keep, self.grid, self.bits, self.group_size = keep, grid, bits, group_size
        self.originals: list[Tensor] = []
        self.floored: dict[str, int] = {}
        self.levels_of: Callable[[Tensor], Levels | None] | None = None
        """For `grid="own"`: the levels on which a matrix lies, or None."""
        self._rounded = [[p.dim() == 2 for p in group["params"]] for group in self.param_groups]

    def attach(self, model: nn.Module) -> None:
        super().attach(model)
        if hasattr(model, "peft_config"):
            raise UserError(
                "optimizer 'bin_floor' moves weights to other bins of a format's grid, and adapters are not rounded; "
                "the matrices that they are merged into are. Train the weights themselves (without lora_rank)"
            )
        self._note_rounded(model)
        if self.grid == "own" and self.levels_of is not None:
            for p in self.matrices():
                self._levels(gathered(local(p), p))  # on no grid: told before the run, not after it

    def _note_rounded(self, model: nn.Module) -> None:
        """Note which parameters the format rounds: by their places, because accelerate puts shards in their place."""
        words = vocabulary_parameters(model)
        self._rounded = [[p.dim() == 2 and id(p) not in words for p in group["params"]] for group in self.param_groups]

    def step(self, closure: Closure | None = None) -> Any:
        """One step of the base, whose `step` says what it needs and returns."""
        if not self.originals:
            self.originals = [p.detach().clone() for p in trained_parameters(self)]
        return super().step(closure)

    def matrices(self) -> list[Tensor]:
        """The trained parameters that the format rounds."""
        groups = zip(self.param_groups, self._rounded, strict=True)
        pairs = (pair for group, rounded in groups for pair in zip(group["params"], rounded, strict=True))
        return [p for p, rounded in pairs if rounded and p.requires_grad and p.numel()]

    def _levels(self, original: Tensor) -> Levels:
        if self.grid == "own":
            if self.levels_of is None:
                raise ValueError("grid='own' needs levels_of: a function that reads the levels on which a matrix lies")
            levels = self.levels_of(original)
            if levels is None:
                shape = tuple(original.shape)
                raise UserError(f"grid 'own': a matrix of shape {shape} lies on no grid that is known; take grid: even")
            return levels
        if self.grid == "nf4":
            code = torch.tensor(NF4, device=original.device)
            return Codebook(code, flat_blocks(original, NF4_BLOCK).abs().amax(dim=1), NF4_BLOCK)
        block = self.group_size or original.shape[1]
        return make_grid(original, bits=self.bits, granularity="group", group_size=block)

    def _largest(self, original: Tensor) -> Tensor | None:
        """The largest |x0| of each weight's block; None where the grid stays whatever the weights are."""
        if self.grid == "own":
            return None
        if self.grid == "nf4":
            parts = flat_blocks(original, NF4_BLOCK).abs()
            largest = parts.amax(dim=1, keepdim=True).expand_as(parts).flatten()
            return largest[: original.numel()].view(original.shape)
        block = self.group_size or original.shape[1]
        parts = blocks_of(original, block).abs()
        return unblocked(parts.amax(dim=1, keepdim=True).expand_as(parts), original, block)

    @torch.no_grad()
    def projected(self) -> list[Tensor]:
        """What `finish` would leave of the trained parameters, on this rank."""
        trained = trained_parameters(self)
        if not self.originals:
            return [local(p) for p in trained]
        rounded = {id(p) for p in self.matrices()}
        self.floored = {"weights": 0, "chosen": 0, "crossed": 0}
        return [
            self._projected(p, original) if id(p) in rounded else local(p)
            for p, original in zip(trained, self.originals, strict=True)
        ]

    def _projected(self, p: Tensor, original: Tensor) -> Tensor:
        before, now = gathered(local(original), p), gathered(local(p), p)
        levels = self._levels(before)
        moved, chosen = floored(before, now, levels, self._largest(before), self.keep)
        after = torch.where(chosen, moved.to(before.dtype), before)
        crossed = levels.index(after) != levels.index(before)
        for name, count in (("weights", chosen.numel()), ("chosen", chosen.sum()), ("crossed", crossed.sum())):
            self.floored[name] += int(count)
        return piece_of(p).of(after)

    @torch.no_grad()
    def finish(self) -> None:
        """Project the change; the weights stay as they are if no step was taken."""
        trained = trained_parameters(self)
        for p, value in zip(trained, self.projected(), strict=True):
            local(p).copy_(value)
        forget_gathered(trained)

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Within: the weights are those that `finish` would leave. After: as they were, bit for bit."""
        with weights_at(trained_parameters(self), self.projected()):
            yield

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "originals": list(self.originals)}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        super().load_extra_state(extra)
        pairs = zip(extra.get("originals", []), trained_parameters(self), strict=False)
        self.originals = [(o if is_distributed(o) else cut_like(o, p)).detach().clone().to(p.device) for o, p in pairs]


def floored(before: Tensor, now: Tensor, levels: Levels, largest: Tensor | None, keep: float) -> tuple[Tensor, Tensor]:
    """The values that chosen weights move to, and which are chosen, of the shape of a matrix.

    Args:
        before, now: the original and the trained weights.
        levels: of the original.
        largest: of |before| in each weight's block, which must stay the largest; None for no such bound.
        keep: the share of the matrix's weights that are chosen, at most.
    """
    change = now.double() - before.double()
    sign = torch.sign(change)
    index = levels.index(before)
    further = index + sign.to(index.dtype)
    inside = (sign != 0) & (further >= levels.low) & (further <= levels.high)
    level, following = (levels.values(i).double() for i in (index, torch.where(inside, further, index)))
    floor = level + (0.5 + INTO_BIN) * (following - level)
    can_move = inside & (following != level)
    moved = torch.where(sign > 0, torch.maximum(now.double(), floor), torch.minimum(now.double(), floor))
    if largest is not None:
        can_move &= (before.abs() < largest) & (floor.abs() <= largest)
        moved = torch.maximum(torch.minimum(moved, largest.double()), -largest.double())
    # Stable: of equal updates the first ones, so that the same are chosen everywhere.
    order = torch.where(can_move, change.abs(), 0.0).flatten().sort(descending=True, stable=True).indices
    chosen = torch.zeros(before.numel(), dtype=torch.bool, device=before.device)
    chosen[order[: round(keep * before.numel())]] = True
    return moved, chosen.view(before.shape) & can_move
