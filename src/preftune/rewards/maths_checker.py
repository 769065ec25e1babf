"""The process of the reward `maths`: a line of JSON {right, completion} in, 1.0, 0.0 or null out."""

import json
import logging
import re
import sys

_DELIMITED = re.compile(r"\$|\\boxed|\\\(|\\\[")


def compare_answers(right: str, completion: str) -> float | None:
    """Whether the completion's last expression equals the right one; None if the right one cannot be read."""
    from math_verify import parse, verify

    right = right.rpartition("####")[2].strip()
    gold = parse(right if _DELIMITED.search(right) else f"\\boxed{{{right}}}", parsing_timeout=None)  # type: ignore[arg-type]
    if not gold:
        return None
    answer = parse(completion, parsing_timeout=None)  # type: ignore[arg-type]
    return float(bool(answer) and verify(gold, answer, timeout_seconds=None))


def serve_checks() -> None:
    logging.disable()  # it warns that nothing limits its time: the other process does
    import math_verify  # noqa: F401  before it reports that it is ready

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(compare_answers(**json.loads(line))), flush=True)


if __name__ == "__main__":
    serve_checks()
