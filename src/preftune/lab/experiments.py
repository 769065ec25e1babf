"""The experiments: which runs each finding needs. The claims and their criteria are in
criteria.yaml.
"""

from dataclasses import replace

from preftune.lab.jobs import Plan
from preftune.lab.loop import Loop
from preftune.lab.problem import load_problem

BANDIT_COMPLETIONS = 10  # completions of a prompt in the bandits

# --- bandits ---


def _fresh(problem: str, method: str, prompts: int) -> Plan:
    """300 steps of 10 prompts, new prompts for each collection of `prompts` prompts: 3000 prompts are a single
    collection.
    """
    loop = Loop(
        source="policy",
        steps=300,
        collection=BANDIT_COMPLETIONS * prompts,
        minibatch=BANDIT_COMPLETIONS * 10,
        epochs=1,
        completions=BANDIT_COMPLETIONS,
        prompts="fresh",
    )
    return Plan(problem=problem, method=method, loop=loop)


def _reuse(method: str, epochs: int) -> Plan:
    """450 full steps on ten prompts, a new collection after `epochs` of them; 450 are a single collection."""
    return Plan(
        problem="r1", method=method, loop=Loop(source="policy", steps=450, epochs=epochs, eval_every=5)
    )


def _offline(problem: str, method: str, train: int) -> Plan:
    return Plan(problem=problem, method=method, train=train, loop=Loop(steps=200))


FRESH_SIZES = (10, 100, 1000, 3000)
REUSE = {"best-of-n": (1, 15, 450), "ipo": (1, 15, 450), "reinforce": (1, 15, 450), "ppo": (1, 15, 150)}
GPT_REUSE = (15, 450)
OFFLINE_R1 = (
    "pref-ft",
    "best-of-n",
    "best-of-n, negatives",
    "best-of-n, guarded",
    "ipo",
    "ipo, all pairs",
    "dpo",
    "rwr",
    "bnf",
)
OFFLINE_R2 = ("best-of-n", "best-of-n, negatives", "ipo", "dpo", "bnf")

# --- lengths ---

ONLINE = Loop(source="policy", steps=600, collection=64, minibatch=8, epochs=1, eval_every=50)


def _length(problem: str, method: str, *, completions: int = 4, **changes: int) -> Plan:
    """600 steps of 8 answers on a collection of 64; `completions` answers are compared with one another."""
    loop = replace(ONLINE, completions=completions, **changes)
    return Plan(problem=f"length_{problem}", method=method, loop=loop)


def _length_offline(problem: str, method: str) -> Plan:
    """The same steps on 2000 pairs."""
    loop = Loop(steps=600, collection=4000, minibatch=8, completions=2, eval_every=50)
    return Plan(problem=f"length_{problem}", method=method, loop=loop)


LENGTHS = {
    "min": ("on-dpo", "off-dpo", "pref-ft", "best-of-n", "ppo", "reinforce", "rwr"),
    "skew": ("on-dpo", "off-dpo", "pref-ft", "ppo", "rwr"),
    "mode": ("on-dpo", "off-dpo", "best-of-n", "ppo", "reinforce", "rwr"),
}


def _length_plan(problem: str, name: str) -> Plan:
    if name == "on-dpo":
        return _length(problem, "dpo, beta 0.1", completions=2)
    if name == "off-dpo":
        return _length_offline(problem, "dpo, beta 0.1")
    if name == "pref-ft":
        return _length_offline(problem, name)
    return _length(problem, "rwr, T 1" if name == "rwr" else name)


# --- BNF ---

SWEPT = {
    "B2": ("overlap", "log_ratio/best", ("bnf", "dpo", "simpo")),
    "B3": ("tokens", "return", ("bnf", "dpo", "ipo", "simpo", "kto")),
}
"""Experiments over a whole grid of learning rates: the problem, the measure and the methods."""
SWEEP_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ONE_SIDED = ("bnf", "bnf, dispreferred only", "kto, dispreferred only", "bnf, singles")


def _tokens(method: str, problem: str = "tokens") -> Plan:
    """Sequences of ten tokens, offline, on 100 prompts with 4 answers each."""
    return Plan(
        problem=problem,
        method=method,
        loop=Loop(steps=200, collection=400, minibatch=40, completions=4, eval_every=20),
    )


# --- the small transformer ---


def _gpt_plans() -> dict[str, Plan]:
    """The runs of E1 and E7 with their sizes, measured less often."""
    found = {}
    for method in ("best-of-n", "ipo"):
        for prompts in FRESH_SIZES:
            found[f"gpt {method} B={prompts}"] = _fresh("gpt_r1", method, prompts)
        for epochs in GPT_REUSE:
            loop = Loop(source="policy", steps=450, epochs=epochs, eval_every=25)
            found[f"gpt {method} T={epochs}"] = Plan(problem="gpt_r1", method=method, loop=loop)
    return found


def plans() -> dict[str, Plan]:
    """Every run of the findings by its name."""
    return {name: plan for made in PLANS.values() for name, plan in made().items()}


def _small_plans() -> dict[str, Plan]:
    """Bandits and lengths; several experiments may look at the same run."""
    found = {}
    for problem in ("r1", "r2"):
        for method in ("best-of-n", "ipo"):
            for prompts in FRESH_SIZES:
                found[f"{problem} {method} B={prompts}"] = _fresh(problem, method, prompts)
    for method, all_epochs in REUSE.items():
        for epochs in all_epochs:
            found[f"r1 {method} T={epochs}"] = _reuse(method, epochs)
    for method in OFFLINE_R1:
        found[f"r1 {method} offline"] = _offline("r1", method, 100)
    for method in OFFLINE_R2:
        found[f"r2 {method} offline"] = _offline("r2", method, 10)
    found["r1 best-of-n offline n=5"] = _offline("r1", "best-of-n", 5)
    for train in (5, 10, 500):
        found[f"r1 ipo offline n={train}"] = _offline("r1", "ipo", train)
    for problem, names in LENGTHS.items():
        for name in names:
            found[f"{problem} {name}"] = _length_plan(problem, name)
    for method in ("best-of-n", "reinforce", "rwr"):
        found[f"min {method} B=4800"] = replace(
            _length_plan("min", method), loop=replace(ONLINE, completions=4, collection=4800)
        )
    found["min on-dpo B=4800"] = replace(
        _length_plan("min", "on-dpo"), loop=replace(ONLINE, completions=2, collection=4800)
    )
    for method in ("best-of-n", "ppo", "rwr"):
        found[f"min {method} T=8"] = replace(
            _length_plan("min", method), loop=replace(ONLINE, completions=4, epochs=8)
        )
    for method in ONE_SIDED:
        found[f"tokens {method}"] = _tokens(method)
    return found


PLANS = {"small": _small_plans, "gpt": _gpt_plans}
"""By tier."""
NETWORK_GRIDS = {"mlp": (1e-3, 3e-3, 1e-2, 3e-2), "gpt": (3e-4, 1e-3, 3e-3, 1e-2)}
TABLE_GRID = (0.03, 0.1, 0.3, 1.0)


def grid_of(problem: str) -> tuple[float, ...]:
    """Learning rates that suit the policy: the same number for each method and setting."""
    return NETWORK_GRIDS.get(load_problem(problem).policy, TABLE_GRID)


def sweep_plan(experiment: str, method: str) -> Plan:
    """What the learning rate is swept on."""
    return _tokens(method, SWEPT[experiment][0])
