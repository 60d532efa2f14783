#!/usr/bin/env bash
# Trains and evaluates what docs/distillation.md compares on CIFAR-100: a teacher, then 5 losses with 3 seeds each.
#
#   scripts/comparison_cifar100.sh data.root=/datasets [more overrides]
#   JOBS=4 scripts/comparison_cifar100.sh …      that many runs at a time (2), each on one thread
#
# Run directories go to runs/comparison_cifar100. The same line again continues where it stopped: a finished run is only
# read, an interrupted one resumes.
set -euo pipefail
runs=runs/comparison_cifar100

python -m advtrain experiment=comparison_cifar100_teacher run_root=$runs "$@"
for seed in 0 1 2; do
    echo "loss=standard teacher.source=null seed=$seed"
    echo "loss=kd seed=$seed"
    for loss in dkd ikl_kd gkl_kd; do
        echo "loss=$loss loss.warmup_epochs=1 seed=$seed"  # published: 20 of 240 epochs
    done
done | xargs -P "${JOBS:-2}" -L 1 python -m advtrain experiment=comparison_cifar100_distillation run_root=$runs "$@"
