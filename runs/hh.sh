#!/usr/bin/env bash
# bnf and dpo on human-labeled dialogues: held-out margin and accuracy over 60 steps of 8 pairs.
# usage: runs/hh.sh hh_harmless_base_test.jsonl.gz OUTPUT     (about 40 minutes on 2 cores)
set -euo pipefail
data=$1 output=$2
for objective in bnf dpo; do
  preftune train --data "$data" --objective "$objective" --output "$output/$objective" \
    --max_rows 700 --max_length 512 --max_steps 60 --eval_every 15 --learning_rate 2e-6 --precision bf16
done
preftune report "$output/bnf" "$output/dpo" --output "$output/compare.html"
