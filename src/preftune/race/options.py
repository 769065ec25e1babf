"""Settings of `compare`: what methods race on, how far, and what is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from preftune.cli.model_settings import Precision
from preftune.data.options import DataOptions
from preftune.errors import ConfigError, check_range, refuse_idle
from preftune.lab.experiments import grid_of
from preftune.lab.loop import Loop
from preftune.model.adapters import LoraOptions
from preftune.model.layout import LayoutOptions
from preftune.model.reference import REFERENCE_SCORES, ReferenceOptions
from preftune.model.whole_model import LoadOptions
from preftune.objectives import Objective
from preftune.race.contenders import Contender, contenders
from preftune.race.halving import Race, Trial, check_budget, check_tuning_seeds, plan_race
from preftune.race.problem import LabRace, lab_contenders
from preftune.rewards import resolve_reward
from preftune.sampling.sample import SampleOptions
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig, four_completions

FACTORS = (0.3, 1.0, 3.0, 10.0)
"""The grid around `optim.learning_rate`, where none is given."""

ENDLESS = 1e6
"""Passes over the data that no budget reaches."""


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """Budget of one full run of any method, in exactly one unit.

    Args:
        steps: optimizer steps.
        samples: on-policy: completions drawn.
        minutes: training by the run's own clock, without loading, evaluations and saving.
    """

    steps: int | None = None
    samples: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [option.name for option in fields(self) if getattr(self, option.name) is not None]
        if len(given) > 1:
            raise ConfigError("A budget is counted in one unit", got=" and ".join(given), do="Leave one out")
        check_range(self, "(0, inf)", *given, prefix="budget.")

    @property
    def unit(self) -> str:
        """The one that is given."""
        return next(option.name for option in fields(self) if getattr(self, option.name) is not None)

    @property
    def amount(self) -> float:
        return float(getattr(self, self.unit))

    def part(self, share: float) -> float:
        """That share of the budget: whole steps and samples, rounded down."""
        return self.amount * share if self.unit == "minutes" else float(int(self.amount * share))


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The measure by which methods are compared; higher is better."""

    name: str
    title: str  # "held-out accuracy"
    unit: str
    meaning: str


MEASURES = {
    one.name: one
    for one in (
        Measure(
            name="accuracy",
            title="held-out accuracy",
            unit="share of pairs",
            meaning="The share of held-out pairs whose chosen completion a method scores above the rejected one, by the "
            "implicit reward of the method itself: beta × log-ratio, or what the objective puts in its place.",
        ),
        Measure(
            name="margin",
            title="held-out margin",
            unit="nats",
            meaning="The log-ratio to the reference of chosen less rejected held-out completions: the same quantity for "
            "all methods.",
        ),
        Measure(
            name="reward",
            title="held-out reward",
            unit="reward",
            meaning="The mean reward of the policy’s own completions of held-out prompts.",
        ),
        Measure(
            name="judged",
            title="reward on the judged prompts",
            unit="reward",
            meaning="The mean reward of completions that the tuned model draws of the prompts in judge_prompts.",
        ),
        Measure(
            name="return",
            title="expected reward",
            unit="reward",
            meaning="The exact expectation of the reward under the policy, on held-out prompts.",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Methods under an equal budget: the learning rate of each tuned by successive halving, then several
    seeds, one table and one page. The same command continues an interrupted run.

    Args:
        objectives: methods with commas between them, with settings in brackets:
            bnf,dpo(beta=0.5),sft(selection=best-of-n).
        output: a folder, with a run folder for each run in it.
        data: preference data, as for `train`; on-policy, of which the prompts are used.
        problem: instead of data: a lab problem, shipped or a YAML file.
        budget: what a full run may use.
        rates: the grid of learning rates, the same for all methods; by default 0.3, 1, 3 and 10 times
            optim.learning_rate (when not given 1e-6, for adapters 1e-5), and on a lab problem four that suit it.
        halving: tune by successive halving; false tries every rate with the full budget.
        measure: "accuracy" or "margin" of held-out pairs, "reward" of held-out prompts (on-policy), "judged"
            for judge_prompts; what suits the source when not given.
        judge_prompts: a data file whose prompts every tuned model answers with the settings in `sampling`.
        judge_reward: the reward of these answers: a built-in reward, module:function or a weighted sum.
        seeds: runs of each method that count.
        first_seed: the first of them; tuning uses those right below.
        tuning_seeds: runs of each learning rate in a round of tuning.
        keep_models: which tuned models stay on the disk: the "best" one, "all", or "none".
        model: the policy at its start.
        source: "offline" learns from the completions in `data`, "on-policy" from the policy's own, scored by
            `reward`.
        reward: on-policy: a built-in reward, module:function or a weighted sum.
        eval_data: held-out data.
        eval_fraction: without `eval_data`, the share of prompts held out of `data`, different for each seed.
        batch_size: groups per step.
        eval_every: steps between evaluations in the runs that count; about a quarter of a run when not given,
            and with a budget of minutes the start and the end alone.
        save_every: steps between checkpoints, for runs that may be killed; Ctrl-C saves one anyway.
        precision: "fp32" or "bf16".
        gradient_checkpointing: compute each layer again in backward.
        device: "auto" takes a GPU if there is one.
        json: print the result as JSON.
        loop: of a lab problem: how data are gathered and used.
        rows: how data files become groups of tokens.
        layout: how groups are laid out for the model.
        optim: the optimizer and its schedule.
        lora: low-rank adapters.
        reference: the frozen anchor, of the methods that have one.
        sampling: how completions are drawn: on-policy, and for judge_prompts.
        collect: on-policy: how much is drawn, and what is made of it.
        loading: security settings for loading models.
    """

    objectives: str
    output: str
    data: str | None = None
    problem: str | None = None
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    rates: list[float] = field(default_factory=list)
    halving: bool = True
    measure: Literal["accuracy", "margin", "reward", "judged"] | None = None
    judge_prompts: str | None = None
    judge_reward: str | None = None
    seeds: int = 3
    first_seed: int = 1000
    tuning_seeds: int = 1
    keep_models: Literal["best", "all", "none"] = "best"
    model: str = "smollm2-135m-instruct"
    source: Literal["offline", "on-policy"] = "offline"
    reward: str | None = None
    eval_data: str | None = None
    eval_fraction: float = 0.1
    batch_size: int = 8
    eval_every: int | None = None
    save_every: int = 0
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    device: str = "auto"
    json: bool = False
    loop: Loop = field(default_factory=Loop)
    rows: DataOptions = field(default_factory=DataOptions)
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    sampling: SampleOptions = field(default_factory=four_completions)
    collect: CollectOptions = field(default_factory=CollectOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        if all(getattr(self.budget, option.name) is None for option in fields(self.budget)):
            raise ConfigError(
                "A comparison has a budget that is the same for all methods",
                got="none",
                expected="--budget.steps, --budget.samples or --budget.minutes",
            )
        if (self.data is None) == (self.problem is None):
            raise ConfigError(
                "A comparison is on data or on a lab problem",
                got="both" if self.data else "neither",
                expected="--data FILE or --problem NAME",
            )
        check_tuning_seeds(self)
        if self.rates:
            refuse_idle(self.optim, "beside rates", "learning_rate", prefix="optim.", do="Leave one out")
        race, found = self.race(), self.contenders()
        smallest = self.budget.part(race.smallest_share)
        check_budget(race, self.budget.amount, smallest, f"budget.{self.budget.unit}")
        if self.problem is not None:
            self._check_problem(found)
            return
        refuse_idle(self, "without a lab problem", "loop", got="--data", do="Leave it out, or give --problem")
        self._check_measure()
        for one in found:  # refused now, not in the middle of the night
            for share in {race.smallest_share, 1.0}:
                self.train_settings(
                    one, Trial(method=one.label, rate=race.rates[0], share=share, seed=0), "run"
                )

    def _check_problem(self, found: Sequence[Contender]) -> None:
        """A lab problem has no model, no files and no rewards from outside."""
        if self.budget.unit != "steps":
            raise ConfigError(
                "A lab problem counts steps",
                got=f"budget.{self.budget.unit}",
                expected="--budget.steps",
                do="At equal steps all methods draw equally many samples",
            )
        refuse_idle(self.loop, "beside a budget", "steps", prefix="loop.", do="Use --budget.steps")
        used = {
            "objectives",
            "output",
            "problem",
            "budget",
            "rates",
            "halving",
            "seeds",
            "first_seed",
            "tuning_seeds",
            "json",
            "loop",
        }
        unused = [option.name for option in fields(self) if option.name not in used]
        refuse_idle(self, "on a lab problem", *unused, got=self.problem)
        self.lab_race(found)

    def _check_measure(self) -> None:
        name = self.measured.name
        if (self.judge_prompts is None) != (self.judge_reward is None):
            raise ConfigError(
                "judge_prompts and judge_reward belong together", got="one of them", expected="both"
            )
        if (name == "judged") != (self.judge_prompts is not None):
            raise ConfigError(
                'measure "judged" is the reward on the answers to judge_prompts',
                got=f"measure {name}",
                do="Give --judge_prompts FILE and --judge_reward NAME, and no other measure",
            )
        fitting = ("reward", "judged") if self.source == "on-policy" else ("accuracy", "margin", "judged")
        if name not in fitting:
            raise ConfigError(
                f"measure {name} is not available {self.source}", got=name, expected=" or ".join(fitting)
            )
        if name != "judged" and self.eval_data is None and self.eval_fraction == 0:
            raise ConfigError(
                f"measure {name} wants held-out data", got="eval_fraction 0", do="Leave out --eval_fraction"
            )
        if self.source == "offline" and name != "judged" and self.sampling != four_completions():
            raise ConfigError(
                "sampling has no effect: nothing is drawn",
                got=f"source offline, measure {name}",
                do="Leave it out, or give --judge_prompts",
            )
        for reward in (self.reward, self.judge_reward):
            if reward is not None:
                resolve_reward(reward)

    def contenders(self) -> tuple[Contender, ...]:
        return lab_contenders(self.objectives) if self.problem is not None else contenders(self.objectives)

    @property
    def measured(self) -> Measure:
        if self.problem is not None:
            return MEASURES["return"]
        usual = "reward" if self.source == "on-policy" else "accuracy"
        return MEASURES[self.measure or ("judged" if self.judge_prompts is not None else usual)]

    def race(self) -> Race:
        grid = tuple(self.rates)
        if not grid and self.problem is not None:
            grid = grid_of(self.problem)
        elif not grid:
            middle = self.optim.resolved(Objective.learning_rates, self.lora.rank).peak
            grid = tuple(float(f"{factor * middle:.6g}") for factor in FACTORS)
        return plan_race(
            [one.label for one in self.contenders()],
            grid,
            seeds=self.seeds,
            first_seed=self.first_seed,
            tuning_seeds=self.tuning_seeds,
            halving=self.halving,
        )

    def lab_race(self, found: Sequence[Contender] | None = None) -> LabRace:
        """The race on the lab problem."""
        assert self.problem is not None
        return LabRace(
            problem=self.problem,
            contenders=tuple(found or self.contenders()),
            race=self.race(),
            loop=replace(self.loop, steps=int(self.budget.amount)),
        )

    def folder(self, contender: Contender, trial: Trial) -> Path:
        """Folder of a run, relative to the output: method, rate, budget and seed name it."""
        part = f"{self.budget.unit}-{self.budget.part(trial.share):g}"
        return Path("runs") / contender.slug / f"rate-{trial.rate:g}-{part}-seed-{trial.seed}"

    def train_settings(self, contender: Contender, trial: Trial, folder: str) -> TrainConfig:
        """The settings of a run, as for `preftune train`."""
        assert self.data is not None
        part = self.budget.part(trial.share)
        on_policy, anchored = self.source == "on-policy", bool(contender.objective.needs & REFERENCE_SCORES)
        if contender.selection is not None and not on_policy:
            raise ConfigError(
                "selection has no effect offline", got=contender.label, do="Set --source on-policy"
            )
        collect = (
            self.collect
            if contender.selection is None
            else replace(self.collect, selection=contender.selection)
        )
        return TrainConfig(
            data=self.data,
            output=folder,
            model=self.model,
            objective=contender.objective,
            source=self.source,
            reward=self.reward,
            eval_data=self.eval_data,
            eval_fraction=self.eval_fraction,
            batch_size=self.batch_size,
            epochs=ENDLESS,
            max_steps=int(part) if self.budget.unit == "steps" else None,
            max_samples=int(part) if self.budget.unit == "samples" else None,
            max_minutes=part if self.budget.unit == "minutes" else None,
            eval_every=self._eval_every(trial),
            save_every=self.save_every,
            precision=self.precision,
            gradient_checkpointing=self.gradient_checkpointing,
            device=self.device,
            seed=trial.seed,
            rows=self.rows,
            layout=self.layout,
            optim=replace(self.optim, learning_rate=trial.rate),
            lora=self.lora,
            reference=self.reference if anchored else ReferenceOptions(),
            sampling=self.sampling if on_policy else four_completions(),
            collect=collect,
            loading=self.loading,
        )

    def _eval_every(self, trial: Trial) -> int | None:
        """Tuning looks at the end alone, which is always measured, whatever comes before."""
        if self.eval_data is None and self.eval_fraction == 0:
            return None
        never = int(ENDLESS)
        if trial.seed < self.first_seed or (self.budget.unit == "minutes" and self.eval_every is None):
            return never
        if self.eval_every is not None:
            return self.eval_every
        steps = self.budget.amount
        if self.budget.unit == "samples":
            steps *= self.collect.epochs / (self.batch_size * self.sampling.num_completions)
        return max(1, int(steps / 4))
