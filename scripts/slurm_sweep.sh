#!/usr/bin/env bash
# A sweep: one Slurm job for each point, and in it one process for each GPU. Needs pip install 'advtrain[slurm]'.
#
#   scripts/slurm_sweep.sh experiment=cifar10_trades_preact_resnet_18 data.root=/datasets seed=0,1,2 loss=trades,ikl
#   GPUS=4 scripts/slurm_sweep.sh hydra.launcher.partition=long experiment=cifar10_ikl_wrn_34_10 seed=0,1,2
#
# Every point is checked before the first job is submitted. The command waits for the jobs; ^C ends the waiting, not
# them. What a job prints is in runs/.sweep/.submitit/<job>/. Three minutes before its time limit a job saves its state
# and goes into the queue again, 20 times at most; preempted, as often as needed.
set -euo pipefail
exec python -m advtrain -m hydra/launcher=submitit_slurm \
    hydra.launcher.name=advtrain \
    hydra.launcher.gpus_per_node="${GPUS:-1}" \
    hydra.launcher.tasks_per_node="${GPUS:-1}" \
    hydra.launcher.cpus_per_task=8 \
    hydra.launcher.timeout_min=1440 \
    hydra.launcher.signal_delay_s=180 \
    hydra.launcher.max_num_timeout=20 \
    "$@"
