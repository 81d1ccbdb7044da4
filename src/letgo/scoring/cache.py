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
    that costs more than the model. Sliding-window attention has full length too; its mask hides what is too old.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.filled = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self.filled + key_states.shape[-2]
        self._write(key_states, value_states, slice(None), slice(self.filled, end))
        return self.keys, self.values

    def _write(self, keys: Tensor, values: Tensor, rows: slice, columns: slice, *, count: int | None = None) -> None:
        """Write keys and values into the buffers, which are first made (of `count` rows) where there are none."""
        if self._keys is None or self._values is None:
            self.lazy_initialization(keys, values)
            self._keys, self._values = _room(keys, self.capacity, count), _room(values, self.capacity, count)
        self._keys[rows, :, columns] = keys
        self._values[rows, :, columns] = values
        self.filled = columns.stop
        self.keys, self.values = self._keys[:, :, : self.filled], self._values[:, :, : self.filled]

    def get_seq_length(self) -> int:
        return self.filled

    def start_from(self, keys: Tensor, values: Tensor, rows: int) -> None:
        """Begin with a prefix of one row, (1, heads, length, size), copied into all rows."""
        self.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))

    def take(self, layer: BufferLayer, start: int, rows: int, copies: int) -> None:
        """Copy another layer's rows, each `copies` times, to `start` and after, into a buffer of `rows` rows."""
        keys, values = layer.keys.repeat_interleave(copies, 0), layer.values.repeat_interleave(copies, 0)
        self._write(keys, values, slice(start, start + len(keys)), slice(0, layer.filled), count=rows)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        if self._keys is not None:
            keys, values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
            self._keys = self._values = None
            self._write(keys, values, slice(None), slice(0, self.filled))


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


def prefix_length(prefix: Prefix | None) -> int:
    """Tokens of a prefix; 0 of none."""
    return 0 if prefix is None else prefix[0][0].shape[-2]


def buffers(layers: int, capacity: int) -> Cache:
    return Cache(layers=[BufferLayer(capacity) for _ in range(layers)])


def behind(prefix: Prefix) -> Cache:
    """A cache that shows the prefix to every batch run with it."""
    return Cache(layers=[PrefixLayer(keys, values) for keys, values in prefix])


def _room(like: Tensor, capacity: int, rows: int | None = None) -> Tensor:
    return like.new_empty((like.shape[0] if rows is None else rows, like.shape[1], capacity, like.shape[3]))
