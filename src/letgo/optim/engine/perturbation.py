"""The in-place engine: evaluate a loss at theta + alpha v without theta ever being touched.

While the closure runs, a `TorchFunctionMode` sees every torch function before it runs. Where one takes a parameter,
it is given a perturbed copy instead, which lives only for that call. So at most one tensor's copy exists at a time;
the weights keep every bit, in bf16 as in fp64, whatever happens inside the closure; and tied weights, parameters used
outside the module that owns them and nested modules need no care, because modules play no part.

What the mode cannot see is code that reaches a parameter without torch functions (a scripted module, a C++ extension,
replicated copies). Parameters that no function was given during an evaluation are therefore perturbed in memory from
then on, while a copy of the original is kept and put back after each evaluation: slower and larger, and right. Sharded
parameters are perturbed so from the start, since functions get what FSDP2 has gathered; a rank keeps a copy of its
shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from letgo.optim.base import Closure
from letgo.optim.engine.noise import Direction
from letgo.optim.engine.products import linear, onednn_linear, serves
from letgo.optim.engine.shards import gathering_anew, is_distributed

_VALUE_ATTRIBUTES = {"data", "T", "mT", "H", "mH", "real", "imag"}
"""Tensor attributes that hand out values; all others are about shape, dtype, place or gradient."""

_NO_VALUES = {
    "__len__", "__hash__", "dim", "ndimension", "size", "numel", "nelement", "stride", "storage_offset", "element_size",
    "is_floating_point", "is_complex", "is_contiguous", "is_signed", "is_tensor", "get_device", "data_ptr",
    "requires_grad_", "register_hook", "register_post_accumulate_grad_hook", "has_names", "is_inference",
    "is_same_size", "is_storage", "is_nonzero_static", "empty_like", "zeros_like", "ones_like", "rand_like",
    "randn_like", "new_empty", "new_zeros", "new_ones", "new_full", "full_like", "is_shared", "is_set_to",
    "result_type", "can_cast",
}  # fmt: skip
"""Functions that read no values of a tensor: not worth a copy."""


def reads_values(function: Callable[..., Any]) -> bool:
    """Whether a torch function may read the values of a tensor that it is given."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return getattr(getattr(function, "__self__", None), "__name__", "") in _VALUE_ATTRIBUTES
    return name != "__set__" and name not in _NO_VALUES


def writes_first(function: Callable[..., Any]) -> bool:
    """Whether a torch function writes to its first argument, which must then be the tensor itself, not a copy."""
    name = getattr(function, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


LARGE_ELEMENTS = 1 << 22
"""Weights of linear layers with more elements than this are perturbed in pieces, never whole."""

PIECE_ELEMENTS = 1 << 20
"""Of those pieces: what a processor's cache holds, and enough rows for a product to be fast."""


class _Substitution(TorchFunctionMode):
    """Gives functions perturbed copies in place of the parameters in `places` (id of the parameter -> index).

    Args:
        gathered: some parameters are sharded. Linear layers that are given what was gathered of them then take the
            way of those that are given copies, so that a loss has the bits that it has without shards.
    """

    def __init__(self, index_of: dict[int, int], direction: Direction, alpha: float, gathered: bool = False) -> None:
        super().__init__()
        self.gathered = gathered
        self.index_of = index_of
        self.direction = direction
        self.alpha = alpha
        self.seen: set[int] = set()
        self._scratch: dict[torch.dtype, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Some thousands of calls a forward pass come here, hardly any of them with a parameter.
        if not takes_any(self.index_of, args, kwargs):
            if self.gathered and func is F.linear and len(args) > 1 and _is_gathered(args[1]):
                return self._linear_as_gathered(*args, **(kwargs or {}))
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if not reads_values(func):
            return func(*args, **kwargs)
        if func is F.linear and len(args) > 1 and id(args[1]) in self.index_of:
            return self._linear(*args, **kwargs)
        if func is F.embedding and len(args) > 1 and id(args[1]) in self.index_of and kwargs.get("max_norm") is None:
            ids, weight = args[:2]
            if ids.numel() * weight.shape[1] < weight.numel():
                return self._embedding(ids, weight)
        made: dict[int, Tensor] = {}  # one copy a call, however often the parameter is among its arguments
        kept = int(writes_first(func))
        args = args[:kept] + tuple([self._substitute(a, made) for a in args[kept:]])
        if kwargs:
            kwargs = {k: v if k == "out" else self._substitute(v, made) for k, v in kwargs.items()}
        return func(*args, **kwargs)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T + b. (..., in) -> (..., out)"""
        index = self.index_of[id(weight)]
        bias = self._substitute(bias, {})
        if x is weight or torch.is_grad_enabled():
            # The copy must outlive the call: it is part of a graph.
            made: dict[int, Tensor] = {}
            return F.linear(self._substitute(x, made), self._substitute(weight, made), bias)
        x = self._substitute(x, {})
        self.seen.add(index)
        if weight.numel() > LARGE_ELEMENTS:
            # So that no copy of a vocabulary's size is made.
            pieces = self.direction.shifted_pieces(index, self.alpha, PIECE_ELEMENTS)
            return self._linear_by_pieces(x, weight, bias, pieces)
        return linear(x, self.direction.shifted(index, self.alpha, out=self._borrow(weight)), bias)

    def _linear_as_gathered(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`_linear` of a weight that is perturbed already."""
        if torch.is_grad_enabled():
            return F.linear(x, weight, bias)
        if weight.numel() > LARGE_ELEMENTS:
            rows = self.direction.rows_a_piece(weight, PIECE_ELEMENTS)
            starts = range(0, weight.shape[0], rows)
            pieces = ((slice(s, min(s + rows, weight.shape[0])), weight[s : s + rows].clone()) for s in starts)
            return self._linear_by_pieces(x, weight, bias, pieces)
        return linear(x, weight, bias)

    def _linear_by_pieces(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, pieces: Iterator[tuple[slice, Tensor]]
    ) -> Tensor:
        """By pieces of W's rows."""
        if x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type) or _transformed(x):
            # Functions with an `out` know neither autocast nor vmap.
            parts = [F.linear(x, piece.clone(), None if bias is None else bias[rows]) for rows, piece in pieces]
            return torch.cat(parts, -1)
        flat = x.reshape(-1, x.shape[-1])
        result = flat.new_empty(flat.shape[0], weight.shape[0])
        for rows, piece in pieces:
            if serves(flat, piece):
                result[:, rows] = onednn_linear(flat, piece, None if bias is None else bias[rows])
            elif bias is None:
                torch.mm(flat, piece.t(), out=result[:, rows])
            else:
                torch.addmm(bias[rows], flat, piece.t(), out=result[:, rows])
        return result.view(*x.shape[:-1], weight.shape[0])

    def _embedding(self, ids: Tensor, weight: Tensor) -> Tensor:
        """The rows of W at `ids`, perturbed without perturbing the others. (...) -> (..., width)"""
        index = self.index_of[id(weight)]
        self.seen.add(index)
        return self.direction.shifted_rows(index, self.alpha, ids.reshape(-1)).view(*ids.shape, weight.shape[1])

    def _borrow(self, weight: Tensor) -> Tensor | None:
        """A buffer of a weight's shape for a copy that no result refers to: the next call overwrites it."""
        if weight.device.type != "cpu":
            return None  # the allocator knows of streams
        count, held = weight.numel(), self._scratch.get(weight.dtype)
        if held is None or held.numel() < count:
            held = self._scratch[weight.dtype] = torch.empty(count, dtype=weight.dtype)
        return held[:count].view(weight.shape)

    def _substitute(self, value: Any, made: dict[int, Tensor]) -> Any:
        if isinstance(value, Tensor):
            index = self.index_of.get(id(value))
            if index is None:
                return value
            if index not in made:
                self.seen.add(index)
                made[index] = self.direction.shifted(index, self.alpha)
            return made[index]
        if type(value) in (list, tuple):
            return type(value)([self._substitute(v, made) for v in value])
        return value


def _is_gathered(weight: Any) -> bool:
    """Whether a tensor may be what FSDP2 gathered of a trained parameter: a parameter that no place is known of."""
    return isinstance(weight, nn.Parameter) and weight.requires_grad and not is_distributed(weight)


def _transformed(x: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def takes_any(index_of: dict[int, int], args: Iterable[Any], kwargs: dict[str, Any] | None) -> bool:
    """Whether a function's arguments, or lists and tuples among them, hold a value whose id `index_of` has."""
    for value in args:
        if id(value) in index_of:
            return True
        if isinstance(value, (list, tuple)) and takes_any(index_of, value, None):
            return True
    return takes_any(index_of, kwargs.values(), None) if kwargs else False


class InPlaceEngine:
    """Evaluates a closure at perturbed weights and leaves the weights as they were, bit for bit.

    Args:
        always_save: perturb every parameter in memory with its original kept, instead of copies made per call.
    """

    def __init__(self, always_save: bool = False) -> None:
        self.always_save = always_save
        self.saved: set[int] = set()
        self._looked = always_save

    def evaluate(
        self, closure: Closure, direction: Direction, alpha: float, trainable: Sequence[int], draws: SharedDraws
    ) -> Any:
        """closure() at theta + alpha * direction, for the tensors of the direction listed in `trainable`."""
        if self.always_save:
            self.saved = set(trainable)
        else:
            self.saved |= {i for i in trainable if is_distributed(direction.tensors[i])}
        draws.restore()
        loss, unseen = self._evaluate(closure, direction, alpha, trainable)
        if unseen and not self._looked:
            self.saved |= unseen
            draws.restore()
            loss, _ = self._evaluate(closure, direction, alpha, trainable)
        self._looked = True
        return loss

    def _evaluate(
        self, closure: Closure, direction: Direction, alpha: float, trainable: Sequence[int]
    ) -> tuple[Any, set[int]]:
        tensors = direction.tensors
        saved = [i for i in trainable if i in self.saved]
        substituted = [i for i in trainable if i not in self.saved]
        gathered = not self.always_save and any(direction.pieces[i].sharded for i in saved)
        mode = _Substitution({id(tensors[i]): i for i in substituted}, direction, alpha, gathered)
        # Autocast keeps its casts of parameters until it is left; they would be of the weights as they were.
        torch.clear_autocast_cache()
        with _moved(saved, direction, alpha), gathering_anew(tensors), mode:
            loss = closure()
        torch.clear_autocast_cache()
        return loss, set(substituted) - mode.seen


@contextmanager
def _moved(indices: Sequence[int], direction: Direction, alpha: float) -> Iterator[None]:
    """Within: the tensors, or this rank's pieces of them, are shifted in memory. After, whatever happened: their
    original bits."""
    originals: dict[int, Tensor] = {}
    try:
        for i in indices:
            originals[i] = direction.pieces[i].local.clone()
            direction.move(i, alpha)
        yield
    finally:
        for i, original in originals.items():
            direction.pieces[i].local.copy_(original)


class SharedDraws:
    """Gives every evaluation of a step the same draws of the global generators (the same dropout masks).

    The difference of two losses means nothing if each had masks of its own. The generators are never seeded: their
    state is read before the first evaluation and put back before the others, so that a step moves them on as one
    forward pass would.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.cpu = torch.get_rng_state()
        devices = {t.device for t in tensors if t.device.type == "cuda"}
        self.cuda = {device: torch.cuda.get_rng_state(device) for device in devices}

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(state, device)
