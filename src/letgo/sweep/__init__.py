"""Grids of runs: expanded, tuned to matched forgetting, run in parallel, resumed after a kill at any moment.

`grid.py` reads a grid and expands it, `tuning.py` picks each group's setting, and `execute.py` decides what is done
next, from the files in the sweep's folder. Cells run in processes of this machine (`local.py`) or as tasks of a Ray
cluster (`ray.py`), behind one interface (`workers.py`). `sweep.json` (`letgo.runs.sweeps`) says what became of each.
"""
