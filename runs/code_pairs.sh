#!/usr/bin/env bash
# Pairs by tests: completions of small functions run against their tests in a sandbox, the best against the worst, DPO.
# usage: runs/code_pairs.sh OUTPUT [MODEL]     (planned for less than 30 minutes on 2 cores; needs bubblewrap)
# Functions and tests are in runs/small_functions.jsonl, of which the last third is held out.
# Sizes: COMPLETIONS, TOKENS, RATE. OUTPUT/rounds.json is the result: share of tests passed, pass@1 and pass@k.
set -euo pipefail
output=$1 model=${2:-smollm2-135m-instruct}
read -ra preftune <<< "${PREFTUNE:-preftune}"
all="$(dirname "$0")/small_functions.jsonl"
mkdir -p "$output"
head -n "${PROMPTS:-16}" "$all" > "$output/prompts.jsonl"
tail -n "${HELD:-8}" "$all" > "$output/held.jsonl"
"${preftune[@]}" iterate --prompts "$output/prompts.jsonl" --model "$model" --reward "${REWARD:-code(tests=tests, score=share)}" \
  --objective dpo --batch_size 4 --learning_rate "${RATE:-5e-6}" --rounds 1 --num_completions "${COMPLETIONS:-8}" \
  --max_new_tokens "${TOKENS:-96}" --eval_prompts "$output/held.jsonl" --eval_completions "${COMPLETIONS:-8}" \
  --output "$output/rounds" --json > "$output/rounds.json"
cat "$output/rounds.json"
