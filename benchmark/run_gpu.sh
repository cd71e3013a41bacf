#!/usr/bin/env bash
# Runs the CUDA tests and all benchmarks on one GPU; results go to the given folder.
#   bash benchmark/run_gpu.sh benchmark/results/gpu
set -euo pipefail
out=${1:?'Usage: run_gpu.sh FOLDER'}
mkdir -p "$out"
here=$(dirname "$0")
python -m pytest -q "$here/../test/ops" "$here/../test/nn" "$here/../test/train" \
    "$here/../test/unlearn" "$here/../test/utils" "$here/../test/test_rehearsal.py" \
    "$here/../test/testing" | tail -n 30
for factor in 1 10 84; do  # 84 copies of Baby hold 10^7 interactions.
    python "$here/propagation.py" --device cuda --factor "$factor" \
        --json "$out/propagation_x$factor.json"
done
python "$here/training_epoch.py" --device cuda --json "$out/training_epoch_384.json"
python "$here/training_epoch.py" --device cuda --image-channels 4096 \
    --json "$out/training_epoch_4096.json"
python "$here/ranking.py" --device cuda --json "$out/ranking.json"
python "$here/scaling.py" --device cuda --json "$out/scaling.json" \
    --edges 100000 1000000 10000000 100000000
python "$here/run.py" --device cuda --models "$out/models" --results "$out/grid" \
    --only 'Baby/MGCN/user/0.05/999/original' 'Baby/MGCN/user/0.05/999/tru' \
    'Baby/MGCN/user/0.05/999/partial_retrain'
