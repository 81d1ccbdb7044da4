#!/bin/sh
# Where the solutions of the NPO ladder lie (seed 0): linear mode connectivity of every pair, and certificates at one σ.
# The hybrid is the one at the rate that stands for it (recipes/evidence/npo-next.yaml).
set -eu
. "$(dirname "$0")/steps.sh"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
models=
for pattern in npo/runs/optimizer_adamw npo/runs/optimizer_sign_adam npo/runs/optimizer_sophia npo-next/runs/optimizer_fozo; do
    for run in "$RUNS/$pattern"_*-seed0; do
        [ -f "$run/result.json" ] && models="$models $run"
    done
done
# shellcheck disable=SC2086  (paths without spaces)
$PYTHON -m letgo analyze connectivity $models biographies --points 7 --no-metrics --output results
for run in $models; do
    $PYTHON -m letgo analyze certificate "$run" --sigma 0.005 --draws 100 --no-rerun --output results
done
page
