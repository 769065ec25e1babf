#!/usr/bin/env bash
# Weights kept in bf16 and rounded by chance, against weights in fp32: held-out margins and peak memory of the same dpo run.
# usage: runs/bf16_weights.sh hh_harmless_base_test.jsonl.gz OUTPUT     (some 20 minutes on 2 cores)
set -euo pipefail
data=$1 output=$2
for weights in fp32 bf16; do
  run=(preftune train --data "$data" --objective dpo --output "$output/$weights" --max_rows 200 --max_length 384 --max_steps 16
       --eval_every 8 --learning_rate 5e-6 --precision bf16 --optim.weights "$weights")
  "${run[@]}" --dry-run
  "${run[@]}"
done
