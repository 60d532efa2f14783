#!/usr/bin/env bash
# Trains and evaluates everything that docs/comparison.md compares: 8 losses and two of them with AWP, 3 seeds each.
#
#   scripts/comparison_cifar10.sh data.root=/datasets [more overrides]
#   JOBS=4 scripts/comparison_cifar10.sh …      that many runs at a time (2), each on one thread
#
# Run directories go to runs/comparison_cifar10. The same line again continues where it stopped: a finished run is only
# read, an interrupted one resumes. Two cores take about 100 minutes.
set -euo pipefail

for seed in 0 1 2; do
    for loss in standard pgd_at trades mart kl dkl ikl gkl; do
        echo "loss=$loss weight_perturbation=none seed=$seed"
    done
    for loss in trades ikl; do
        echo "loss=$loss weight_perturbation=awp weight_perturbation.start_epoch=1 seed=$seed"
    done
done | xargs -P "${JOBS:-2}" -L 1 \
    python -m advtrain experiment=comparison_cifar10 run_root=runs/comparison_cifar10 "$@"
