#!/bin/bash
# Trains on several machines with torchrun. Start it on every one of them, with the name or address of one of them:
#
#     bash train-torchrun.sh machine-1
#
# The configuration, the store, the images and train.output must be on a file system that all machines share.
set -euo pipefail
head=${1:?give the name or address of one machine, the same on all}
: "${CONFIG:=run.yaml}"
: "${NODES:=2}"      # machines
: "${PROCESSES:=4}"  # GPUs of each machine
: "${RESTARTS:=0}"   # how often torchrun starts all processes again after one has failed; each time they resume
: "${PORT:=29500}"   # free on that machine

exec torchrun \
  --nnodes "$NODES" --nproc-per-node "$PROCESSES" --max-restarts "$RESTARTS" --shutdown-timeout 240 \
  --rdzv-id align-kd --rdzv-backend c10d --rdzv-endpoint "$head:$PORT" \
  -m alignkd.pipeline.cli train "$CONFIG"
