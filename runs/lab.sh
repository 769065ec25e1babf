#!/usr/bin/env bash
# Every experiment of the laboratory on 20 fresh seeds, and the figures of docs/lab.md and docs/lab_theory.md.
# usage: runs/lab.sh OUTPUT     (a few minutes on 2 cores)
set -euo pipefail
preftune lab all --output "$1" --overwrite
here="$(dirname "$0")/../docs"
cp "$1/verdicts.json" "$here/lab_verdicts.json"
for figure in 1 2 3 4; do cp "$1/figures/E9-$figure.svg" "$here/figures/lab-theory-$figure.svg"; done
for name in E1-1 E1-2 E8-1 E8-2 B3; do cp "$1/figures/$name.svg" "$here/figures/lab-$name.svg"; done
