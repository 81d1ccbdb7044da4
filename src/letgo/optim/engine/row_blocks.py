"""Products U V^T multiplied out in cells: runs of rows that are the same for everyone.

A matrix product rounds its rows according to how many of them it has. So nobody multiplies out only the rows that are
wanted: whoever wants some of a cell's multiplies out all of it. Rank by rank, shard by shard and piece by piece, the
bits are those of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from letgo.optim.engine.noise import Block
from letgo.optim.engine.shards import Piece


def cell_rows(columns: int, device: torch.device) -> int:
    """Rows of a cell of a matrix: on a CPU what stays in its cache, elsewhere enough to hide the cost of a call."""
    return max(1, (1 << 17 if device.type == "cpu" else 1 << 20) // columns)


def cells_of(piece: Piece, start: int = 0, stop: int | None = None) -> Iterator[Block]:
    """Rows start .. stop - 1 of a piece of a matrix, cut where the whole matrix's cells end."""
    stop = piece.local.shape[0] if stop is None else stop
    per_cell = cell_rows(piece.shape[1], piece.local.device)
    while start < stop:
        end = min(stop, ((piece.first + start) // per_cell + 1) * per_cell - piece.first)
        yield Block(start, end, False)
        start = end


def product(u: Tensor, v: Tensor, block: Block, piece: Piece) -> Tensor:
    """u v^T at rows of a piece that lie in one cell. u is (rows, r) and v (columns, r) of the whole matrix."""
    low, high, rows = _cell_around(block, piece)
    return (u[low:high] @ v.t())[rows]


def add_product(u: Tensor, v: Tensor, alpha: float, piece: Piece) -> None:
    """piece.local += alpha u v^T, of u and v as in `product`."""
    for block in cells_of(piece):
        low, high, rows = _cell_around(block, piece)
        here = block.of(piece.local)
        if len(here) == high - low:
            here.addmm_(u[low:high], v.t(), alpha=alpha)
            continue
        cell = here.new_zeros(high - low, here.shape[1])
        cell[rows] = here
        here.copy_(cell.addmm_(u[low:high], v.t(), alpha=alpha)[rows])


def _cell_around(block: Block, piece: Piece) -> tuple[int, int, slice]:
    """The cell that holds rows of a piece: where it is in the whole matrix, and where the rows are in it."""
    per_cell = cell_rows(piece.shape[1], piece.local.device)
    first = piece.first + block.start
    low = first // per_cell * per_cell
    return low, min(low + per_cell, piece.shape[0]), slice(first - low, piece.first + block.stop - low)
