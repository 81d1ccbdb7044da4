#!/bin/sh
# Ideas to beat the hybrid: tuned, attacked, and held against it under NPO. What they rest on: src/letgo/evidence/ideas.py
set -eu
. "$(dirname "$0")/steps.sh"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
for name in ${*:-ideas-npo ideas-more-npo ideas-sam-npo ideas-wide-npo}; do
    tuned "$name"
    settled attacks 0,1,2 "$name" || continue
    attacked attacks "--kind ideas" "" "$name"
done
page
