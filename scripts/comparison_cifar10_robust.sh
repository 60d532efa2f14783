#!/usr/bin/env bash
# Trains and evaluates what docs/distillation.md compares on CIFAR-10: RSLAD with KL and with IKL, and TRADES without a
# teacher, 3 seeds each.
#
#   scripts/comparison_cifar10_robust.sh data.root=/datasets [more overrides]
#   JOBS=4 scripts/comparison_cifar10_robust.sh …      that many runs at a time (2), each on one thread
#
# Run directories go to runs/comparison_cifar10_robust. The same line again continues where it stopped: a finished run is
# only read, an interrupted one resumes.
set -euo pipefail

for seed in 0 1 2; do
    echo "loss=rslad seed=$seed"
    echo "loss=rslad loss.divergence=ikl loss.wmse_weight=5 seed=$seed"
    echo "loss=trades teacher.source=null seed=$seed"
done | xargs -P "${JOBS:-2}" -L 1 \
    python -m advtrain experiment=comparison_cifar10_robust_distillation run_root=runs/comparison_cifar10_robust "$@"
