"""Which runs each experiment's figure shows."""

from dataclasses import replace

from preftune.lab.experiments import FRESH_SIZES, REUSE
from preftune.lab.figures import Picture


def _sizes(problem: str, method: str, name: str = "") -> Picture:
    runs = tuple(f"{problem} {method} B={size}" for size in FRESH_SIZES)
    labels = tuple(f"{size} prompts" for size in FRESH_SIZES)
    return Picture(title=f"{method} on {name or problem.upper()}", runs=runs, labels=labels)


def _reuse(method: str) -> Picture:
    runs = tuple(f"r1 {method} T={epochs}" for epochs in REUSE[method])
    return Picture(title=f"{method}", runs=runs, labels=tuple(f"T = {epochs}" for epochs in REUSE[method]))


def _offline(problem: str, *methods: str, measure: str = "return", title: str = "") -> Picture:
    runs = tuple(f"{problem} {method} offline" for method in methods)
    return Picture(title=title or f"offline on {problem.upper()}", runs=runs, labels=methods, measure=measure)


def _lengths(problem: str, *names: str, measure: str = "length") -> Picture:
    return Picture(
        title=f"{problem} length",
        runs=tuple(f"{problem} {name}" for name in names),
        labels=names,
        measure=measure,
    )


DATA_SIZES = ("5", "10", "", "500")
BY_PROMPTS = tuple("r1 ipo offline" + (f" n={size}" if size else "") for size in DATA_SIZES)
PROMPT_LABELS = tuple(f"{size or 100} prompts" for size in DATA_SIZES)

PICTURES: dict[str, tuple[Picture, ...]] = {
    "E1": (_sizes("r1", "best-of-n"), _sizes("r1", "ipo")),
    "X1": (_sizes("r1", "best-of-n"), _sizes("r1", "ipo")),
    "E2": (_sizes("r2", "best-of-n"), _sizes("r2", "ipo")),
    "E3": (_reuse("best-of-n"), _reuse("ipo"), _reuse("reinforce")),
    "X2": tuple(
        replace(_reuse(method), over="reward_queries", log=True)
        for method in ("best-of-n", "ipo", "reinforce")
    ),
    "E4": (_offline("r1", "pref-ft", "best-of-n", "ipo", "dpo"),),
    "E5": (_offline("r1", "best-of-n", "best-of-n, negatives", "best-of-n, guarded"),),
    "E6": (_offline("r2", "best-of-n", "best-of-n, negatives", "ipo", "dpo", "bnf"),),
    "E7": (
        Picture(
            title="on-policy (T = 15) and offline (T = 450)",
            labels=("best-of-n on-policy", "ipo on-policy", "best-of-n offline", "ipo offline"),
            runs=("r1 best-of-n T=15", "r1 ipo T=15", "r1 best-of-n T=450", "r1 ipo T=450"),
        ),
    ),
    "E8": (
        Picture(
            title="ipo on R1, training prompts",
            runs=BY_PROMPTS,
            labels=PROMPT_LABELS,
            measure="log_ratio/best",
        ),
        Picture(title="ipo on R1, held-out prompts", runs=BY_PROMPTS, labels=PROMPT_LABELS),
    ),
    "E10": (_lengths("min", "on-dpo", "off-dpo", "pref-ft", "best-of-n", "ppo", "reinforce", "rwr"),),
    "L2": (
        Picture(
            title="min length: B = 64 and a single collection",
            measure="length",
            kind="points",
            runs=tuple(
                f"min {m}{b}" for m in ("on-dpo", "best-of-n", "reinforce", "rwr") for b in ("", " B=4800")
            ),
            labels=tuple(
                f"{m}, B {b}" for m in ("on-dpo", "best-of-n", "reinforce", "rwr") for b in (64, 4800)
            ),
        ),
    ),
    "L3": (
        _lengths("mode", "on-dpo", "off-dpo", "best-of-n", "ppo", "reinforce", "rwr", measure="distance"),
    ),
    "L4": (
        Picture(
            title="min length: T = 1 and T = 8",
            measure="length",
            over="reward_queries",
            log=True,
            runs=tuple(f"min {m}{t}" for m in ("best-of-n", "ppo", "rwr") for t in ("", " T=8")),
            labels=tuple(f"{m}, T {t}" for m in ("best-of-n", "ppo", "rwr") for t in (1, 8)),
        ),
    ),
    "E11": (
        _sizes("gpt", "best-of-n", "R1, transformer"),
        _sizes("gpt", "ipo", "R1, transformer"),
        Picture(
            title="on-policy (T = 15) and offline (T = 450)",
            labels=("best-of-n on-policy", "ipo on-policy", "best-of-n offline", "ipo offline"),
            runs=("gpt best-of-n T=15", "gpt ipo T=15", "gpt best-of-n T=450", "gpt ipo T=450"),
        ),
    ),
    "E12": (
        _offline("r1", "pref-ft", "dpo", measure="margin", title="offline on R1, training prompts"),
        _offline("r1", "pref-ft", "dpo", measure="log_ratio/best", title="offline on R1, training prompts"),
    ),
    "Xa": (_offline("r1", "rwr", "ipo", "dpo", "best-of-n"),),
    "Xb": (_reuse("ppo"),),
    "Xd": (_offline("r1", "ipo", "ipo, all pairs", "best-of-n"),),
    "Xf": (
        Picture(
            title="on-policy, T = 1", runs=("r1 best-of-n T=1", "r1 ipo T=1"), labels=("best-of-n", "ipo")
        ),
        Picture(
            title="on-policy, T = 1",
            runs=("r1 best-of-n T=1", "r1 ipo T=1"),
            labels=("best-of-n", "ipo"),
            measure="entropy",
        ),
    ),
    "Xc": (
        Picture(
            title="five prompts",
            measure="margin",
            runs=("r1 best-of-n offline n=5", "r1 ipo offline n=5"),
            labels=("best-of-n", "ipo"),
        ),
    ),
    "Xe": (_offline("r1", "best-of-n", "best-of-n, negatives", "best-of-n, guarded"),),
    "Xg": (_lengths("skew", "on-dpo", "off-dpo", "pref-ft", "ppo", "rwr"),),
    "Xi": (_lengths("min", "on-dpo", "off-dpo", "ppo"),),
    "B1": (
        Picture(
            title="one-sided data",
            measure="kl",
            runs=("tokens bnf", "tokens bnf, dispreferred only", "tokens kto, dispreferred only"),
            labels=("bnf, both sides", "bnf, dispreferred only", "kto, dispreferred only"),
        ),
        Picture(
            title="one-sided data",
            runs=(
                "tokens bnf",
                "tokens bnf, dispreferred only",
                "tokens kto, dispreferred only",
                "tokens bnf, singles",
            ),
            labels=("bnf, both sides", "bnf, dispreferred only", "kto, dispreferred only", "bnf, singles"),
        ),
    ),
    "B4": (_offline("r1", "bnf", "pref-ft", "best-of-n"),),
    "B5": (_offline("r1", "bnf", "ipo", "dpo"),),
}


def runs_shown() -> dict[str, tuple[str, ...]]:
    """The runs of each experiment's figure."""
    return {name: tuple(run for panel in panels for run in panel.runs) for name, panels in PICTURES.items()}
