"""A model whose parameters lie in shards (FSDP2), followed on tensors without values.

The tally of `letgo.planning.tracing` follows what FSDP2 does with memory: it gathers a unit's parameters before the
unit's forward pass and frees them after it; it gathers them again before the backward pass, while the next unit's are
already on their way; it copies whole gradients into the buffer of a reduce-scatter, and a shard of them is left. The
units are those of transformers and accelerate: every transformer block, the embedding, the output layer with the final
norm (and the embedding where they are tied; these stay gathered to the end of the backward pass), and the rest.

Sources: torch 2.13, `torch/distributed/fsdp/_fully_shard`; transformers, `distributed/fsdp.py`; accelerate,
`fsdp2_prepare_model`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from letgo.models.forward import find_blocks
from letgo.planning.tracing import MemoryTally, Traced


def bytes_of(parameters: Sequence[Tensor]) -> int:
    return sum(p.nbytes for p in parameters)


def shard_bytes(parameter: Tensor, ranks: int) -> int:
    """What a rank holds of a parameter: an equal number of its rows, rounded up."""
    if not parameter.dim() or not parameter.shape[0]:
        return parameter.nbytes
    rows = parameter.shape[0]
    return -(-rows // ranks) * (parameter.numel() // rows) * parameter.element_size()


@dataclass(eq=False)
class Unit:
    """Parameters that are gathered at once, and the modules that need them.

    Attributes:
        stays: the parameters stay gathered after the forward pass.
        whole: what stands for the parameters while they are gathered.
        coming: what stands for the buffer in which they arrive, if their gathering has begun ahead of time.
    """

    modules: list[nn.Module]
    parameters: list[nn.Parameter]
    stays: bool = False
    whole: list[Tensor] = field(default_factory=list)
    coming: list[Tensor] = field(default_factory=list)

    @property
    def size(self) -> int:
        return bytes_of(self.parameters)

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters if p.requires_grad]


def units_of(model: Any) -> list[Unit]:
    """The units of a model, in no particular order; every parameter is in one."""
    taken: set[int] = set()

    def unit(modules: Sequence[nn.Module | None], *, stays: bool = False) -> Unit:
        present = [module for module in modules if module is not None]
        parameters = {id(p): p for module in present for p in module.parameters() if id(p) not in taken}
        taken.update(parameters)
        return Unit(present, list(parameters.values()), stays)

    _, blocks = find_blocks(model)
    units = [unit([block]) for block in blocks]
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embedding is not None and output is not None and embedding.weight is output.weight
    if not tied:
        units.append(unit([embedding]))
    units.append(unit([_final_norm(model, blocks), *([embedding] if tied else []), output], stays=True))
    units.append(unit([model], stays=True))
    return [unit for unit in units if unit.parameters]


def _final_norm(model: Any, blocks: nn.ModuleList) -> nn.Module | None:
    """The norm beside the blocks."""
    parents = (list(module.children()) for module in model.modules())
    siblings = next((children for children in parents if any(child is blocks for child in children)), [])
    return next((child for child in reversed(siblings) if "Norm" in type(child).__name__), None)


class Gathering:
    """Follows the memory of a model's units, shared by some ranks, while the model runs."""

    def __init__(self, units: Sequence[Unit], ranks: int) -> None:
        self.units, self.ranks = list(units), ranks
        self.backward = False
        self.reduce = True
        """Whether gradients are sent at once; else they add up whole."""
        self.order: list[Unit] = []
        """Units freed after their forward passes, in that order; backward passes take from its end."""
        self.sent = self.reduced = 0
        """Bytes that this rank has sent of its shards, and of gradients."""
        self._arrived: Tensor | None = None
        self._reducing: Tensor | None = None
        self._shards: dict[int, Tensor] = {}
        self._waiting: dict[int, set[int]] = {}

    def gather(self, unit: Unit, *_: Any) -> None:
        """Before a unit's forward pass."""
        if unit.whole:
            return
        arriving = unit.coming or self._all_gather(unit)
        unit.coming = []
        unit.whole = [_bytes(unit.size)]
        if not self.backward:
            # In a forward pass the last unit's buffer is kept until this one is gathered.
            self._arrived = arriving[0]
            if not unit.stays:
                self.order.append(unit)

    def _all_gather(self, unit: Unit) -> list[Tensor]:
        self.sent += (self.ranks - 1) * sum(shard_bytes(p, self.ranks) for p in unit.parameters)
        return [_bytes(unit.size)]

    def after_forward(self, unit: Unit, *_: Any) -> None:
        # Within a backward pass a forward pass is a checkpoint's, and the backward pass follows.
        if not self.backward:
            unit.whole = []

    def begin_backward(self, unit: Unit, *_: Any) -> None:
        """Before a unit's backward pass: gather it, and begin the next one's buffer."""
        self.backward, self._arrived = True, None
        for other in self.units:
            if other is not unit and not other.stays:
                other.whole = []
        self.gather(unit)
        del self.order[max((i for i, other in enumerate(self.order) if other is unit), default=len(self.order)) :]
        if self.order and not self.order[-1].whole and not self.order[-1].coming:
            self.order[-1].coming = self._all_gather(self.order[-1])

    def take_gradient(self, unit: Unit, parameter: nn.Parameter) -> None:
        """After a parameter's gradient is there: with a unit's last one they are sent."""
        waiting = self._waiting.setdefault(id(unit), {id(p) for p in unit.trained})
        waiting.discard(id(parameter))
        if waiting or not self.reduce:
            return
        del self._waiting[id(unit)]
        unit.whole = []
        self._reducing = None
        self._reducing = _bytes(bytes_of(unit.trained))
        self.reduced += (self.ranks - 1) * sum(shard_bytes(p, self.ranks) for p in unit.trained)
        for p in unit.trained:
            p.grad = None
            if id(p) not in self._shards:
                self._shards[id(p)] = _bytes(shard_bytes(p, self.ranks))

    def end(self) -> None:
        """After a backward pass, or a forward pass without one."""
        self._arrived = self._reducing = None
        self.backward = False
        self.order = []
        self._waiting = {}
        for unit in self.units:
            unit.whole, unit.coming = [], []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within: hooks follow the model's units as it runs."""
        handles: list[Any] = []
        try:
            for unit in self.units:
                for module in unit.modules:
                    handles.append(module.register_forward_pre_hook(partial(self.gather, unit)))
                    handles.append(module.register_full_backward_pre_hook(partial(self.begin_backward, unit)))
                    if not unit.stays:
                        handles.append(module.register_forward_hook(partial(self.after_forward, unit)))
                take = partial(self.take_gradient, unit)
                handles += [p.register_post_accumulate_grad_hook(take) for p in unit.trained]
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.end()


def _bytes(count: int) -> Tensor:
    """Something for the tally to count."""
    return torch.empty(count, dtype=torch.uint8, device="meta")


@dataclass(frozen=True)
class ShardedPass:
    """A pass of a model in shards, as one rank sees it.

    Attributes:
        peak: bytes at most, beside the shards of the parameters.
        gradients: bytes of the gradients' shards.
        gathered, reduced: bytes that the rank sends in a micro-batch of the last kind: (N-1) times its shard for what
            is gathered, and as much of gradients.
        flops: operations of a micro-batch.
    """

    peak: int
    gradients: int
    gathered: int
    reduced: int
    flops: float


def trace_sharded(
    model: Any, function: Callable[[], Any], ranks: int, *, windows: int = 1, backward: bool = True
) -> ShardedPass:
    """A forward and a backward pass of a model in shards, or a forward pass alone.

    Args:
        model: a fake one, with what is trained of it.
        function: the objective on a batch; without a backward pass, anything.
        ranks: N.
        windows: micro-batches a step; gradients of all but the last add up whole, as Trainer has it.
    """
    model.zero_grad()
    gathering = Gathering(units_of(model), ranks)
    tally = MemoryTally(model.parameters())
    count, flops, sent = min(2, windows), 0, 0
    with warnings.catch_warnings(), torch.set_grad_enabled(backward), tally, gathering.attached():
        # The embedding's hook has no gradient of an input to wait for, and needs none.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        for number in range(count):
            gathering.reduce = number == count - 1
            flops, sent = tally.flops, gathering.sent
            result = function()
            if backward:
                result.backward()
            del result
            gathering.end()
    model.zero_grad()
    gradients = sum(shard_bytes(p, ranks) for p in model.parameters() if p.requires_grad) if backward else 0
    return ShardedPass(tally.peak, gradients, gathering.sent - sent, gathering.reduced, float(tally.flops - flops))


def as_traced(whole: Traced, sharded: ShardedPass, gradients: int) -> Traced:
    """A sharded pass, with its gradients' bytes under another number of ranks, beside the same pass of a whole model:
    activations are what that takes beside its gradients, and the rest of the peak was gathered."""
    activations = max(0, whole.peak - whole.gradients)
    peak = sharded.peak - sharded.gradients + gradients
    return Traced(peak, gradients, sharded.flops, max(0, peak - gradients - activations))
