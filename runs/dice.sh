#!/usr/bin/env bash
# DICE in two rounds: a policy tuned by DPO scores its own completions by its implicit reward, less a price on length.
# usage: runs/dice.sh OUTPUT [MODEL]     (planned for less than 30 minutes on 2 cores)
# The start is tuned on pairs of the model's own completions by the rule short_answer, which also measures held-out prompts.
# Sizes: PROMPTS, HELD, COMPLETIONS, TOKENS, RATE. After Ctrl-C the same command continues; OUTPUT/rounds.json is the result.
set -euo pipefail
output=$1 model=${2:-smollm2-135m-instruct}
read -ra preftune <<< "${PREFTUNE:-preftune}"
all="$(dirname "$0")/../src/preftune/commands/demo_prompts.jsonl"
draw=(--num_completions "${COMPLETIONS:-4}" --max_new_tokens "${TOKENS:-64}")
learn=(--objective dpo --batch_size 4 --learning_rate "${RATE:-5e-6}")
mkdir -p "$output"
grep '"held_out": false' "$all" | sed -n "1,${PROMPTS:-48}p" > "$output/prompts.jsonl"
grep '"held_out": true' "$all" | sed -n "1,${HELD:-24}p" > "$output/held.jsonl"
[ -e "$output/samples.jsonl" ] ||
  "${preftune[@]}" sample --model "$model" --prompts "$output/prompts.jsonl" "${draw[@]}" --output "$output/samples.jsonl"
[ -e "$output/scored.jsonl" ] ||
  "${preftune[@]}" reward "$output/samples.jsonl" --reward "${REWARD:-short_answer}" --output "$output/scored.jsonl"
[ -e "$output/pairs.jsonl" ] || "${preftune[@]}" select "$output/scored.jsonl" --rows.bad_rows skip --output "$output/pairs.jsonl"
[ -e "$output/start/final" ] ||
  "${preftune[@]}" train --data "$output/pairs.jsonl" --model "$model" "${learn[@]}" --eval_fraction 0 --output "$output/start"
"${preftune[@]}" iterate --prompts "$output/prompts.jsonl" --model "$output/start/final" --base "$model" \
  --reward "implicit(policy=last, reference=first)" --length_penalty auto --mix "$output/pairs.jsonl" --mix_share 0.5 \
  "${learn[@]}" "${draw[@]}" --rounds 2 --eval_prompts "$output/held.jsonl" --eval_reward "${REWARD:-short_answer}" --pass_reward 0.99 \
  --output "$output/rounds" --json > "$output/rounds.json"
cat "$output/rounds.json"
