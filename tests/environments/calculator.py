"""A calculator as an environment, and what a tiny model learns to call it from."""

import re
from collections.abc import Mapping
from typing import Any

SUMS = [(a, b) for a in (1, 2, 3) for b in (4, 5)]


def question(a: int, b: int) -> dict[str, Any]:
    return {"prompt": f"{a}+{b}?", "answer": str(a + b)}


QUESTIONS = [question(a, b) for a, b in SUMS]
TRAJECTORIES = [
    {
        "prompt": f"{a}+{b}?",
        "label": True,
        "completion": [
            {"role": "assistant", "content": f"calc {a}+{b}"},
            {"role": "tool", "content": str(a + b)},
            {"role": "assistant", "content": str(a + b)},
        ],
    }
    for a, b in SUMS
]


class Calculator:
    """Computes "calc A+B"; any other answer ends the rollout, and is worth 1 if it is right."""

    def reset(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"answer": row["answer"], "calls": 0}

    def step(self, state: dict[str, Any], text: str):
        asked = re.fullmatch(r"calc (\d)\+(\d)", text.strip())
        if asked:
            state["calls"] += 1
            return {"role": "tool", "content": str(int(asked[1]) + int(asked[2]))}, None
        return None, float(text.strip() == state["answer"])
