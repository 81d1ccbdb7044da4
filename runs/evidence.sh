#!/bin/sh
# The ladder of grades on the biographies, tuned and attacked, and the page made from it.
#   sh runs/evidence.sh            npo graddiff rmu
# Each sweep goes on where it was if it is stopped.
set -eu
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
for objective in ${*:-npo graddiff rmu}; do
    $PYTHON -m letgo sweep "recipes/evidence/tune-$objective.yaml" --resume
    $PYTHON -m letgo.evidence collect "letgo-runs/evidence/tune-$objective" --output "results/tune-$objective.json"
    # The settled grid is kept: it names the rates that were chosen.
    [ -f "recipes/evidence/$objective.yaml" ] || $PYTHON -m letgo.evidence settle "letgo-runs/evidence/tune-$objective" \
        --attacks recipes/evidence/attacks.yaml --seeds 0,1,2 --first adamw,fozo,hybrid,sign_adam,sophia,sam --output "recipes/evidence/$objective.yaml"
    $PYTHON -m letgo sweep "recipes/evidence/$objective.yaml" --resume
    $PYTHON -m letgo.evidence collect "letgo-runs/evidence/$objective" --attacks recipes/evidence/attacks.yaml \
        --output "results/ladder-$objective.json"
done
# Further grades, a control, and the hybrid's next rate, under NPO.
for name in next more matrices next-sam rest seeds; do
    case $name in next* | seeds) how='--supersedes --control adamw@0.0004' ;; *) how='--control adamw@0.0004' ;; esac
    $PYTHON -m letgo sweep "recipes/evidence/npo-$name.yaml" --resume
    $PYTHON -m letgo.evidence collect "letgo-runs/evidence/npo-$name" --attacks recipes/evidence/attacks.yaml $how \
        --output "results/ladder-npo-$name.json"
done
$PYTHON -m letgo.evidence page results --output docs/evidence.md
