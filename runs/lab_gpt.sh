#!/usr/bin/env bash
# The bandit on a small transformer (E11) on 5 fresh seeds, and the figures of docs/lab.md.
# usage: runs/lab_gpt.sh OUTPUT     (two minutes of one core)
set -euo pipefail
preftune lab all --tier gpt --seeds 5 --output "$1" --overwrite
here="$(dirname "$0")/../docs"
cp "$1/verdicts.json" "$here/lab_gpt_verdicts.json"
for figure in 1 2 3; do cp "$1/figures/E11-$figure.svg" "$here/figures/lab-E11-$figure.svg"; done
