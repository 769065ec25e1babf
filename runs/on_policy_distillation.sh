#!/usr/bin/env bash
# On-policy distillation: a tuned model is the teacher of the model that it was tuned from.
# usage: runs/on_policy_distillation.sh TEACHER OUTPUT [MODEL]     (planned for less than 30 minutes on 2 cores)
# The reward log(teacher / start) less log(policy / start) is log(teacher / policy): RLOO with beta 1 lowers
# KL(policy || teacher) on the policy's own samples. Sizes: STEPS, PROMPTS, TOKENS, RATE.
# OUTPUT/held-start.json and held-end.json have the reward log(teacher / policy) of held-out samples before and after: minus the KL divergence.
set -euo pipefail
teacher=$1 output=$2 model=${3:-smollm2-135m-instruct}
read -ra preftune <<< "${PREFTUNE:-preftune}"
all="$(dirname "$0")/../src/preftune/commands/demo_prompts.jsonl"
draw=(--num_completions 4 --max_new_tokens "${TOKENS:-48}")
mkdir -p "$output"
grep '"held_out": false' "$all" | sed -n "1,${PROMPTS:-96}p" > "$output/prompts.jsonl"
grep '"held_out": true' "$all" | sed -n "1,${HELD:-24}p" > "$output/held.jsonl"
[ -e "$output/run/final" ] ||
  "${preftune[@]}" train --source on-policy --data "$output/prompts.jsonl" --model "$model" --objective rloo \
    --objective.beta 1 --reward "implicit(policy='$teacher', reference='$model', beta=1)" --batch_size 4 \
    --max_steps "${STEPS:-24}" --epochs 9 "${draw[@]}" --learning_rate "${RATE:-5e-6}" --eval_fraction 0 --output "$output/run"
for name in start end; do
  policy=$([ "$name" = start ] && echo "$model" || echo "$output/run/final")
  [ -e "$output/$name.jsonl" ] ||
    "${preftune[@]}" sample --model "$policy" --prompts "$output/held.jsonl" "${draw[@]}" --output "$output/$name.jsonl"
  [ -e "$output/$name-scored.jsonl" ] ||
    "${preftune[@]}" reward "$output/$name.jsonl" --reward "implicit(policy='$teacher', reference='$policy', beta=1)" \
      --output "$output/$name-scored.jsonl" --json > "$output/held-$name.json"
  cat "$output/held-$name.json"
done
