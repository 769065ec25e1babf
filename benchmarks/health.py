"""How often health verdicts are right: runs that should be fine, and runs broken on purpose, on a tiny model.

    python benchmarks/health.py [--seeds 10 11 12] [--only NAME ...] [--json]

Every scenario is trained once per seed (data, model and sampling all follow from the seed). Prints for each
condition how many healthy runs it alarmed (watch, act) and how many of the runs broken in its way it caught.
Thresholds were set by looking at seeds 0 and 1; the default seeds are others.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tiny model is that of the tests

from tests.folders import save_tiny_model, tiny_config, write_rows

from preftune.health.conditions import CONDITIONS
from preftune.model.reference import ReferenceOptions
from preftune.objectives import OBJECTIVES
from preftune.objectives.dpo import DPO
from preftune.objectives.rloo import RLOO
from preftune.objectives.sft import SFT
from preftune.sampling.sample import SampleOptions
from preftune.train.loop import train
from preftune.train.onpolicy.collect import CollectOptions

SEEDS = (10, 11, 12)
RATE = 1e-3
LETTERS = "abcdefghijklmnopqrstuvwxyz"
REWARDS = '''
def taste(prompts, completions, **columns):
    """Share of vowels, rounded to quarters: noisy, and not a matter of length."""
    return [round(4 * sum(c in "aeiou" for c in text) / max(len(text), 1)) / 4 for text in completions]

def vowels(prompts, completions, **columns):
    return [sum(c in "e" for c in text) / max(len(text), 1) for text in completions]

def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]

def seldom(prompts, completions, **columns):
    """Nearly always the same."""
    return [float(text.startswith("zq")) for text in completions]
'''


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`caught_by` are the conditions that should see it; none for a run that should be fine."""

    caught_by: tuple[str, ...] = ()
    rows: Callable[[np.random.Generator], list[dict[str, str]]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    base: str = "random"  # or "short" or "chosen": what the model learned before


def words(random: np.random.Generator, low: int = 4, high: int = 16) -> str:
    return "".join(random.choice(list(LETTERS), int(random.integers(low, high))))


Rows = Callable[[np.random.Generator], list[dict[str, str]]]


def rows_of(make: Callable[[np.random.Generator], tuple[str, str]], num: int = 64) -> Rows:
    def rows(random: np.random.Generator) -> list[dict[str, str]]:
        pairs = [make(random) for _ in range(num)]
        return [{"prompt": f"{words(random)}?", "chosen": one, "rejected": two} for one, two in pairs]

    return rows


def polite(random: np.random.Generator) -> tuple[str, str]:
    """A difference that carries over to other pairs, and has nothing to do with length."""
    return f"It is {words(random)}.", f"No! {words(random)} so?"


def alike(random: np.random.Generator) -> tuple[str, str]:
    body = words(random, 24, 32)
    return f"{body} yes.", f"{body} not."


def longer(random: np.random.Generator) -> tuple[str, str]:
    """The longer of two random texts."""
    one, two = words(random, 4, 24), words(random, 4, 24)
    return (one, two + "x") if len(one) > len(two) + 1 else (two + "xx", one)


def coin(random: np.random.Generator) -> tuple[str, str]:
    """Nothing to learn but the pairs themselves."""
    return words(random, 10, 14), words(random, 10, 14)


def inside(random: np.random.Generator) -> tuple[str, str]:
    """The same words in two orders: what pushes one down pushes the other."""
    parts = [words(random, 3, 6) for _ in range(4)]
    return " ".join(parts), " ".join(reversed(parts))


def one_word(random: np.random.Generator) -> tuple[str, str]:
    """The two differ in one word within a text that they share."""
    before, after = words(random, 8, 12), words(random, 8, 12)
    return f"{before} {words(random, 3, 6)} {after}", f"{before} {words(random, 3, 6)} {after}"


def same_answer(random: np.random.Generator) -> tuple[str, str]:
    return "It is as it is.", words(random, 12, 20)


def on_policy(reward: str, **more: Any) -> dict[str, Any]:
    collect = CollectOptions(**more.pop("collect", {}))
    return {
        "source": "on-policy",
        "reward": reward,
        "objective": RLOO(beta=0.05),
        "batch_size": 6,
        "epochs": 4.0,
        "sampling": SampleOptions(num_completions=4, max_new_tokens=32),
        "collect": collect,
        "optim": {"learning_rate": RATE / 2},
    } | more


def offline(name: str, rate: float = RATE, **more: Any) -> dict[str, Any]:
    return {
        "objective": OBJECTIVES[name](),
        "batch_size": 8,
        "epochs": 5.0,
        "optim": {"learning_rate": rate},
    } | more


GOOD = rows_of(polite)
SCENARIOS: dict[str, Scenario] = {
    **{
        f"healthy {name}": Scenario(rows=GOOD, settings=offline(name))
        for name in ("dpo", "bnf", "ipo", "kto", "simpo", "rpo", "sft", "bradley-terry")
    },
    "healthy rloo": Scenario(rows=GOOD, settings=on_policy("taste"), base="short"),
    "healthy dpo on own samples": Scenario(
        rows=GOOD,
        settings=on_policy("taste", objective=DPO(), optim={"learning_rate": RATE / 5}),
        base="short",
    ),
    "healthy bnf on own samples": Scenario(
        rows=GOOD,
        settings=on_policy("taste", objective=OBJECTIVES["bnf"](), optim={"learning_rate": RATE / 5}),
        base="short",
    ),
    "rate x100, dpo": Scenario(
        caught_by=("learning-rate-high",), rows=GOOD, settings=offline("dpo", 100 * RATE)
    ),
    "rate x1000, bnf": Scenario(
        caught_by=("learning-rate-high",), rows=GOOD, settings=offline("bnf", 1000 * RATE)
    ),
    "rate x100, ipo": Scenario(
        caught_by=("learning-rate-high",), rows=GOOD, settings=offline("ipo", 100 * RATE)
    ),
    "rate x100, rloo": Scenario(
        caught_by=("learning-rate-high", "kl"),
        rows=GOOD,
        settings=on_policy("taste", optim={"learning_rate": 100 * RATE}),
        base="short",
    ),
    "rate / 10000, dpo": Scenario(
        caught_by=("learning-rate-low",), rows=GOOD, settings=offline("dpo", 1e-4 * RATE)
    ),
    "rate / 10000, rloo": Scenario(
        caught_by=("learning-rate-low",),
        rows=GOOD,
        settings=on_policy("taste", optim={"learning_rate": 1e-4 * RATE}),
        base="short",
    ),
    "near-identical pairs": Scenario(
        caught_by=("identical-pairs",), rows=rows_of(alike), settings=offline("dpo")
    ),
    "the longer is chosen": Scenario(
        caught_by=("length-margins",), rows=rows_of(longer), settings=offline("dpo", 3 * RATE, epochs=10.0)
    ),
    "pairs without a rule": Scenario(
        caught_by=("overfitting", "saturated"),
        rows=rows_of(coin),
        settings=offline("dpo", 4 * RATE, epochs=20.0),
    ),
    "the same words in two orders": Scenario(
        caught_by=("displacement",),
        rows=rows_of(inside),
        settings=offline("dpo", 2 * RATE, epochs=20.0),
        base="chosen",
    ),
    "one word differs": Scenario(
        caught_by=("identical-pairs", "overfitting", "saturated"),
        rows=rows_of(one_word),
        settings=offline("dpo", 4 * RATE, epochs=20.0),
    ),
    "chosen known before": Scenario(
        caught_by=("rejected-only",), rows=rows_of(same_answer), settings=offline("dpo"), base="chosen"
    ),
    "another model as reference": Scenario(
        caught_by=("reference",),
        rows=GOOD,
        settings=offline("dpo", reference=ReferenceOptions(model="OTHER")),
    ),
    "rewards all but equal": Scenario(
        caught_by=("equal-rewards",), rows=GOOD, settings=on_policy("seldom"), base="short"
    ),
    "length as the reward": Scenario(
        caught_by=("length", "reward-hacking"),
        rows=GOOD,
        settings=on_policy("length", objective=RLOO(beta=0.0), optim={"learning_rate": 4 * RATE}),
        base="short",
    ),
    "one letter as the reward": Scenario(
        caught_by=("entropy", "kl", "reward-hacking"),
        rows=GOOD,
        settings=on_policy("vowels", objective=RLOO(beta=0.0), optim={"learning_rate": 6 * RATE}),
        base="short",
    ),
    "samples of long ago": Scenario(
        caught_by=("stale-samples",),
        rows=GOOD,
        settings=on_policy(
            "taste",
            objective=DPO(),
            collect={"prompts": 24, "epochs": 20},
            epochs=1.0,
            optim={"learning_rate": RATE / 5},
        ),
        base="short",
    ),
}


def base_model(scenario: Scenario, seed: int, folder: Path, data: str) -> Path:
    """Random weights, or these after they have learned the chosen completions (short ones that end)."""
    start = save_tiny_model(folder / "model", seed=seed)
    if scenario.base == "random":
        return start
    steps = {"short": 120, "chosen": 150}[scenario.base]
    config = tiny_config(
        start,
        data,
        folder / "base",
        objective=SFT(),
        batch_size=16,
        epochs=1000.0,
        max_steps=steps,
        eval_fraction=0.0,
        optim={"learning_rate": 3e-3},
    )
    found = train(config, quiet=True).final
    assert found is not None
    return found


def judged(name: str, scenario: Scenario, seed: int) -> dict[str, dict[str, Any]]:
    """The findings in health.json of every condition that could be checked, at the end of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = write_rows(folder / "pairs.jsonl", scenario.rows(np.random.default_rng([seed, len(name)])))
        (folder / "rewards.py").write_text(REWARDS)
        model = base_model(scenario, seed, folder, data)
        settings: dict[str, Any] = dict(scenario.settings)
        if "reward" in settings:
            settings["reward"] = f"{folder / 'rewards.py'}:{settings['reward']}"
        if "reference" in settings:
            other = save_tiny_model(folder / "other", seed=seed + 1000, std=0.3)
            settings["reference"] = ReferenceOptions(model=str(other))
        optim = {"schedule": "linear"} | settings.pop("optim")
        config = tiny_config(model, data, folder / "run", seed=seed, optim=optim, **settings)
        try:
            train(config, quiet=True)
        except Exception as error:
            return {"stopped": {"level": "act", "value": 0.0, "evidence": str(error)[:200]}}
        found = json.loads((folder / "run" / "health.json").read_text())["findings"]
    return {one["id"]: {name: one[name] for name in ("level", "value", "evidence")} for one in found}


def table(results: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    lines = [
        "| condition | healthy runs checked | watch | act | broken runs of this kind | detected (watch or act) | act |",
        "|---|---|---|---|---|---|---|",
    ]
    healthy = [run for name, runs in results.items() if not SCENARIOS[name].caught_by for run in runs]
    for condition in CONDITIONS:
        judged = [run[condition.id] for run in healthy if condition.id in run]
        broken = [
            run.get(condition.id, "ok")
            for name, runs in results.items()
            if condition.id in SCENARIOS[name].caught_by
            for run in runs
        ]
        lines.append(
            f"| {condition.id} | {len(judged)} | {judged.count('watch')} | {judged.count('act')} | {len(broken)} | "
            f"{len(broken) - broken.count('ok')} | {broken.count('act')} |"
        )
    caught = [
        any(run.get(one, "ok") != "ok" for one in SCENARIOS[name].caught_by) or "stopped" in run
        for name, runs in results.items()
        if SCENARIOS[name].caught_by
        for run in runs
    ]
    alarmed = [level for run in healthy for level in [max(run.values(), key=["ok", "watch", "act"].index)]]
    lines += [
        "",
        "| runs | number | result |",
        "|---|---|---|",
        f"| healthy | {len(healthy)} | {alarmed.count('watch')} with a watch at most, {alarmed.count('act')} with an act |",
        f"| broken | {len(caught)} | {sum(caught)} detected as intended |",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    runs = {}
    for name in settings.only:
        runs[name] = [judged(name, SCENARIOS[name], seed) for seed in settings.seeds]
        raised = ({k: one["level"] for k, one in run.items() if one["level"] != "ok"} for run in runs[name])
        print(name, *raised, file=sys.stderr, flush=True)
    levels = {
        name: [{k: one["level"] for k, one in run.items()} for run in found] for name, found in runs.items()
    }
    print(json.dumps({"runs": runs, "seeds": settings.seeds}) if settings.json else table(levels))


if __name__ == "__main__":
    main()
