#!/bin/bash
#SBATCH --job-name=align-kd-dump
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=dump-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#
# Writes a store by a Ray cluster on the machines of one SLURM job: sbatch slurm-ray.sh
#
# The first machine has the head of the cluster and the command that assigns the shards; every machine has workers, one
# per GPU. Ten minutes before the time limit, SLURM sends SIGUSR1 to this script: the current shards are finished, and
# the job is queued again and goes on. The time must be enough for a shard.
set -uo pipefail
set -m  # or commands in the background would ignore SIGINT
: "${CONFIG:=run.yaml}"
: "${GPUS:=4}"  # of each machine
export RAY_USAGE_STATS_ENABLED=0
# who can reach a cluster can run programs on it: only processes that know this token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))  # two jobs on one machine do not meet
machine=(--num-gpus "$GPUS" --num-cpus "${SLURM_CPUS_PER_TASK:-32}" --object-store-memory 100000000 --block)

trap 'kill $(jobs -p) 2>/dev/null' EXIT
srun --nodes 1 --ntasks 1 --nodelist "$head" \
  ray start --head --port "$port" --include-dashboard false "${machine[@]}" &
until ray health-check --address "$head:$port"; do
  kill -0 $! 2>/dev/null || exit 1  # the head has ended
  sleep 2
done
if ((SLURM_NNODES > 1)); then
  srun --nodes $((SLURM_NNODES - 1)) --ntasks $((SLURM_NNODES - 1)) --exclude "$head" \
    ray start --address "$head:$port" "${machine[@]}" &
fi

stopped=
command=
trap 'stopped=yes; [[ -z $command ]] || kill -INT "$command"' USR1
alignkd dump "$CONFIG" --ray --address "$head:$port" --gpus-per-worker 1 &
command=$!
wait "$command"
code=$?
while kill -0 "$command" 2>/dev/null; do  # the signal has ended the first `wait`
  wait "$command"
  code=$?
done
if [[ -n $stopped && $code -ne 0 ]]; then  # 0: the store was complete meanwhile
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
