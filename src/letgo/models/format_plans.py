"""How a model is written in a format: which type each tensor gets, and how its weights are rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from letgo.core.errors import UserError
from letgo.core.extras import need
from letgo.core.values import Rounding
from letgo.models.formats import FORMATS
from letgo.models.gguf import is_gguf
from letgo.models.gguf_file import names_of
from letgo.models.gguf_mixes import MIXES, types_of
from letgo.models.gguf_types import TYPES, BlockLevels, library, round_to_blocks
from letgo.models.packed import PackedPlan, check_grid, plan_packed
from letgo.optim.engine.rounding import rounded

FLOATS = ("F32", "F16")
"""Types of tensors that are not in blocks."""


@dataclass(frozen=True)
class GgufPlan:
    """How a model is written as GGUF: by its tensors' names, in the file's order.

    Attributes:
        names: in the file.
        types: "F32", "F16" or a block type.
        blocks: of a tensor that is written to blocks that are there already, their bytes in the model's order.
        notes: what the user should know of it.
    """

    names: Mapping[str, str]
    types: Mapping[str, str]
    blocks: Mapping[str, np.ndarray]
    notes: list[str]

    def kind(self, key: str) -> str:
        """What a tensor is stored as, for the record."""
        return self.types.get(key, "F32")

    def rounded(
        self, key: str, weight: Tensor, rounding: Rounding, *, seed: int, first: int = 0
    ) -> tuple[BlockLevels, Tensor] | None:
        """Of rows of a tensor, beginning with the row `first`: the levels, and the index to which each weight is
        rounded. None for a tensor that is written as floats."""
        kind = self.kind(key)
        if kind in FLOATS:
            return None
        if key not in self.blocks:
            return round_to_blocks(weight, kind, rounding, seed=seed, tensor=key, first=first)
        levels = BlockLevels(kind, self.blocks[key][first : first + len(weight)], weight.shape[1])
        return levels, rounded(levels, weight, rounding, seed=seed, name=key, first=first)


def plan_format(
    format: str, config: Any, shapes: Mapping[str, tuple[int, ...]], original: str | None
) -> GgufPlan | PackedPlan:
    """How a model is written in a format of `FORMATS`.

    Args:
        config: the model's.
        shapes: of its tensors, by their names.
        original: the model before unlearning, off which the format `own` is read.

    Raises:
        UserError: the format can't hold a tensor; or the original has no format of its own that letgo knows.
    """
    name = FORMATS.record(format).name
    if name.upper() not in MIXES and (name != "own" or own_file(original) is None):
        return plan_packed(name, config, shapes, original)
    library()
    names = names_of(config)
    table = names.of(shapes)
    if name != "own":
        in_file = {table[key]: shapes[key] for key in table}
        types, notes = types_of(name.upper(), in_file, layers=names.layers, queries=names.queries)
        return GgufPlan(table, {key: types[table[key]] for key in table}, {}, notes)
    path = own_file(original)
    assert path is not None
    gguf = need("gguf", "gguf", what=f"reading {path}")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    own, blocks = dict[str, str](), dict[str, np.ndarray]()
    for key, of_file in table.items():
        tensor = tensors.get(of_file)
        if tensor is None or tensor.tensor_type.name not in (*FLOATS, *TYPES):
            kind = "not in it" if tensor is None else f"of the type {tensor.tensor_type.name}, which letgo can't write"
            raise UserError(f"format 'own': {path}: the tensor {of_file} is {kind}")
        own[key] = tensor.tensor_type.name
        if own[key] not in FLOATS:
            blocks[key] = names.in_model(of_file, np.asarray(tensor.data))
    return GgufPlan(table, own, blocks, [f"the blocks are those of {path.name}"])


def own_file(original: str | None) -> Path | None:
    """The GGUF file as which an original came; None where it did not."""
    if original == "smollm2":
        from letgo.models.smollm2 import find_gguf

        return find_gguf()
    return Path(original) if original is not None and is_gguf(Path(original)) and Path(original).is_file() else None


def check_own(original: str) -> None:
    """Raise a `UserError` where an original has no format of its own, as far as some of its matrices tell."""
    if own_file(original) is None:
        check_grid(original)
