#!/bin/sh
# Where the solutions of the NPO ladder lie (seed 0): linear mode connectivity of every pair, and certificates.
set -eu
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
RUNS=letgo-runs/evidence/npo/runs
models=
for optimizer in adamw sign_adam sophia sam_rho fozo muon; do
    for run in "$RUNS"/optimizer_"$optimizer"_*-seed0; do
        [ -f "$run/result.json" ] && models="$models $run"
    done
done
# shellcheck disable=SC2086  (paths without spaces)
$PYTHON -m letgo analyze connectivity $models biographies --points 7 --no-metrics --output results
for optimizer in adamw fozo sign_adam; do
    for run in "$RUNS"/optimizer_"$optimizer"_*-seed0; do
        [ -f "$run/result.json" ] && $PYTHON -m letgo analyze certificate "$run" --draws 100 --no-rerun --output results
    done
done
$PYTHON -m letgo.evidence page results --output docs/evidence.md
