"""Write the value and gradient of every objective on fixed random batches to a file, bit for bit. Not
collected by pytest.

    python tests/fingerprints.py OUTPUT.json

Two files from two commits are equal if and only if no objective changed by a single bit in between.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from preftune.objectives.contracts.steps import loss_and_gradient, random_step
from tests.contracts.variants import ALL, IDS

SEEDS = range(5)


def as_hex(values: Tensor) -> list[str]:
    """The exact bits of fp64 numbers."""
    return [float(value).hex() for value in values.detach().double().flatten()]


def fingerprint() -> dict[str, list[dict[str, list[str]]]]:
    """Objective variant -> per seed its loss and gradient."""
    found = {}
    for identifier, (_, objective) in zip(IDS, ALL, strict=True):
        rows = []
        for seed in SEEDS:
            loss, gradient = loss_and_gradient(random_step(seed), objective)
            rows.append({"loss": as_hex(loss), "gradient": as_hex(gradient)})
        found[identifier] = rows
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output: Path = parser.parse_args(arguments).output
    torch.set_num_threads(1)
    output.write_text(json.dumps(fingerprint(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
