#!/usr/bin/env bash
# Replicas on the CPUs of one machine, one thread each (to try a run out, and for tests):
#   recipes/launch/gloo.sh 2 unlearn run.yaml
# `accelerate launch --cpu` would start one process, however many it is asked for; torchrun starts them all.
set -euo pipefail
count=$1
shift
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=PASSIVE
exec torchrun --nproc_per_node "$count" -m letgo "$@"
