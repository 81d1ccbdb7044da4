#!/bin/sh
# The ladders of grades, tuned and attacked, and the page made from them.
#   sh runs/evidence.sh            npo graddiff rmu capitals tofu, or those that are named
# TOFU's data comes from the hub, or from the folder that LETGO_DATA names (docs/data.md).
# Each sweep goes on where it was if it is stopped. The grids name the rates that tuning chose: tuning is run to show
# them, and a ladder is not made anew from it.
set -eu
. "$(dirname "$0")/steps.sh"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

ladder() { # ATTACKS FLAGS NAME...
    attacks=$1 flags=$2
    shift 2
    attacked "$attacks" "$flags" ladder- "$@"
}

for what in ${*:-npo graddiff rmu capitals tofu}; do
    case $what in
    npo)
        tuned npo npo-signs npo-schedules npo-schedules-finer muon40-npo
        ladder attacks "" npo
        ladder attacks "--control adamw@0.0004" npo-more npo-matrices npo-rest npo-signs npo-schedules muon40-npo
        ladder attacks "--supersedes --control adamw@0.0004" npo-next npo-seeds npo-next-sam npo-five npo-schedules-next
        ;;
    graddiff)
        tuned graddiff graddiff-finer graddiff-muon graddiff-muon-finer graddiff-more graddiff-more-finer
        tuned graddiff-zo graddiff-zo-finer muon40-graddiff
        ladder attacks "" graddiff graddiff-more muon40-graddiff
        ladder attacks "--supersedes" graddiff-next graddiff-rest graddiff-seeds graddiff-within graddiff-within2 \
            graddiff-within3
        ;;
    rmu)
        tuned rmu rmu-muon rmu-more rmu-signs rmu-zo rmu-zo-finer muon40-rmu
        ladder attacks "" rmu rmu-more
        ladder attacks "--control adamw@0.001" muon40-rmu
        ladder attacks "--supersedes --control adamw@0.001" rmu-next rmu-rest rmu-seeds
        ;;
    capitals)
        tuned npo-capitals npo-capitals-finer npo-capitals-muon muon20-capitals
        ladder attacks-capitals "" npo-capitals npo-capitals-seeds npo-capitals-rest muon20-capitals
        ;;
    tofu)
        models tofu:split=forget01,train_limit=160,length=128 "--limit 40" tofu-full tofu-retrained
        tuned tofu-npo tofu-graddiff tofu-npo-finer tofu-npo-last tofu-npo-forty tofu-npo-zo
        tuned tofu-graddiff-finer tofu-graddiff-forty tofu-graddiff-forty-finer tofu-graddiff-forty-last
        ladder attacks-tofu "" tofu-npo tofu-npo-rest tofu-npo-grades tofu-npo-seeds tofu-graddiff tofu-graddiff-grades \
            tofu-graddiff-rest
        ladder attacks-tofu "--supersedes" tofu-npo-next tofu-npo-next-sam tofu-npo-seeds-muon tofu-graddiff-next \
            tofu-graddiff-within tofu-graddiff-within2
        ;;
    *)
        echo "no ladder $what; there are npo, graddiff, rmu, capitals and tofu" >&2
        exit 2
        ;;
    esac
done
page
