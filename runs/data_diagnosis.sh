#!/usr/bin/env bash
# The diagnoses that docs/data_diagnosis.md and LOG.md speak of: human-labeled dialogues and pairs of strong models.
# usage: runs/data_diagnosis.sh hh_harmless_base_test.jsonl.gz pairs_sharegpt_300.json OUTPUT     (a few minutes on 2 cores)
set -euo pipefail
mkdir -p "$3"
common=(--model smollm2-135m-instruct --reward brief --samples 2)
preftune diagnose data "$1" "${common[@]}" --max_prompts 24 --max_new_tokens 48 --max_length 600 --output "$3/hh.json"
preftune diagnose data "$2" "${common[@]}" --max_prompts 8 --output "$3/sharegpt.json"
