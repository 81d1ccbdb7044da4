"""Run a training step on tensors without values, and count the bytes that are alive in it.

A fake model's parameters have shapes and types but no storage, so a step of a model of any size runs in seconds, on
any machine: the run's own objective, its own adapters, the architecture's own forward pass. A tally adds the result of
every operation, and takes it out when its storage is freed, as an allocator does. It does not see what kernels use
within themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from letgo.models.files import trusted


class MemoryTally(TorchDispatchMode):
    """A tally of the bytes alive among the results of torch operations, `now` and `peak`, beside known tensors
    (parameters), and of their floating-point operations, `flops` (matrix products and attention, as torch counts)."""

    def __init__(self, known: Any = ()) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {t.untyped_storage()._cdata: 0 for t in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._sizes:
                self._enter(leaf.untyped_storage())
        packet = getattr(func, "_overloadpacket", None)
        count = flop_registry.get(packet)
        if count is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=out))
        elif packet in _CPU_ATTENTION:
            self.flops += _attention_flops(func, args)
        return out

    def _enter(self, storage: Any) -> None:
        self._sizes[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._strike, storage._cdata)

    def _strike(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


_ATEN = torch.ops.aten
_CPU_ATTENTION = (
    _ATEN._scaled_dot_product_flash_attention_for_cpu,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward,
)
"""Not among those that torch counts."""


def _attention_flops(func: Any, args: tuple[Any, ...]) -> int:
    """Two products of (queries, keys, width) forward; five backward, one of them again."""
    forward = func._overloadpacket is _CPU_ATTENTION[0]
    query, key = args[:2] if forward else args[1:3]
    batch, heads, length, width = query.shape
    return (2 if forward else 5) * 2 * batch * heads * length * key.shape[2] * width


@dataclass(frozen=True)
class Traced:
    """What a step takes: bytes beside the parameters, and floating-point operations."""

    peak: int
    """Most bytes alive at once, gradients among them."""
    gradients: int
    """Bytes of the parameters' gradients."""
    flops: float
    gathered: int = 0
    """Of the peak: what is gathered of a model in shards."""


@contextmanager
def faking() -> Iterator[FakeTensorMode]:
    """Within: tensors that are made have no storage. What has one may be mixed with them."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def empty_model(config: Any, dtype: torch.dtype) -> Any:
    """The architecture of a config on the meta device: shapes and types, no storage."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted())


def faked(model: Any) -> Any:
    """A model of the meta device, its parameters and buffers replaced by fake ones, which also have a device."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            trained = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if trained else empty
        return made[id(tensor)]

    with faking():
        for module in model.modules():
            for kept in (module._parameters, module._buffers):
                kept.update({name: fake(value) for name, value in kept.items() if value is not None})
    return model


def trace_training(model: Any, loss_of: Callable[[], Tensor], *, windows: int = 1) -> Traced:
    """A forward and a backward pass of a fake model, or the last of several whose gradients add up: from the third of
    these windows on nothing changes."""
    model.zero_grad()
    flops = 0
    tally = MemoryTally(model.parameters())
    with tally:
        for _ in range(min(2, windows)):
            flops = tally.flops
            loss = loss_of()
            loss.backward()
            del loss
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    return Traced(tally.peak, gradients, float(tally.flops - flops))


def trace_forward(model: Any, function: Callable[[], Any]) -> Traced:
    """Something that is run without gradients."""
    tally = MemoryTally(model.parameters())
    with torch.no_grad(), tally:
        function()
    return Traced(tally.peak, 0, float(tally.flops))
