#!/bin/sh
# Ideas to beat the hybrid: tuned, attacked, and held against it under NPO. What they rest on: src/letgo/evidence/ideas.py
set -eu
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
for name in ${*:-ideas-npo ideas-more-npo}; do
    $PYTHON -m letgo sweep "recipes/evidence/tune-$name.yaml" --resume
    $PYTHON -m letgo.evidence collect "letgo-runs/evidence/tune-$name" --output "results/tune-$name.json"
    if [ ! -f "recipes/evidence/$name.yaml" ]; then
        # Ends with an error where no idea reached the target: then there is nothing to attack.
        $PYTHON -m letgo.evidence settle "letgo-runs/evidence/tune-$name" --attacks recipes/evidence/attacks.yaml \
            --seeds 0,1,2 --output "recipes/evidence/$name.yaml" || continue
    fi
    $PYTHON -m letgo sweep "recipes/evidence/$name.yaml" --resume
    $PYTHON -m letgo.evidence collect "letgo-runs/evidence/$name" --attacks recipes/evidence/attacks.yaml \
        --kind ideas --output "results/$name.json"
done
$PYTHON -m letgo.evidence page results --output docs/evidence.md
