#!/bin/bash
# A sweep as a SLURM array: each task takes its share of the cells, and a last job makes the table.
#
#   PARTS=8 recipes/launch/slurm-array.sh grid.yaml [options of letgo sweep, such as --output DIR]
#
# Run it where jobs are submitted from. Account, partition, time and the like are given as SLURM has them: by editing
# the lines below, or by variables (SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_TIMELIMIT …). The output folder must lie on
# storage that all nodes see. A task that is preempted, loses its node or runs out of time is queued again and goes on
# from its runs' last checkpoints; what a task never came to do, the last job does before it makes the table.
#
# LETGO names the command where it is not on the PATH of the nodes.
#SBATCH --job-name=letgo-sweep
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

case "${1:-}" in
  "" | -h | --help)
    sed -n '2,/^# LETGO/s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
  --part) # a task of the array
    share=(--cells "$SLURM_ARRAY_TASK_ID/$2")
    shift 2
    ;;
  --table) # the last job
    share=()
    shift
    ;;
  *) # where jobs are submitted from
    parts=${PARTS:-8}
    array=$(sbatch --parsable --array="1-$parts" "$0" --part "$parts" "$@")
    array=${array%%;*}
    # After any end of the tasks: a cell that failed is in the table too, as failed.
    table=$(sbatch --parsable --dependency="afterany:$array" --job-name=letgo-table "$0" --table "$@")
    echo "array $array of $parts tasks, then the table: job ${table%%;*}"
    exit 0
    ;;
esac

# The time is nearly up: end the sweep, whose finished steps are kept, and queue this job again.
again() {
  kill -TERM "$child" 2>/dev/null || true
  wait "$child" || true
  if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  else
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit 143
}
trap again USR1

# srun takes no notice of --cpus-per-task since SLURM 22.05.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
srun --ntasks=1 "${LETGO:-letgo}" sweep "$@" ${share[@]+"${share[@]}"} --resume &
child=$!
# In the background, for a trap is run only while the shell waits.
wait "$child"
