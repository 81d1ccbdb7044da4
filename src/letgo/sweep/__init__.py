"""Grids of runs: expanded, tuned to matched forgetting, run in parallel, resumed after a kill at any moment.

`grid.py` reads a grid and expands it, `tuning.py` picks each group's setting, and `execute.py` decides what is done
next, from what lies in the sweep's folder. Cells run in processes of this machine (`local.py`) or as tasks of a Ray
cluster (`ray.py`), behind one interface (`workers.py`). `sweep.json` (`letgo.runs.sweeps`) says what became of each.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from letgo.runs.sweeps import SWEEP_FILE, Sweep, read_sweep
    from letgo.sweep.execute import sweep
    from letgo.sweep.grid import Grid, parse_part, read_grid

# Imported when first used: a worker's process comes through here before its loggers are quiet.
_MODULES = {
    "letgo.runs.sweeps": ("SWEEP_FILE", "Sweep", "read_sweep"),
    "letgo.sweep.grid": ("Grid", "parse_part", "read_grid"),
    "letgo.sweep.execute": ("sweep",),
}

__all__ = ["SWEEP_FILE", "Grid", "Sweep", "parse_part", "read_grid", "read_sweep", "sweep"]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
