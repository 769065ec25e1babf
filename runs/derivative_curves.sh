#!/usr/bin/env bash
# The figure of docs/derivative_curves.md: a panel for each objective of the table.
# usage: runs/derivative_curves.sh     (less than a minute on 2 cores)
set -euo pipefail
cd "$(dirname "$0")/.."
preftune curves --output docs/figures/derivative-curves.svg
