#!/bin/sh
# The experiments, made from nothing, and the page made from them. Whatever is finished is not run again.
#   sh research/d2u/run.sh                    # all experiments that name their runs, and the analyses
#   sh research/d2u/run.sh biographies/npo    # those that are named
# TOFU's data comes from the hub, or from the folder that LETGO_DATA names (docs/data.md). tofu-forget10 needs a GPU.
set -eu
PYTHON=${PYTHON:-python}
$PYTHON -m research.d2u run "$@"
[ $# -gt 0 ] || $PYTHON -m research.d2u analyse
$PYTHON -m research.d2u page
