"""The verb `advise`: from a diagnosis, or from a problem of the laboratory, to what to train on and with
which objective.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from preftune.advice.advice import Advice, Recommendation, advise
from preftune.advice.evidence import Evidence, evidence_json, read_evidence
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError, check_range
from preftune.terminal import clean_terminal

TEXT_WIDTH = 100
HEADINGS = {
    "source": "Source of completions",
    "objective": "Objective",
    "collect": "What to collect or fix next",
}


FILL = ("dpo", "bnf", "ipo", "kto")
"""Objectives that join a pilot comparison when fewer are recommended: each learns from any preferences."""


@dataclass(frozen=True, kw_only=True)
class PilotOptions:
    """A small comparison of the recommended objectives, to decide by a measurement. `preftune compare` has
    all of its settings.

    Args:
        output: folder of its runs; empty for no comparison.
        data: the data, of which a part is used; a laboratory problem replaces the data.
        model: the initial policy.
        reward: scores own samples, if the advice is on-policy training.
        rows: number of rows of the data.
        steps: optimizer steps of a full run.
        seeds: final runs of each method.
        methods: number of objectives to compare.
        rates: learning rates to try; four by default.
    """

    output: str = ""
    data: str | None = None
    model: str = "smollm2-135m-instruct"
    reward: str | None = None
    rows: int = 200
    steps: int = 16
    seeds: int = 3
    methods: int = 3
    rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_range(self, "[10, inf)", "rows", prefix="race.")
        check_range(self, "[1, inf)", "steps", prefix="race.")
        check_range(self, "[2, inf)", "seeds", "methods", prefix="race.")
        if not self.output and any(
            getattr(self, one.name) != one.default for one in fields(self) if one.name != "rates"
        ):
            raise ConfigError(
                "A pilot comparison writes its runs to a folder",
                got="no race.output",
                do="Add --race.output FOLDER",
            )


@dataclass(frozen=True, kw_only=True)
class AdviseConfig:
    """Recommendations for a data set: the source of completions, the objective, what to collect next.

    Flags override the file.

    Args:
        diagnosis: JSON file of `preftune diagnose data --output`, or its evidence alone.
        problem: instead of a diagnosis, a shipped laboratory problem or a YAML file; its evidence is measured from
            samples.
        can_sample: whether own samples can be drawn in training.
        can_reward: whether a reward can score own samples.
        can_hold_reference: whether a reference can be scored.
        keep_length: whether answers must not grow longer although the data prefer longer answers.
        samples: budget of own samples.
        steps: budget of gradient steps.
        seed: seed of the problem's samples.
        json: print JSON.
        race: a pilot comparison that decides among the recommended objectives.
    """

    diagnosis: str | None = None
    problem: str | None = None
    can_sample: bool | None = None
    can_reward: bool | None = None
    can_hold_reference: bool | None = None
    keep_length: bool | None = None
    samples: int | None = None
    steps: int | None = None
    seed: int | None = None
    json: bool = False
    race: PilotOptions = field(default_factory=PilotOptions)

    def __post_init__(self) -> None:
        if (self.diagnosis is None) == (self.problem is None):
            raise ConfigError(
                "Advice needs a diagnosis or a problem",
                got="both" if self.problem else "neither",
                do="`preftune diagnose data DATA --output FILE` writes a diagnosis",
            )
        check_range(self, "[0, inf)", "samples", "steps")
        if self.seed is not None and (self.problem is None or self.seed < 0):
            raise ConfigError(
                "seed cannot be used", got=self.seed, expected="0 or more, and a problem to sample from"
            )
        if self.race.output and (self.race.data is None) == (self.problem is None):
            got, do = (
                ("none", "Add --race.data FILE")
                if self.problem is None
                else (self.race.data, "Leave out race.data")
            )
            raise ConfigError("A pilot comparison runs on data or on the problem", got=got, do=do)

    def evidence(self) -> Evidence:
        """As it is on file or measured, with the user's answers."""
        known = self._read() if self.diagnosis is not None else self._measured()
        return known.with_answers(
            can_sample=self.can_sample,
            can_reward=self.can_reward,
            can_hold_reference=self.can_hold_reference,
            keep_length=self.keep_length,
            samples=self.samples,
            steps=self.steps,
        )

    def _read(self) -> Evidence:
        path = Path(self.diagnosis or "")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"Cannot read the diagnosis {path}",
                got=getattr(error, "strerror", None) or str(error),
                do="`preftune diagnose data DATA --output FILE` writes one",
            ) from error
        return read_evidence(text, str(path))

    def _measured(self) -> Evidence:
        from preftune.lab.measured_evidence import (
            measure_evidence,
        )  # imports torch, which a diagnosis on file does without
        from preftune.lab.problem import load_problem

        problem = load_problem(self.problem or "")
        return measure_evidence(
            problem,
            groups=problem.prompts.train,
            can_reward=self.can_reward is not False,
            seed=self.seed or 0,
        )


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(AdviseConfig, arguments, "preftune advise", positional="diagnosis")
    evidence = settings.evidence()
    advice = advise(evidence)
    if settings.race.output:
        advice = after_race(advice, settings)
    if settings.json:
        print_json({"advice": advice.as_json(), "evidence": evidence_json(evidence)})
    else:
        _tell(advice, evidence)
    return 0


def after_race(advice: Advice, settings: AdviseConfig) -> Advice:
    """The advice with the objectives in the order of a pilot comparison of those that it recommends."""
    from preftune.data.options import DataOptions
    from preftune.lab.loop import Loop
    from preftune.progress import Reporter
    from preftune.race.options import (
        BudgetOptions,
        CompareConfig,
    )  # imports the trainer, which advice alone does without
    from preftune.race.run import compare

    pilot, own = settings.race, advice.source[0].choice == "on-policy"
    known = {written_objective(one): one for one in advice.objective}
    further = [name for name in FILL if name not in {one.choice for one in advice.objective}]
    known |= {name: Recommendation(choice=name, reason="", basis="") for name in further}
    raced = dict(list(known.items())[: pilot.methods])
    common: dict[str, Any] = dict(
        objectives=",".join(raced),
        output=pilot.output,
        budget=BudgetOptions(steps=pilot.steps),
        seeds=pilot.seeds,
        rates=pilot.rates,
    )
    if settings.problem is not None:
        config = CompareConfig(
            problem=settings.problem, loop=Loop(source="policy" if own else "data"), **common
        )
    else:
        source = {"source": "on-policy", "reward": pilot.reward} if own else {}
        config = CompareConfig(
            data=pilot.data,
            model=pilot.model,
            rows=DataOptions(max_rows=pilot.rows),
            keep_models="none",
            **source,
            **common,
        )
    result = compare(config, Reporter(quiet=settings.json))
    found = [
        replace(
            raced[row["method"]],
            reason=f"{_place(row)} {raced[row['method']].reason}".strip(),
            basis="; ".join(
                filter(None, [f"the pilot comparison in {pilot.output}", raced[row["method"]].basis])
            ),
        )
        for row in result["places"]
    ]
    left = [one for label, one in known.items() if label not in raced and one.basis]
    return replace(advice, objective=(*found, *left))


def written_objective(one: Recommendation) -> str:
    """An objective as `preftune compare` takes it."""
    inner = ",".join(f"{name}={value}" for name, value in one.settings.items())
    return f"{one.choice}({inner})" if inner else one.choice


def _place(row: Mapping[str, Any]) -> str:
    if row["failed"]:
        return "Failed in the pilot comparison."
    ended = f"Ended the pilot comparison at {_shown(row['mean']['mean'])}, " if row["mean"] else ""
    return f"{ended}{'tied best or best' if row['tied'] else 'behind the best'}."


def _tell(advice: Advice, evidence: Evidence) -> None:
    lines = []
    for name, heading in HEADINGS.items():
        recommended: tuple[Recommendation, ...] = getattr(advice, name)
        if not recommended:
            continue
        lines.append(heading)
        for place, one in enumerate(recommended, start=1):
            flag = "--objective." if name == "objective" else ""
            settings = [f"{flag}{key} {_shown(value)}" for key, value in one.settings.items()]
            lines.append("  ".join([f"  {place}. {one.choice}", *settings]))
            lines += textwrap.wrap(one.reason, TEXT_WIDTH, initial_indent="     ", subsequent_indent="     ")
            if one.evidence:
                lines.append(
                    f"     measured: {', '.join(f'{key} {_shown(value)}' for key, value in one.evidence.items())}"
                )
            lines.append(f"     rests on: {one.basis}")
        lines.append("")
    missing = [name for name in ("can_sample", "can_reward", "noise") if getattr(evidence, name) is None]
    if missing:
        lines.append(f"Unknown; the advice would be better with: {', '.join(missing)}.")
    print(clean_terminal("\n".join(lines)))


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{_shown(one)}" for key, one in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
