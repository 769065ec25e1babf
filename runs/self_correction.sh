#!/usr/bin/env bash
# Self-correction: the model answers a sum, is asked to check its answer, and answers again; RLOO on the last answer.
# usage: runs/self_correction.sh OUTPUT [MODEL]     (planned for less than 30 minutes on 2 cores)
# Sums in words are written by this script. Sizes: STEPS, PROMPTS, TOKENS, RATE. OUTPUT/run/report.html is the result.
set -euo pipefail
output=$1 model=${2:-smollm2-135m-instruct}
read -ra preftune <<< "${PREFTUNE:-preftune}"
mkdir -p "$output"
names=(Ann Ben Cleo Dan Eva Finn) things=(pens apples coins books cards stones)
for ((k = 0; k < ${PROMPTS:-120}; k++)); do
  a=$((2 + k * 7 % 11)) b=$((1 + k * 5 % 9)) c=$((k % 3))
  echo "{\"prompt\": \"${names[k % 6]} has $a ${things[k / 6 % 6]}, gets $b more and gives $c away. How many are left? End with the number.\", \"answer\": \"$((a + b - c))\"}"
done > "$output/sums.jsonl"
[ -e "$output/run/final" ] ||
  "${preftune[@]}" train --source on-policy --data "$output/sums.jsonl" --model "$model" --environment self-check \
    --reward "${REWARD:-maths}" --objective rloo --batch_size 4 --max_steps "${STEPS:-24}" --epochs 9 --num_completions 4 \
    --max_new_tokens "${TOKENS:-64}" --rollout.total_tokens "${TOTAL:-256}" --learning_rate "${RATE:-3e-6}" \
    --eval_fraction 0.2 --output "$output/run"
"${preftune[@]}" report "$output/run"
