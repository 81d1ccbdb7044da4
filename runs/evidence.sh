#!/bin/sh
# The ladders of grades, tuned and attacked, and the page made from them.
#   sh runs/evidence.sh            npo graddiff rmu capitals tofu, or those that are named
# TOFU's data comes from the hub, or from the folder that LETGO_DATA names (docs/data.md).
# Each sweep goes on where it was if it is stopped. The grids name the rates that tuning chose: tuning is run to show
# them, and a ladder is not made anew from it.
set -eu
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

tuned() {
    for name in "$@"; do
        $PYTHON -m letgo sweep "recipes/evidence/tune-$name.yaml" --resume
        $PYTHON -m letgo.evidence collect "letgo-runs/evidence/tune-$name" --output "results/tune-$name.json"
    done
}

# ladder ATTACKS FLAGS NAME...: FLAGS are further ones of `collect`, "" for none.
ladder() {
    attacks=$1 flags=$2
    shift 2
    for name in "$@"; do
        $PYTHON -m letgo sweep "recipes/evidence/$name.yaml" --resume
        # shellcheck disable=SC2086  (flags are words)
        $PYTHON -m letgo.evidence collect "letgo-runs/evidence/$name" --attacks "recipes/evidence/$attacks.yaml" $flags \
            --output "results/ladder-$name.json"
    done
}

# The fine-tuned models that TOFU begins with, and the retain model's scores.
tofu_models() {
    runs=letgo-runs/evidence
    for name in tofu-full tofu-retrained; do
        [ -f "$runs/$name/result.json" ] || $PYTHON -m letgo unlearn "recipes/evidence/models/$name.yaml"
    done
    [ -f "$runs/tofu-retrained-scores/result.json" ] || $PYTHON -m letgo eval "$runs/tofu-retrained" \
        --benchmark tofu:split=forget01,train_limit=160,length=128 --limit 40 --output "$runs/tofu-retrained-scores"
}

for what in ${*:-npo graddiff rmu capitals tofu}; do
    case $what in
    npo)
        tuned npo npo-schedules
        ladder attacks "" npo
        ladder attacks "--control adamw@0.0004" npo-more npo-matrices npo-rest npo-schedules
        ladder attacks "--supersedes --control adamw@0.0004" npo-next npo-seeds npo-next-sam npo-five
        ;;
    graddiff)
        tuned graddiff graddiff-finer graddiff-muon graddiff-muon-finer graddiff-more graddiff-more-finer
        ladder attacks "" graddiff graddiff-more
        ladder attacks "--supersedes" graddiff-next graddiff-rest graddiff-seeds
        ;;
    rmu)
        tuned rmu rmu-muon rmu-more rmu-signs
        ladder attacks "" rmu rmu-more
        ladder attacks "--supersedes --control adamw@0.001" rmu-next rmu-rest rmu-seeds
        ;;
    capitals)
        tuned npo-capitals npo-capitals-finer npo-capitals-muon
        ladder attacks-capitals "" npo-capitals npo-capitals-seeds npo-capitals-rest
        ;;
    tofu)
        tofu_models
        tuned tofu-npo tofu-graddiff tofu-npo-finer tofu-npo-last tofu-graddiff-finer
        ladder attacks-tofu "" tofu-npo tofu-npo-rest tofu-graddiff
        ladder attacks-tofu "--supersedes" tofu-npo-next
        ;;
    *)
        echo "no ladder $what; there are npo, graddiff, rmu, capitals and tofu" >&2
        exit 2
        ;;
    esac
done
$PYTHON -m letgo.evidence page results --output docs/evidence.md
