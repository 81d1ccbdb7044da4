#!/bin/sh
# Where the solutions of the NPO ladder lie (seed 0): linear mode connectivity of every pair, and certificates at one σ.
# The hybrid and SAM are those at the rates that stand for them.
set -eu
. "$(dirname "$0")/steps.sh"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
models=
for group in npo/adamw npo/sign_adam npo/sophia npo-next/fozo npo-next-sam/sam npo-more/compressed_bits_4 \
    npo-more/randomized_smoothing npo-matrices/muon; do
    for run in "$RUNS/${group%/*}/runs/optimizer_${group#*/}"_*-seed0; do
        [ -f "$run/result.json" ] && models="$models $run"
    done
done
# shellcheck disable=SC2086  (paths without spaces)
$PYTHON -m letgo analyze connectivity $models biographies --points 7 --no-metrics --output results
for run in $models; do
    $PYTHON -m letgo analyze certificate "$run" --sigma 0.005 --draws 100 --no-rerun --output results
done
page
