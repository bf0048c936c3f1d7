#!/bin/bash
#SBATCH --job-name=align-kd-dump
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=dump-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@60
#
# Writes a store by the tasks of a SLURM array, each a worker with one GPU: sbatch slurm-dump.sh
#
# The tasks need not run at the same time, and each takes shards of others when its own are done. A minute before the
# time limit SLURM sends SIGTERM, and the worker abandons its current shard. A preempted task is queued again and goes
# on; after the time limit submit the array once more. Any number of tasks completes what other ones began.
set -euo pipefail

srun alignkd dump "${CONFIG:-run.yaml}"
