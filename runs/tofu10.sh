#!/bin/sh
# TOFU at full size (forget10 of all 4,000 rows) on SmolLM2-135M: the models, the tuning, the ladders that come of it, and
# the page. Wants a GPU, and TOFU's data from the hub or from the folder that LETGO_DATA names (docs/data.md).
#   sh runs/tofu10.sh              npo graddiff, or the one that is named
# Goes on where it was if it is stopped.
set -eu
PYTHON=${PYTHON:-python}
RUNS=letgo-runs/evidence
for name in tofu10-full tofu10-retrained; do
    [ -f "$RUNS/$name/result.json" ] || $PYTHON -m letgo unlearn "recipes/evidence/models/$name.yaml"
done
[ -f "$RUNS/tofu10-retrained-scores/result.json" ] || $PYTHON -m letgo eval "$RUNS/tofu10-retrained" \
    --benchmark tofu:split=forget10 --output "$RUNS/tofu10-retrained-scores"
for what in ${*:-npo graddiff}; do
    $PYTHON -m letgo sweep "recipes/evidence/tune-tofu10-$what.yaml" --resume
    $PYTHON -m letgo.evidence collect "$RUNS/tune-tofu10-$what" --output "results/tune-tofu10-$what.json"
    if [ ! -f "recipes/evidence/tofu10-$what.yaml" ]; then
        # Ends with an error where no grade reached the target: then there is nothing to attack.
        $PYTHON -m letgo.evidence settle "$RUNS/tune-tofu10-$what" --attacks recipes/evidence/attacks-tofu10.yaml \
            --seeds 0,1,2,3,4 --output "recipes/evidence/tofu10-$what.yaml" || continue
    fi
    $PYTHON -m letgo sweep "recipes/evidence/tofu10-$what.yaml" --resume
    $PYTHON -m letgo.evidence collect "$RUNS/tofu10-$what" --attacks recipes/evidence/attacks-tofu10.yaml \
        --output "results/ladder-tofu10-$what.json"
done
$PYTHON -m letgo.evidence page results --output docs/evidence.md
