#!/bin/sh
# TOFU at full size (forget10 of all 4,000 rows) on SmolLM2-135M: the models, the tuning, the ladders that come of it, and
# the page. Wants a GPU, and TOFU's data from the hub or from the folder that LETGO_DATA names (docs/data.md).
#   sh runs/tofu10.sh              npo graddiff, or the one that is named
# Goes on where it was if it is stopped.
set -eu
. "$(dirname "$0")/steps.sh"
models tofu:split=forget10 "" tofu10-full tofu10-retrained
for what in ${*:-npo graddiff}; do
    tuned "tofu10-$what"
    settled attacks-tofu10 0,1,2,3,4 "tofu10-$what" || continue
    attacked attacks-tofu10 "" ladder- "tofu10-$what"
done
page
