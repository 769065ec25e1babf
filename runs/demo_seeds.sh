#!/usr/bin/env bash
# The demo over three seeds: does the held-out reward improve every time?
# usage: runs/demo_seeds.sh OUTPUT     (about 20 minutes on 2 cores)
set -euo pipefail
for seed in 0 1 2; do
  preftune demo --seed "$seed" --output "$1/seed-$seed" --json > "$1.seed-$seed.json"
done
