"""A part of a sweep's cells, for tasks that share one sweep without a word between them (a SLURM array)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from letgo.core.errors import UserError
from letgo.sweep.grid import Grid


@dataclass(frozen=True)
class Part:
    """The `number`-th of `of` parts, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def cells(self, grid: Grid) -> frozenset[str]:
        """Names of the cells: every `of`-th, from the `number`-th on.

        Where the grid is tuned whole groups are dealt: a group's seeds share the setting that its first cell finds.
        """
        if grid.tune is None:
            return frozenset(cell.name for cell in grid.cells[self.number - 1 :: self.of])
        return frozenset(cell.name for group in grid.groups[self.number - 1 :: self.of] for cell in group.cells)


def parse_part(text: str) -> Part:
    """Read "3/8": the third of eight parts."""
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--cells {text!r} must be PART/PARTS, such as 3/8: the third of eight, from 1/8 to 8/8")
    return Part(int(found[1]), int(found[2]))
