"""Key-value caches for scoring: one that is written in place, and one of a prefix that all rows share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from letgo.models.forward import logits_at


class BufferLayer(DynamicLayer):
    """A layer that grows in place in a buffer of fixed length.

    transformers' own layer makes a new copy of all it holds with every token; for a hundred rows of two hundred tokens
    that costs more than the model. Full length also for sliding-window attention, whose mask hides what is too old.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.filled = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._keys is None or self._values is None:
            self.lazy_initialization(key_states, value_states)
            self._keys = _room(key_states, self.capacity)
            self._values = _room(value_states, self.capacity)
        end = self.filled + key_states.shape[-2]
        self._keys[:, :, self.filled : end] = key_states
        self._values[:, :, self.filled : end] = value_states
        self._show(end)
        return self.keys, self.values

    def _show(self, end: int) -> None:
        assert self._keys is not None
        assert self._values is not None
        self.filled = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.filled

    def start_from(self, keys: Tensor, values: Tensor, rows: int) -> None:
        """Begin with a prefix of one row, (1, heads, length, size), copied into all rows."""
        self.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))

    def take(self, layer: BufferLayer, start: int, rows: int, copies: int) -> None:
        """Copy another layer's rows, each `copies` times, to `start` and after, into a buffer of `rows` rows."""
        keys, values = layer.keys.repeat_interleave(copies, 0), layer.values.repeat_interleave(copies, 0)
        if self._keys is None or self._values is None:
            self.lazy_initialization(keys, values)
            self._keys, self._values = _room(keys, self.capacity, rows), _room(values, self.capacity, rows)
        end = layer.filled
        self._keys[start : start + len(keys), :, :end] = keys
        self._values[start : start + len(values), :, :end] = values
        self._show(end)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        if self._keys is None or self._values is None:
            return
        keys, values, end = self.keys, self.values, self.filled
        self._keys, self._values = _room(keys, self.capacity, len(rows)), _room(values, self.capacity, len(rows))
        self._keys[:, :, :end], self._values[:, :, :end] = keys.index_select(0, rows), values.index_select(0, rows)
        self._show(end)


class PrefixLayer(DynamicLayer):
    """A layer that shows a shared prefix before a batch's own keys and values, and stores nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values  # (1, heads, length, size)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


Prefix = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer for one row."""


def run_prefix(model: Any, tokens: list[int], layers: int, device: torch.device) -> Prefix:
    """The model's keys and values for a prefix, computed once."""
    cache = buffers(layers, len(tokens))
    logits_at(model, 1, input_ids=torch.tensor([tokens], device=device), past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def buffers(layers: int, capacity: int) -> Cache:
    return Cache(layers=[BufferLayer(capacity) for _ in range(layers)])


def behind(prefix: Prefix) -> Cache:
    """A cache that shows the prefix to every batch run with it."""
    return Cache(layers=[PrefixLayer(keys, values) for keys, values in prefix])


def _room(like: Tensor, capacity: int, rows: int | None = None) -> Tensor:
    return like.new_empty((like.shape[0] if rows is None else rows, like.shape[1], capacity, like.shape[3]))
