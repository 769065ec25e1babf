"""Small problems of every kind of policy, for tests."""

from preftune.lab.problem import Problem, problem_from


def tiny(policy: str, **changes: object) -> Problem:
    content: dict[str, object] = {
        "name": policy,
        "policy": policy,
        "size": 6,
        "reward": {"kind": "table", "table": [0.3, -1.0, 0.8, 0.1, 2.0, 0.5] + [0.2] * (policy == "hazard")},
        "reference": {"kind": "tilted", "tilt": -1.0},
        "data": {"completions": 4},
    }
    if policy in ("tabular", "mlp", "gpt"):
        content["contexts"] = {"train": 3} | ({"held_out": 5, "size": 4} if policy != "tabular" else {})
    if policy == "gpt":
        rewards = [0.3, -1.0, 0.8, 0.1, 2.0, 0.5, 0.2, -0.4, 1.1]
        content |= {"size": 9, "length": 2, "reward": {"kind": "table", "table": rewards}}
    if policy == "positions":
        content["length"] = 3
    return problem_from(content | changes, "a test")
