#!/usr/bin/env bash
# Four methods on human-labeled dialogues under an equal budget, each tuned over two learning rates, then two seeds each.
# usage: runs/compare_smollm2.sh hh_harmless_base_test.jsonl.gz OUTPUT [further settings of compare, which win]
# Planned for about 30 minutes on 2 cores; after Ctrl-C the same command goes on. OUTPUT/comparison.html is the result.
set -euo pipefail
data=$1 output=$2
shift 2
preftune compare --data "$data" --objectives "bnf,dpo,ipo,simpo" --measure margin --steps 16 --seeds 2 --rates '[2e-6,6e-6]' \
  --max_rows 240 --max_length 256 --batch_size 4 --eval_fraction 0.1 --precision bf16 --output "$output" "$@"
