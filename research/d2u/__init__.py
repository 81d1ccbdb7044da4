"""The claims of two papers held against our own runs of letgo: grids, results, and the page made from them.

    sh research/d2u/run.sh [EXPERIMENT…]    # such as biographies/npo: tune, attack, collect, and write the page
    python -m research.d2u page             # the page alone, from results/

`TESTBED/testbed.yaml` says what is unlearned, from which model, and how it is attacked; `TESTBED/OBJECTIVE.yaml` names
the runs of one experiment. `experiments.py` expands both into what `letgo sweep` reads, `collect.py` reads the finished
sweeps into a `Record`, `claims.py` holds the claims and how each is judged, `page.py` writes `evidence.md`.
"""
