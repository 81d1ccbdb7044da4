"""The block types of GGUF files: weights to bytes and back, and the levels that a block's bytes leave open.

`libgguf` encodes and decodes as llama.cpp's reference code does. What it does not know is how to change the index of
one weight and leave its block's scales as they are, which rounding other than to nearest takes. For that, `_PLANES`
says where in a block the bits of each index lie (ggml-common.h, ggml-quants.c of llama.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from letgo.core.extras import need
from letgo.core.values import Rounding
from letgo.models.gguf_mixes import BLOCK
from letgo.optim.engine.rounding import rounded

_PLANES: dict[str, tuple[tuple[int, int, int], ...]] = {
    # (first byte, bytes of a span, bits), lowest bits first. A span's bytes hold the bits of 8/bits × as many weights:
    # first the lowest bits of every byte, then the next ones.
    "Q4_0": ((2, 16, 4),),
    "Q4_1": ((4, 16, 4),),
    "Q5_0": ((6, 16, 4), (2, 1, 1)),
    "Q5_1": ((8, 16, 4), (4, 1, 1)),
    "Q8_0": ((2, 32, 8),),
    "Q2_K": ((16, 32, 2),),
    "Q3_K": ((32, 32, 2), (0, 32, 1)),
    "Q4_K": ((16, 32, 4),),
    "Q5_K": ((48, 32, 4), (16, 32, 1)),
    "Q6_K": ((0, 64, 4), (128, 32, 2)),
    "IQ4_NL": ((2, 16, 4),),
    "IQ4_XS": ((8, 16, 4),),
    "MXFP4": ((1, 16, 4),),
    "NVFP4": ((4, 8, 4),),
}
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_CODES = {
    "Q8_0": (*range(128), *range(-128, 0)),
    "IQ4_NL": _IQ4,
    "IQ4_XS": _IQ4,
    "MXFP4": _FP4,
    "NVFP4": _FP4,
}
"""What a stored index stands for, but for a scale and an offset; where nothing is said, itself."""
TYPES = tuple(_PLANES)
"""The block types that letgo writes."""


def block_bytes(name: str) -> int:
    """How many bytes a block of the type has."""
    lib = library()
    return int(lib.GGML_QUANT_SIZES[lib.GGMLQuantizationType[name]][1])


def encode(weight: np.ndarray, name: str) -> np.ndarray:
    """The rows of weights (rows, columns), rounded to nearest as llama.cpp's quantizer does, as bytes (rows, …)."""
    lib = library()
    rows = np.ascontiguousarray(weight, dtype=np.float32)
    encoded: np.ndarray = lib.quantize_rows(rows, lib.GGMLQuantizationType[name])
    return encoded


def decode(encoded: np.ndarray, name: str, columns: int) -> np.ndarray:
    """The weights (rows, columns), float32, that rows of bytes stand for."""
    lib = library()
    decoded: np.ndarray = lib.dequantize_rows(encoded, lib.GGMLQuantizationType[name], n_per_row=columns)
    return decoded


@dataclass(frozen=True, eq=False)
class BlockLevels:
    """The levels of an encoded tensor: each block with the scales that its bytes hold. Index i is the i-th of the codes
    in ascending order; where a block's scale is negative, its levels descend."""

    type: str
    encoded: np.ndarray
    """(rows, bytes), uint8."""
    columns: int
    only: int | None = None
    """Of a tensor, the one column that these levels are of; None for all."""

    low = 0

    @property
    def high(self) -> int:
        return len(self._codes) - 1

    def index(self, weight: Tensor) -> Tensor:
        first, last = self._ends
        way = last - first
        codes = self._codes
        share = (weight.detach().float().cpu() - first) / torch.where(way == 0, 1.0, way)
        place = torch.where(way == 0, 0.0, share) * (codes[-1] - codes[0]) + codes[0]
        index = torch.bucketize(place, (codes[1:] + codes[:-1]) / 2)
        return index.to(torch.int16).to(weight.device)

    def values(self, index: Tensor) -> Tensor:
        if self.only is None:
            decoded = decode(self.bytes_of(index), self.type, self.columns)
            return torch.from_numpy(decoded).to(index.device)
        first, last = self._ends
        share = (self._codes[index.long().cpu()] - self._codes[0]) / (self._codes[-1] - self._codes[0])
        return (first + share * (last - first)).to(index.device)

    def column(self, number: int, shape: torch.Size) -> BlockLevels:
        part = BlockLevels(self.type, self.encoded, self.columns, number)
        part.__dict__["_ends"] = tuple(end[:, number : number + 1] for end in self._ends)
        return part

    def stored(self) -> Tensor:
        """The index of each weight as the bytes have it, int16, (rows, columns)."""
        blocks = self._blocks(self.encoded)
        stored, below = np.zeros((*blocks.shape[:2], self._block), np.uint8), 0
        for place, shift, bits in self._places:
            stored |= ((blocks[..., place] >> shift) & ((1 << bits) - 1)) << np.uint8(below)
            below += bits
        ranks = np.searchsorted(self._codes.numpy(), np.array(self._code_of, np.float32))
        return torch.from_numpy(ranks[stored.reshape(len(self.encoded), -1)].astype(np.int16))

    def bytes_of(self, index: Tensor) -> np.ndarray:
        """The same blocks with these indices, as bytes (rows, …)."""
        code_of = np.array(self._code_of, np.float32)
        stored_of = np.array([int(np.flatnonzero(code_of == code)[0]) for code in self._codes.numpy()], np.uint8)
        return self._with_stored(stored_of[index.cpu().numpy()])

    def _with_stored(self, stored: np.ndarray) -> np.ndarray:
        encoded = self.encoded.copy()
        blocks, below = self._blocks(encoded), 0
        indices = stored.reshape(*blocks.shape[:2], self._block)
        for place, shift, bits in self._places:
            part = (indices >> np.uint8(below)) & np.uint8((1 << bits) - 1)
            for start in range(0, 8, bits):  # those of one shift lie in different bytes
                here = np.flatnonzero(shift == start)
                kept = blocks[..., place[here]] & np.uint8(~(((1 << bits) - 1) << start) & 0xFF)
                blocks[..., place[here]] = kept | (part[..., here] << np.uint8(start))
            below += bits
        return encoded

    def _blocks(self, encoded: np.ndarray) -> np.ndarray:
        return encoded.reshape(len(encoded), self.columns // self._block, -1)

    @property
    def _block(self) -> int:
        return BLOCK[self.type]

    @cached_property
    def _places(self) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Of each plane: the byte and the shift of every weight's bits in a block, and how many bits they are."""
        weight = np.arange(self._block)
        planes = []
        for first, span, bits in _PLANES[self.type]:
            per_span = span * 8 // bits
            within = weight % per_span
            place = first + weight // per_span * span + within % span
            planes.append((place, (bits * (within // span)).astype(np.uint8), bits))
        return planes

    @cached_property
    def _code_of(self) -> tuple[int, ...]:
        """What each stored index stands for."""
        return _CODES.get(self.type) or tuple(range(1 << sum(bits for _, _, bits in _PLANES[self.type])))

    @cached_property
    def _codes(self) -> Tensor:
        codes = set(self._code_of) - ({-128} if self.type == "Q8_0" else set())  # its encoder never writes -128
        return torch.tensor(sorted(codes), dtype=torch.float32)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """What the lowest and the highest code stand for at each weight."""
        shape = (len(self.encoded), self.columns)
        first, last = (
            torch.from_numpy(decode(self.bytes_of(torch.full(shape, end)), self.type, self.columns))
            for end in (0, self.high)
        )
        return first, last


def round_to_blocks(
    weight: Tensor, name: str, rounding: Rounding = "nearest", *, seed: int = 0, tensor: str = "", first: int = 0
) -> tuple[BlockLevels, Tensor]:
    """The levels that llama.cpp's quantizer chooses for weights (rows, columns), and the index of each weight among
    them: to nearest as that quantizer rounds, or otherwise (`letgo.optim.engine.rounding.rounded`)."""
    levels = BlockLevels(name, encode(weight.detach().float().cpu().numpy(), name), weight.shape[1])
    if rounding == "nearest":
        return levels, levels.stored().to(weight.device)
    return levels, rounded(levels, weight, rounding, seed=seed, name=tensor, first=first)


def library() -> Any:
    """The package that encodes; a `UserError` where it is not installed."""
    return need("libgguf", "gguf", what="writing GGUF's block types")
