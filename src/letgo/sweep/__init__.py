"""Grids of runs: expanded, tuned to matched forgetting, run in parallel, resumed after a kill at any moment.

`grid.py` reads a grid and expands it, `tuning.py` picks each group's setting, and `execute.py` decides what is done
next, from what lies in the sweep's folder. How a cell is run is another matter: in processes of this machine
(`local.py`) or as tasks of a Ray cluster (`cluster.py`), behind one interface (`workers.py`). `sweep.json`
(`letgo.runs.sweeps`) says what became of each.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from letgo.runs.sweeps import SWEEP_FILE as SWEEP_FILE
    from letgo.runs.sweeps import Sweep as Sweep
    from letgo.runs.sweeps import read_sweep as read_sweep
    from letgo.sweep.execute import sweep as sweep
    from letgo.sweep.grid import Grid as Grid
    from letgo.sweep.grid import read_grid as read_grid
    from letgo.sweep.part import parse_part as parse_part

# Imported when first used: a worker's process comes through here before its loggers are quiet.
_PUBLIC = {
    "SWEEP_FILE": "letgo.runs.sweeps",
    "Grid": "letgo.sweep.grid",
    "Sweep": "letgo.runs.sweeps",
    "parse_part": "letgo.sweep.part",
    "read_grid": "letgo.sweep.grid",
    "read_sweep": "letgo.runs.sweeps",
    "sweep": "letgo.sweep.execute",
}

__all__ = ["SWEEP_FILE", "Grid", "Sweep", "parse_part", "read_grid", "read_sweep", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
