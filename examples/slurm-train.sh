#!/bin/bash
#SBATCH --job-name=align-kd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=train-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#
# Trains on several machines of a SLURM cluster: sbatch slurm-train.sh
#
# One task per machine; its torchrun starts a process per GPU. Five minutes before the time limit, SLURM sends SIGTERM
# to this script, which passes it on: the processes end after the current step with a checkpoint, and the job is queued
# again and resumes. Preempted and requeued jobs resume, too. An error, or the end of the run, ends the job.
set -uo pipefail
: "${CONFIG:=run.yaml}"
: "${PROCESSES:=4}"  # GPUs of each machine

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))  # two jobs on one machine do not meet

step=
stopped=
trap 'stopped=yes; [[ -z $step ]] || kill -TERM "$step"' TERM

# after a stop, torchrun ends with code 1 on every machine; one that is faster must not take the others with it
srun --kill-on-bad-exit=0 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$PROCESSES" --shutdown-timeout 240 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:$port" \
  -m alignkd.pipeline.cli train "$CONFIG" &
step=$!

wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do  # the signal has ended the first `wait`
  wait "$step"
  code=$?
done
if [[ -n $stopped && $code -ne 0 ]]; then  # 0: the run was finished meanwhile
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
