#!/bin/bash
# One run over several nodes, in one process a GPU:
#
#   sbatch recipes/launch/slurm-run.sh run.yaml [options of letgo unlearn]
#
# The run's output_dir must lie on storage that all nodes see, and its save_steps say how much a kill may cost: a job
# that is preempted, loses a node or runs out of time is queued again and goes on from the last checkpoint. How the model
# is spread over the processes is said in run.yaml, as for any `torchrun … -m letgo unlearn`.
#
# PER_NODE sets the processes a node (by default one a GPU that SLURM gave), PYTHON names the interpreter.
#SBATCH --job-name=letgo-run
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
set -euo pipefail

if [ $# -eq 0 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
  sed -n '2,/^# PER_NODE/s/^# \{0,1\}//p' "$0"
  exit 2
fi

nodes=${SLURM_NNODES:-1}
per_node=${PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Of this job's own: two jobs may share a node.
port=$((20000 + SLURM_JOB_ID % 20000))

# The time is nearly up: end the run, whose last checkpoint is kept, and queue this job again.
again() {
  kill -TERM "$child" 2>/dev/null || true
  wait "$child" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 143
}
trap again USR1

# srun takes no notice of --cpus-per-task since SLURM 22.05. The processes of a node share its processors.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
threads=$((${SLURM_CPUS_PER_TASK:-1} / per_node))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 \
  "${PYTHON:-python}" -m torch.distributed.run --nnodes="$nodes" --nproc-per-node="$per_node" \
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:$port" \
  -m letgo unlearn "$@" --resume &
child=$!
# In the background, for a trap is run only while the shell waits.
wait "$child"
