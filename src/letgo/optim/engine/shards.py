"""Parameters that lie in pieces on the ranks of a run (DTensors, as FSDP2's `fully_shard` makes them).

An optimizer here moves the rows that its own rank holds, with what it would move them by if it held all. So it needs
to know which rows those are (`piece_of`), what to ask of the others (`summed`, `gathered`), and that a model which has
gathered its weights once must gather them anew when they have moved (`gathering_anew`).
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Piece(NamedTuple):
    """This rank's rows of a tensor; of a tensor that is not sharded, all of it."""

    local: Tensor
    """The rows, sharing the parameter's memory."""
    shape: torch.Size
    """Of the whole tensor."""
    first: int
    """The place of the first row in the whole tensor."""
    group: Any = None
    """The process group over which the tensor is cut; None where it is whole."""
    ways: int = 1
    """Into how many pieces."""

    @property
    def width(self) -> int:
        """Elements of a row of the whole tensor."""
        return math.prod(self.shape[1:])

    @property
    def start(self) -> int:
        """The place of the first element in the whole tensor."""
        return self.first * self.width

    @property
    def sharded(self) -> bool:
        return self.group is not None

    def of(self, whole: Tensor) -> Tensor:
        """The same rows of another tensor of the whole shape, as a view."""
        return whole[self.first : self.first + self.local.shape[0]] if self.sharded else whole

    def cut_at_multiples_of(self, elements: int) -> bool:
        """Whether every rank's piece begins at a multiple of so many elements: the same answer on all of them."""
        return not self.sharded or -(-self.shape[0] // self.ways) * self.width % elements == 0


def is_distributed(tensor: Any) -> bool:
    """Whether a tensor is a DTensor. (Where nobody has imported them, there are none.)"""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor of which the ranks hold different rows."""
    return is_distributed(tensor) and any(not placement.is_replicate() for placement in tensor.placements)


def local(tensor: Tensor) -> Tensor:
    """A tensor's values on this rank, without a graph, sharing its memory."""
    if not is_distributed(tensor):
        return tensor.detach()
    with torch.no_grad():
        return tensor.detach().to_local()  # type: ignore[attr-defined]


def piece_of(tensor: Tensor) -> Piece:
    """This rank's piece of a tensor.

    Raises:
        ValueError: the tensor is cut otherwise than in runs of rows over one dimension of its mesh (as tensor
            parallelism and `shard_placement_fn` do), or holds sums that are not summed yet.
    """
    if not is_distributed(tensor):
        return Piece(tensor.detach(), tensor.shape, 0)
    placements = tensor.placements  # type: ignore[attr-defined]
    cut = [number for number, placement in enumerate(placements) if not placement.is_replicate()]
    here = local(tensor)
    if not cut:
        return Piece(here, tensor.shape, 0)
    if len(cut) > 1 or type(placements[cut[0]]).__name__ != "Shard" or placements[cut[0]].dim != 0:
        raise ValueError(
            f"a parameter of shape {tuple(tensor.shape)} is placed as {placements}: letgo's optimizers work on shards "
            "of whole rows (Shard(0) over one dimension of the mesh, what fully_shard makes by default)"
        )
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    ways, position = mesh.size(cut[0]), mesh.get_local_rank(cut[0])
    rows = tensor.shape[0]
    per_rank = -(-rows // ways)
    first = min(position * per_rank, rows)
    if here.shape[0] != min(first + per_rank, rows) - first:
        raise ValueError(
            f"a parameter of {rows} rows has {here.shape[0]} of them on rank {position} of {ways}: "
            "not torch.chunk's share"
        )
    return Piece(here, tensor.shape, first, mesh.get_group(cut[0]), ways)


def summed(values: Iterable[tuple[Any, float]], dtype: torch.dtype, device: torch.device) -> tuple[float, int]:
    """The sum of (group, value) over the ranks: what was measured on a piece counts once for each piece.

    Exact for whole numbers (int64). Values of the group None are every rank's alike, and count once.

    Returns:
        The sum, and the bytes that this rank sent for it: one number a group.
    """
    groups: dict[Any, list[float]] = {}
    for group, value in values:
        groups.setdefault(group, []).append(value)
    replicated = groups.pop(None, [])
    add = sum if dtype == torch.int64 else math.fsum
    totals: list[float] = [add(replicated)] if replicated else []
    for group, here in groups.items():
        total = torch.tensor(add(here), dtype=dtype, device=device)
        dist.all_reduce(total, group=group)
        totals.append(total.item())
    return add(totals), len(groups) * dtype.itemsize


def gathered(values: Tensor, like: Tensor) -> Tensor:
    """The whole of a tensor whose piece on this rank is `values`, cut as `like` is. Every rank must call it."""
    if not is_distributed(like):
        return values
    from torch.distributed.tensor import DTensor

    whole = DTensor.from_local(
        values,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=like.shape,
        stride=torch.empty(like.shape, device="meta").stride(),
    )
    return whole.full_tensor()


def cut_like(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor cut as `like` is: this rank's rows, copied. The inverse of `gathered`, without communication."""
    if not is_distributed(like):
        return whole
    from torch.distributed.tensor import DTensor

    piece = piece_of(like)
    return DTensor.from_local(
        piece.of(whole).clone(memory_format=torch.contiguous_format).to(piece.local.device),
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=whole.shape,
        stride=torch.empty(whole.shape, device="meta").stride(),
    )


def has_shards(tensors: Iterable[Any]) -> bool:
    return any(map(is_sharded, tensors))


@contextmanager
def gathering_anew(tensors: Iterable[Any]) -> Iterator[None]:
    """Within: modules of FSDP2 gather their weights when first run, whatever they have gathered before. Afterwards:
    they hold none, so that the next run gathers what the weights are by then.

    FSDP2 keeps what the outermost module gathered until a backward pass ends. A step that evaluates a loss without one
    would compute with the weights of the evaluation before. Without DTensors among the tensors nothing is done.
    """
    if not any(map(is_distributed, tensors)):
        yield
        return
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.modules.module import register_module_forward_pre_hook

    met: dict[nn.Module, None] = {}

    def before(module: nn.Module, _: Any) -> None:
        if isinstance(module, FSDPModule) and module not in met:
            met[module] = None
            module.reshard()

    handle = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
        for module in met:
            module.reshard()  # type: ignore[operator]


def forget_gathered(tensors: Iterable[Any]) -> None:
    """Let every module of FSDP2 in this process drop the weights that it has gathered, because they have moved."""
    if not any(map(is_distributed, tensors)):
        return
    from torch.distributed.fsdp import FSDPModule

    for thing in gc.get_objects():
        if issubclass(type(thing), FSDPModule):  # not isinstance: some objects answer that with an import
            thing.reshard()


def whole_state(value: Any) -> Any:
    """A state dict (or any part of one) with every DTensor gathered: what one process would hold, on any number.

    Every rank must call it, and gets all of it on the CPU, one tensor after another.
    """
    if isinstance(value, dict):
        return {key: whole_state(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(whole_state, value))
    if is_distributed(value):
        return value.full_tensor().cpu()
    return value


def cut_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state (`whole_state`'s) cut as its parameters are now, ready for `load_state_dict`.

    So a run that was saved on some number of ranks goes on on any other. States of optimizers inside (hybrids,
    wrappers) are cut with it; without shards nothing changes.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return _cut(state, parameters) if any(map(is_distributed, parameters)) else state


def _cut(value: Any, parameters: list[Tensor]) -> Any:
    if isinstance(value, list):
        return [_cut(entry, parameters) for entry in value]
    if not isinstance(value, dict):
        return value
    if "state" not in value or "param_groups" not in value:
        return {key: _cut(entry, parameters) for key, entry in value.items()}
    cut = {number: _cut_entry(entries, parameters[number]) for number, entries in value["state"].items()}
    return {**{key: _cut(entry, parameters) for key, entry in value.items() if key != "state"}, "state": cut}


def _cut_entry(entry: Any, like: Tensor) -> Any:
    if isinstance(entry, dict):
        return {key: _cut_entry(inner, like) for key, inner in entry.items()}
    return cut_like(entry, like) if _is_whole(entry, like) else entry


def _is_whole(value: Any, like: Tensor) -> bool:
    return isinstance(value, Tensor) and not is_distributed(value) and value.dim() > 0 and value.shape == like.shape
