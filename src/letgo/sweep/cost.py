"""What a sweep would take, from the plan of each group's run, before anything is loaded."""

from __future__ import annotations

from typing import Any

from letgo.planning import plan
from letgo.sweep.grid import Grid, with_setting
from letgo.training.config import make_config


def cost(grid: Grid) -> list[dict[str, Any]]:
    """One row a cell: its name, group and settings, the attacks on it, how many runs it takes (a group's first cell
    carries the tuning's candidates), one run's peak memory in bytes, and the seconds of all its runs without attacks.
    One plan serves all cells of a group."""
    rows = []
    for group in grid.groups:
        changes = grid.tune.tried(group.optimizer)[0] if grid.tune else {}
        settings = with_setting(group.cells[0].settings, changes) | {"output_dir": str(grid.output)}
        planned = plan(make_config(settings, where=f"{grid.source}: cell {group.cells[0].name}"))
        for cell in group.cells:
            runs = max(grid.candidates(group), 1) if cell is group.cells[0] else 1
            rows.append(
                {
                    "cell": cell.name,
                    "group": group.name,
                    "axes": dict(cell.axes),
                    "attacks": list(grid.attacks),
                    "runs": runs,
                    "memory_bytes": dict(planned.memory),
                    "seconds": runs * sum(planned.seconds.values()),
                }
            )
    return rows
