"""Grids of runs: expanded, tuned to matched forgetting, run in parallel, resumed after a kill at any moment.

`grid.py` reads a grid and expands it, `tuning.py` picks each group's setting, and `execute.py` runs the cells;
`sweep.json` (`letgo.runs.sweeps`) says what became of each.
"""

from __future__ import annotations

from letgo.runs.sweeps import SWEEP_FILE, Sweep, read_sweep
from letgo.sweep.execute import sweep
from letgo.sweep.grid import Grid, read_grid

__all__ = ["SWEEP_FILE", "Grid", "Sweep", "read_grid", "read_sweep", "sweep"]
