"""The verb `iterate`: sample, reward, select, train, round after round, each round a folder of files that
people can look into.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from preftune.cli.checks import check_seed, refuse_idle_rows
from preftune.cli.model_settings import ModelSettings
from preftune.cli.output import make_console, print_json
from preftune.cli.settings import parse_settings
from preftune.commands.reward import RewardConfig, add_rewards
from preftune.commands.sample import sample_rows
from preftune.commands.select import SelectConfig, select
from preftune.data.carried import load_prompts_to_answer
from preftune.data.options import DataOptions
from preftune.data.records import load_prompts, load_records
from preftune.errors import check_range
from preftune.model.adapters import LoraOptions
from preftune.model.layout import LayoutOptions
from preftune.model.reference import ReferenceOptions
from preftune.model.whole_model import quiet_transformers
from preftune.objectives import Objective
from preftune.objectives.bnf import BNF
from preftune.progress import Reporter
from preftune.rewards import TIMEOUT_S
from preftune.rounds.checks import check_round_options
from preftune.rounds.evolve import DrawOne, evolve, near_misses
from preftune.rounds.measure import HeldOut, measure_round
from preftune.rounds.mix import PairRow, pair_rows_of, replayed
from preftune.rounds.options import held_out_table, named_reward, rewrite_template, rows_of_stage
from preftune.sampling.sample import SampleOptions, load_sampler, sample
from preftune.sampling.sampled import Sampled
from preftune.stats import json_numbers
from preftune.storage import locked_folder, remove_leftovers, write_jsonl
from preftune.terminal import clean_terminal
from preftune.train.loop import train_or_resume
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig, four_completions
from preftune.train.runlog import claim_folder, to_plain
from preftune.types import Record


@dataclass(frozen=True, kw_only=True)
class IterateConfig(ModelSettings):
    """Rounds of: sample completions of the latest policy, score them, select, train on the file. The same
    command continues an interrupted run.

    Args:
        prompts: a data file; only its prompts are used.
        reward: a built-in reward with its settings, module:function, or a weighted sum.
        output: a folder, with a folder for each round in it.
        model: the policy at its start.
        objective: the loss and its hyperparameters.
        rounds: how many.
        prompts_per_round: prompts of a round, in the file's order, from the start again at its end; all when
            not given.
        reference: "last" anchors a round at the policy that it starts from, "start" at `model`.
        selection: how rewards become pairs or labels; see `preftune select`.
        min_gap: smallest difference of two rewards that makes a preference, for selections that have it.
        epochs: passes over a round's data.
        batch_size: groups per step.
        seed: of the draws and of the training; each round has its own.
        timeout_s: seconds that one call of a reward function of your own may take.
        base: what `model` was tuned from: `first` in a reward such as implicit(policy=last, reference=first), and
            `before` in the first round.
        length_penalty: taken off a reward for each character; "auto" finds the price of each round (DICE).
        mix: pairs of other data, such as those that `model` was tuned on, to train on with each round's own.
        mix_share: the share of these among the pairs of a round.
        evolve: the share of a round's prompts, from the second round on, that the policy rewrites from prompts of
            the round before, chosen by the spread of their rewards (eva).
        evolve_template: a text file with {prompt} in it that requests a new prompt.
        near_misses: train also on pairs of an evolved prompt: its best completion over that of the prompt before (ECD).
        eval_prompts: held-out prompts; each round's policy is measured on them: reward, pass@1, pass@k, variety.
        eval_completions: k, completions of each held-out prompt.
        eval_reward: of held-out completions, where it is not `reward`.
        pass_reward: least reward of a completion that passes.
        json: print the result as JSON.
        sampling: how completions are drawn.
        rows: how the prompts are read.
        layout: how groups are laid out for the model.
        optim: the optimizer and its schedule, of each round.
        lora: low-rank adapters; a round's adapter is merged before the next one.
    """

    prompts: str
    reward: str
    output: str
    model: str = "smollm2-135m-instruct"
    objective: Objective = field(default_factory=BNF)
    rounds: int = 3
    prompts_per_round: int | None = None
    reference: Literal["last", "start"] = "last"
    selection: str = "best-vs-worst"
    min_gap: float | None = None
    epochs: float = 1.0
    batch_size: int = 8
    timeout_s: float = TIMEOUT_S
    base: str | None = None
    length_penalty: float | Literal["auto"] | None = None
    mix: str | None = None
    mix_share: float = 0.5
    evolve: float = 0.0
    evolve_template: str | None = None
    near_misses: bool = False
    eval_prompts: str | None = None
    eval_completions: int = 4
    eval_reward: str | None = None
    pass_reward: float = 1.0
    sampling: SampleOptions = field(default_factory=four_completions)
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "rounds", "prompts_per_round")
        check_seed(self.seed)
        refuse_idle_rows(
            self.rows,
            ("split", "format", "columns", "bad_rows", "template", "max_rows", "max_length"),
            "prompts",
        )
        check_round_options(self)
        stage = _Round(self, 1, self.model)
        stage.select_settings()
        stage.train_settings()


@dataclass(frozen=True, kw_only=True)
class IterateResult:
    """Where the rounds ended: the last policy, and the mean reward of each round's completions, before it was
    trained.
    """

    final: str
    rewards: tuple[float | None, ...]
    held_out: tuple[HeldOut | None, ...] = ()  # of the start and of the policy after each round


@dataclass(frozen=True)
class _Round:
    """One round's files, settings and stages. A file that is there is finished."""

    config: IterateConfig
    number: int
    model: str  # the policy that the round starts from
    before: str | None = None  # the policy that the round before started from; in the first round, the base

    @property
    def folder(self) -> Path:
        return Path(self.config.output) / f"round-{self.number:02d}"

    @property
    def run(self) -> Path:
        return self.folder / "train"

    def select_settings(self) -> SelectConfig:
        """A row with a blank completion (an answer that ended at once) is left out and counted: files hold no
        blank answers.
        """
        return SelectConfig(
            data=str(self.folder / "scored.jsonl"),
            output=str(self.folder / "selected.jsonl"),
            overwrite=True,
            selection=self.config.selection,
            min_gap=self.config.min_gap,
            length_penalty=self.config.length_penalty,
            seed=self._seed,
            rows=DataOptions(bad_rows="skip"),
        )

    def train_settings(self) -> TrainConfig:
        config = self.config
        anchored = config.reference == "start" and self.number > 1
        joined = config.mix is not None or (config.near_misses and self.number > 1)
        return TrainConfig(
            data=str(self.folder / ("joined.jsonl" if joined else "selected.jsonl")),
            output=str(self.run),
            model=self.model,
            objective=config.objective,
            eval_fraction=0.0,
            epochs=config.epochs,
            batch_size=config.batch_size,
            precision=config.precision,
            device=config.device,
            seed=self._seed,
            layout=config.layout,
            optim=config.optim,
            lora=config.lora,
            loading=config.loading,
            rows=DataOptions(
                template=config.rows.template,
                chat_template=config.rows.chat_template,
                chat_template_kwargs=config.rows.chat_template_kwargs,
                max_length=config.rows.max_length,
            ),
            reference=ReferenceOptions(model=config.model) if anchored else ReferenceOptions(),
        )

    @property
    def _seed(self) -> int:
        return self.config.seed + self.number - 1

    def go(self, report: Reporter) -> float | None:
        """Every stage that is not finished; returns the mean reward of what was drawn."""
        report.note(f"round {self.number} of {self.config.rounds}")
        if not (self.folder / "completions.jsonl").exists():
            self._sample(report)
        scored = self.folder / "scored.jsonl"
        if not scored.exists():
            add_rewards(
                RewardConfig(
                    data=str(self.folder / "completions.jsonl"),
                    reward=named_reward(self.config.reward, self.model, self.before, self.config.base),
                    output=str(scored),
                    timeout_s=self.config.timeout_s,
                ),
                report,
            )
        rewards = [
            one
            for line in scored.read_text(encoding="utf-8").splitlines()
            for one in json.loads(line)["rewards"]
        ]
        known = [one for one in rewards if one is not None]
        mean = sum(known) / len(known) if known else None
        report.note(f"reward {'none' if mean is None else format(mean, '.4f')} of {len(rewards)} completions")
        if not (self.run / "config.yaml").exists():
            for line in select(self.select_settings()).lines():
                report.note(line)
            self._join(report)
        if train_or_resume(self.train_settings(), quiet=self.config.json).final is None:
            raise KeyboardInterrupt
        return mean

    def _sample(self, report: Reporter) -> None:
        config = self.config
        records = load_prompts_to_answer(config.prompts, config.rows, config.sampling.num_completions, report)
        count = min(config.prompts_per_round or len(records), len(records))
        first = (config.prompts_per_round or len(records)) * (self.number - 1)
        model, renderer = load_sampler(
            self.model, config.loading, config.precision, config.device, config.rows
        )

        def draw(wanted: Sequence[Record], options: SampleOptions, phase: str) -> list[list[Sampled]]:
            prompts = [renderer.render(record).prompt for record in wanted]
            return sample(
                model, renderer, prompts, options, self._seed, lambda done, of: report.update(phase, done, of)
            )

        evolved = self._evolved(
            round(config.evolve * count),
            lambda asked: [
                ones[0].text for ones in draw(asked, replace(config.sampling, num_completions=1), "evolve")
            ],
            report,
        )
        mine = [*evolved, *(records[(first + i) % len(records)] for i in range(count - len(evolved)))]
        rows = sample_rows(mine, draw(mine, config.sampling, "sample"), config.sampling)
        write_jsonl(self.folder / "completions.jsonl", rows, "write the completions")

    def _evolved(self, count: int, draw: DrawOne, report: Reporter) -> list[Record]:
        """New prompts, of those of the round before; their columns parent and parent_text say where they come from."""
        if not count or self.number == 1:
            return []
        before = Path(self.config.output) / f"round-{self.number - 1:02d}" / "scored.jsonl"
        rows, blank = evolve(
            rows_of_stage(before), count, rewrite_template(self.config.evolve_template), self._seed, draw
        )
        report.note(f"{len(rows)} evolved prompts, {blank} rewritings blank or unchanged")
        if not rows:
            return []
        write_jsonl(self.folder / "evolved.jsonl", rows, "write the evolved prompts")
        return list(load_prompts(str(self.folder / "evolved.jsonl"), DataOptions(), report))

    def _join(self, report: Reporter) -> None:
        """The file that is trained on, where it holds more than the round's own pairs."""
        settings = self.train_settings()
        if settings.data.endswith("selected.jsonl"):
            return
        config = self.config
        own = pair_rows_of(load_records(str(self.folder / "selected.jsonl"), DataOptions()).records)
        near = near_misses(rows_of_stage(self.folder / "scored.jsonl")) if config.near_misses else []
        old: list[PairRow] = []
        if config.mix is not None:
            others = pair_rows_of(load_records(config.mix, DataOptions()).records)
            old = replayed(len(own) + len(near), others, config.mix_share, self._seed)
        report.note(f"training on {len(own)} own pairs, {len(near)} near misses and {len(old)} of other data")
        write_jsonl(Path(settings.data), [*own, *near, *old], "write the pairs of the round")

    def measure(self, name: str, model: str, report: Reporter) -> HeldOut | None:
        """A policy on the held-out prompts, computed once: the rows stay in the folder of the rounds."""
        config = self.config
        if config.eval_prompts is None:
            return None
        path = Path(config.output) / f"held-out-{name}.jsonl"
        drawn = path.with_suffix(".drawn.jsonl")
        if not path.exists():
            records = load_prompts_to_answer(
                config.eval_prompts, config.rows, config.eval_completions, report
            )
            policy, renderer = load_sampler(
                model, config.loading, config.precision, config.device, config.rows
            )
            options = replace(config.sampling, num_completions=config.eval_completions)
            prompts = [renderer.render(record).prompt for record in records]
            ones = sample(
                policy, renderer, prompts, options, config.seed, lambda d, n: report.update("held out", d, n)
            )
            write_jsonl(drawn, sample_rows(records, ones, options), "write the held-out completions")
            reward = config.eval_reward or config.reward
            add_rewards(RewardConfig(data=str(drawn), reward=reward, output=str(path)), report)
        rows = rows_of_stage(path)
        texts, rewards = ([row[name] for row in rows] for name in ("completions", "rewards"))
        return measure_round(texts, rewards, config.pass_reward)


def iterate(config: IterateConfig, report: Reporter) -> IterateResult:
    """All rounds; those that are finished are only read."""
    mine = {
        key: value for key, value in to_plain(config).items() if key not in ("rounds", "json", "output")
    }  # rounds may grow
    with locked_folder(Path(config.output)):
        claim_folder(config.output, "iterate.yaml", mine)
        remove_leftovers(Path(config.output))
        model, before, rewards = config.model, config.base, []
        held = [_Round(config, 1, model).measure("start", model, report)]
        for number in range(1, config.rounds + 1):
            stage = _Round(config, number, model, before)
            stage.folder.mkdir(exist_ok=True)
            remove_leftovers(stage.folder)
            rewards.append(stage.go(report))
            before, model = model, str(stage.run / "final")
            held.append(stage.measure(f"{number:02d}", model, report))
    report.close()
    return IterateResult(final=model, rewards=tuple(rewards), held_out=tuple(held))


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(IterateConfig, arguments, "preftune iterate")
    found = iterate(settings, Reporter(quiet=settings.json))
    if settings.json:
        told = {"held_out": json_numbers(found.held_out)} if settings.eval_prompts is not None else {}
        print_json({"final": found.final, "rewards": found.rewards, **told})
        return 0
    if settings.eval_prompts is not None:
        make_console().print(held_out_table(found.held_out))
    means = ", ".join("none" if one is None else f"{one:.4g}" for one in found.rewards)
    print(
        clean_terminal(
            f"reward of each round's completions, before it was trained: {means}\nmodel   {found.final}"
        )
    )
    return 0
