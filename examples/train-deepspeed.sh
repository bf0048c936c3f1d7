#!/bin/bash
# Trains on several machines with DeepSpeed's launcher. Start it on one of them:
#
#     bash train-deepspeed.sh
#
# It needs pdsh, and ssh without a password to every machine of the hostfile; the same paths everywhere; and the
# configuration, the store, the images and train.output on a file system that all machines share.
#
# Without ssh, start it on every machine, with the place of the machine in the hostfile and the address of the first:
#
#     bash train-deepspeed.sh --no_ssh --node_rank 0 --master_addr machine-1     # on machine-1
#     bash train-deepspeed.sh --no_ssh --node_rank 1 --master_addr machine-1     # on machine-2
set -euo pipefail
: "${CONFIG:=run.yaml}"
: "${HOSTFILE:=hostfile}"

exec deepspeed --hostfile "$HOSTFILE" "$@" --no_local_rank --module alignkd.pipeline.cli train "$CONFIG"
