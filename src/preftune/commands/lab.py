"""The verb `lab`: run objectives on a problem, and the findings of both papers with their verdicts.

It is separate from the other verbs so that it does not import the model libraries.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from preftune.cli.early_names import check_lab_name
from preftune.cli.output import print_json, print_table
from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError, check_range
from preftune.lab.criteria import Criteria, Tier, load_criteria
from preftune.lab.experiments import grid_of
from preftune.lab.figure_specs import runs_shown
from preftune.lab.findings import FIRST_SEED, Findings, confirm, load_rates
from preftune.lab.loop import Loop
from preftune.lab.page import VERDICTS, write_findings
from preftune.lab.problem import load_problem, shipped_problems
from preftune.race.experiment_rates import tune_experiments
from preftune.race.halving import check_budget, check_tuning_seeds, plan_race
from preftune.race.lab_figure import write_lab_figure
from preftune.race.problem import LAST_SEED, LabRace, check_seeds, lab_contenders, run_lab_race
from preftune.storage import new_file, whole_file, write_json
from preftune.terminal import clean_terminal
from preftune.text import plural, value_text

LAB_USAGE = """\
usage: preftune lab ACTION [settings]

actions:
  list            the experiments with their claims, and the shipped problems
  show NAME       an experiment with its criteria (E4), or a shipped problem (r1)
  run PROBLEM     objectives on a problem: a shipped name or a YAML file      preftune lab run problem.yaml --objectives all
  all             the experiments of a tier on fresh seeds: a page, verdicts.json, figures
  tune            tune the learning rates of the experiments

preftune lab ACTION --help lists its settings.
"""


@dataclass(frozen=True, kw_only=True)
class LabWork:
    """How an action of the laboratory runs.

    Args:
        workers: number of processes.
        overwrite: replace an existing result.
    """

    workers: int = 2
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "workers", expected="1 or more")


@dataclass(frozen=True, kw_only=True)
class LabRunConfig(LabWork):
    """Compares objectives on one problem, as `preftune compare --problem` with the same settings, and writes
    JSON and a figure.

    Args:
        problem: a shipped problem, or a YAML file.
        objectives: "all", or methods separated by commas, as for `compare`: bnf,dpo(beta=0.5).
        output: the output folder.
        loop: how data are collected and used: B (collection), M (minibatch), T (epochs), C (completions).
        seeds: number of runs of each objective.
        first_seed: the first seed; tuning uses the seeds right below it.
        tuning_seeds: runs of each learning rate in a tuning round.
        rates: the grid of learning rates; by default four that fit the policy.
        halving: tune by successive halving; false tries every rate with all steps.
        json: print the result as JSON.
    """

    problem: str
    objectives: str = "all"
    output: str = "preftune-lab"
    loop: Loop = field(default_factory=Loop)
    seeds: int = 3
    first_seed: int = FIRST_SEED
    tuning_seeds: int = 1
    rates: list[float] = field(default_factory=list)
    halving: bool = True
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(seeds=self.seeds)
        check_tuning_seeds(self)
        race = self.lab_race().race
        smallest = float(int(self.loop.steps * race.smallest_share))
        check_budget(race, float(self.loop.steps), smallest, "loop.steps")

    def lab_race(self) -> LabRace:
        """The race of `preftune compare --problem` with the same settings."""
        found = lab_contenders(self.objectives, fewest=1)
        race = plan_race(
            [one.label for one in found],
            tuple(self.rates) or grid_of(self.problem),
            seeds=self.seeds,
            first_seed=self.first_seed,
            tuning_seeds=self.tuning_seeds,
            halving=self.halving,
        )
        return LabRace(problem=self.problem, contenders=found, race=race, loop=self.loop)


@dataclass(frozen=True, kw_only=True)
class LabListConfig:
    """The experiments and the shipped problems.

    Args:
        json: print JSON.
    """

    json: bool = False


@dataclass(frozen=True, kw_only=True)
class LabShowConfig:
    """An experiment with its criteria and, if `lab all` wrote them, its verdicts; or a shipped problem.

    Args:
        name: name of the experiment or problem.
        output: the output folder of `lab all`.
        json: print JSON.
    """

    name: str
    output: str = "preftune-lab"
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class LabAllConfig(LabWork):
    """The experiments of a tier on fresh seeds, tested against the stored criteria.

    Args:
        output: the output folder.
        tier: small (bandits and lengths, minutes), gpt (a small transformer), or all.
        only: ids of experiments of the tier; by default all.
        seeds: number of seeds.
        first_seed: the first seed; tuning used the seeds below 100.
        json: print the verdicts as JSON.
    """

    output: str = "preftune-lab"
    tier: Literal["small", "gpt", "all"] = "small"
    only: list[str] = field(default_factory=list)
    seeds: int = 20
    first_seed: int = FIRST_SEED
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(seeds=self.seeds)
        check_range(
            self,
            f"[100, {LAST_SEED}]",
            "first_seed",
            expected=f"100 to {LAST_SEED}: lower seeds were used for tuning",
        )
        known = load_criteria()
        for name in self.only:
            if name not in known:
                raise ConfigError("There is no such experiment", got=name, expected=", ".join(known))
            if self.tier not in ("all", known[name].tier):
                raise ConfigError(
                    f"{name} is not in the tier {self.tier}", do=f"Give --tier {known[name].tier}"
                )

    @property
    def experiments(self) -> list[str]:
        """The ids of those that are run."""
        return self.only or [
            name for name, entry in load_criteria().items() if self.tier in ("all", entry.tier)
        ]


@dataclass(frozen=True, kw_only=True)
class LabTuneConfig(LabWork):
    """Tunes the learning rates of a tier's experiments again and writes them as YAML.

    Args:
        output: the output file.
        tier: small or gpt; each has its own file.
        overwrite: replace an existing file.
    """

    output: str
    tier: Tier = "small"


def run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(LAB_USAGE, end="")
        return 0
    action = arguments[0]
    if action not in LAB_ACTIONS:
        raise ConfigError("There is no such action", got=action, expected=", ".join(LAB_ACTIONS))
    return LAB_ACTIONS[action](arguments[1:])


def _run(arguments: Sequence[str]) -> int:
    settings = parse_settings(LabRunConfig, arguments, "preftune lab run", positional="problem")
    with new_file(str(Path(settings.output) / "result.json"), settings.overwrite) as target:
        result = run_lab_race(settings.lab_race(), settings.workers, _teller("runs"))
        figure = write_lab_figure(result, target.with_name("result.svg"))
        write_json(target, result, "write the result", indent=1)  # last: where it is, all is
    if settings.json:
        print_json(result | {"figure": str(figure)})
        return 0
    _tell_result(result)
    print(clean_terminal(f"Numbers: {target}. Figure: {figure}."))
    return 0


def _tell_result(result: dict) -> None:
    rows = []
    entries = result["objectives"].items()
    for name, entry in sorted(
        entries, key=lambda item: -item[1]["measures"]["return"]["mean"][-1] if "measures" in item[1] else 1e9
    ):
        rate = "–" if entry["learning_rate"] is None else f"{entry['learning_rate']:g}"
        if "failed" in entry:
            rows.append((name, rate, entry["failed"]))
            continue
        reward, divergence = entry["measures"]["return"], entry["measures"]["kl"]
        interval = f"{value_text(reward['low'][-1])} to {value_text(reward['high'][-1])}"
        last = value_text(divergence["mean"][-1])
        rows.append((name, rate, value_text(reward["mean"][-1]), interval, last))
    headings = ("objective", "learning rate", "expected reward", "95% interval", "KL to the reference")
    print_table(headings, rows)


def _list(arguments: Sequence[str]) -> int:
    settings = parse_settings(LabListConfig, arguments, "preftune lab list")
    criteria, problems = load_criteria(), {name: load_problem(name) for name in shipped_problems()}
    if settings.json:
        print_json(
            {
                "experiments": {name: _criteria_json(entry) for name, entry in criteria.items()},
                "problems": {name: problem.about for name, problem in problems.items()},
            }
        )
        return 0
    experiments = [(name, entry.finding, entry.tier, entry.title) for name, entry in criteria.items()]
    print_table(("id", "finding", "tier", "title"), experiments)
    print_table(
        ("problem", "policy", "about"),
        [(name, problem.policy, problem.about) for name, problem in problems.items()],
    )
    return 0


def _show(arguments: Sequence[str]) -> int:
    settings = parse_settings(LabShowConfig, arguments, "preftune lab show", positional="name")
    criteria = load_criteria()
    if settings.name in shipped_problems():
        from preftune.lab.problem import PROBLEMS

        text = (PROBLEMS / f"{settings.name}.yaml").read_text(encoding="utf-8")
        if settings.json:
            print_json(yaml.safe_load(text))
        else:
            print(text, end="")
        return 0
    check_lab_name(settings.name, [*criteria, *shipped_problems()])
    entry = criteria[settings.name]
    verdict = _written_verdict(Path(settings.output) / VERDICTS, settings.name)
    if settings.json:
        print_json(_criteria_json(entry) | {"verdict": verdict})
        return 0
    print(f"{settings.name} ({entry.finding}): {entry.title}\n{entry.claim}")
    rows = []
    for i, clause in enumerate(entry.clauses):
        cells = [clause.text, clause.criterion]
        if verdict:
            found = verdict["clauses"][i]
            cells += [
                value_text(found["estimate"]),
                " to ".join(map(value_text, found["interval"])),
                found["verdict"],
            ]
        rows.append(cells)
    headings = ["clause", "criterion", *(["estimate", "95% interval", "verdict"] if verdict else [])]
    print_table(headings, rows)
    if entry.note:
        print(entry.note)
    print(
        f"Verdict: {verdict['verdict']}."
        if verdict
        else "There is no verdict yet: `preftune lab all` writes the verdicts."
    )
    return 0


def _written_verdict(path: Path, name: str) -> dict | None:
    if not path.is_file():
        return None
    try:
        return next(
            (
                entry
                for entry in json.loads(path.read_text(encoding="utf-8"))["verdicts"]
                if entry["id"] == name
            ),
            None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} contains no verdicts", got=str(error), do="Write it again with `preftune lab all`"
        ) from error


def _criteria_json(entry: Criteria) -> dict:
    return {
        "finding": entry.finding,
        "tier": entry.tier,
        "title": entry.title,
        "claim": entry.claim,
        "note": entry.note,
        "clauses": [{"text": c.text, "criterion": c.criterion, "runs": list(c.of)} for c in entry.clauses],
    }


def _all(arguments: Sequence[str]) -> int:
    settings = parse_settings(LabAllConfig, arguments, "preftune lab all")
    folder = Path(settings.output)
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    with new_file(str(folder / VERDICTS), settings.overwrite):
        found = confirm(seeds, settings.workers, _teller("runs"), runs_shown(), settings.experiments)
        page = write_findings(found, load_rates(), folder)
    if settings.json:
        print_json([outcome.as_dict() for outcome in found.outcomes])
        return 0
    _tell_findings(found)
    print(clean_terminal(f"{page} in {found.wall:.0f} seconds; as JSON: {folder / VERDICTS}."))
    return 0


def _tell_findings(found: Findings) -> None:
    rows = [
        (one.id, one.criteria.finding, one.criteria.title, one.verdict, f"{found.seconds[one.id]:.1f}")
        for one in found.outcomes
    ]
    print_table(("id", "finding", "title", "verdict", "CPU seconds"), rows)
    print(f"{plural(len(found.outcomes), 'experiment')} on {plural(len(found.seeds), 'seed')}.")


def _tune(arguments: Sequence[str]) -> int:
    settings = parse_settings(LabTuneConfig, arguments, "preftune lab tune", positional="output")
    with new_file(settings.output, settings.overwrite) as target:
        content = tune_experiments(settings.tier, settings.workers, _teller("runs"))
        with whole_file(target, "write the rates") as file:
            file.write_text(yaml.safe_dump(content, sort_keys=False, width=132), encoding="utf-8")
    print(clean_terminal(f"{plural(len(content['runs']), 'run')} tuned in {target}"))
    return 0


def _teller(what: str) -> Callable[[int, int], None]:
    """Progress on the error stream, if it is a terminal."""

    def tell(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(
                f"\r{done} of {total} {what}", end="\n" if done == total else "", file=sys.stderr, flush=True
            )

    return tell


LAB_ACTIONS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": _list,
    "show": _show,
    "run": _run,
    "all": _all,
    "tune": _tune,
}
