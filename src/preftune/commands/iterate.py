"""The verb `iterate`: sample, reward, select, train, round after round, each round a folder of files that
people can look into.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from preftune.cli.checks import Precision, check_seed, refuse_idle_rows
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.commands.reward import RewardConfig, add_rewards
from preftune.commands.sample import sample_rows
from preftune.commands.select import SelectConfig, select
from preftune.data.options import DataOptions
from preftune.data.records import load_prompts
from preftune.errors import check_range
from preftune.model.adapters import LoraOptions
from preftune.model.layout import LayoutOptions
from preftune.model.reference import ReferenceOptions
from preftune.model.whole_model import LoadOptions, quiet_transformers
from preftune.objectives import Objective
from preftune.objectives.bnf import BNF
from preftune.progress import Reporter
from preftune.rewards import TIMEOUT_S, resolve_reward
from preftune.sampling.sample import SampleOptions, load_sampler, sample
from preftune.storage import locked_folder, remove_leftovers, write_jsonl
from preftune.terminal import clean_terminal
from preftune.train.loop import train_or_resume
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig, four_completions
from preftune.train.runlog import claim_folder, to_plain


@dataclass(frozen=True, kw_only=True)
class IterateConfig:
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
        precision: "fp32" or "bf16".
        device: "auto" takes a GPU if there is one.
        seed: of the draws and of the training; each round has its own.
        timeout_s: seconds that one call of a reward function of your own may take.
        json: print the result as JSON.
        sampling: how completions are drawn.
        rows: how the prompts are read.
        layout: how groups are laid out for the model.
        optim: the optimizer and its schedule, of each round.
        lora: low-rank adapters; a round's adapter is merged before the next one.
        loading: security settings for loading models.
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
    precision: Precision = "fp32"
    device: str = "auto"
    seed: int = 0
    timeout_s: float = TIMEOUT_S
    json: bool = False
    sampling: SampleOptions = field(default_factory=four_completions)
    rows: DataOptions = field(default_factory=DataOptions)
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "rounds", "prompts_per_round")
        check_seed(self.seed)
        refuse_idle_rows(
            self.rows,
            ("split", "format", "columns", "bad_rows", "template", "max_rows", "max_length"),
            "prompts",
        )
        resolve_reward(self.reward)
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


@dataclass(frozen=True)
class _Round:
    """One round's files, settings and stages. A file that is there is finished."""

    config: IterateConfig
    number: int
    model: str  # the policy that the round starts from

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
            seed=self._seed,
            rows=DataOptions(bad_rows="skip"),
        )

    def train_settings(self) -> TrainConfig:
        config = self.config
        anchored = config.reference == "start" and self.number > 1
        return TrainConfig(
            data=str(self.folder / "selected.jsonl"),
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
                    reward=self.config.reward,
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
        if train_or_resume(self.train_settings(), quiet=self.config.json).final is None:
            raise KeyboardInterrupt
        return mean

    def _sample(self, report: Reporter) -> None:
        config = self.config
        records = load_prompts(config.prompts, config.rows, report)
        count = config.prompts_per_round or len(records)
        mine = [
            records[(count * (self.number - 1) + i) % len(records)] for i in range(min(count, len(records)))
        ]
        model, renderer = load_sampler(
            self.model, config.loading, config.precision, config.device, config.rows
        )
        drawn = sample(
            model,
            renderer,
            [renderer.render(record).prompt for record in mine],
            config.sampling,
            self._seed,
            lambda done, of: report.update("sample", done, of),
        )
        rows = sample_rows(mine, drawn, config.sampling)
        write_jsonl(self.folder / "completions.jsonl", rows, "write the completions")


def iterate(config: IterateConfig, report: Reporter) -> IterateResult:
    """All rounds; those that are finished are only read."""
    mine = {
        key: value for key, value in to_plain(config).items() if key not in ("rounds", "json", "output")
    }  # rounds may grow
    with locked_folder(Path(config.output)):
        claim_folder(config.output, "iterate.yaml", mine)
        remove_leftovers(Path(config.output))
        model, rewards = config.model, []
        for number in range(1, config.rounds + 1):
            stage = _Round(config, number, model)
            stage.folder.mkdir(exist_ok=True)
            remove_leftovers(stage.folder)
            rewards.append(stage.go(report))
            model = str(stage.run / "final")
    report.close()
    return IterateResult(final=model, rewards=tuple(rewards))


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(IterateConfig, arguments, "preftune iterate")
    found = iterate(settings, Reporter(quiet=settings.json))
    if settings.json:
        print_json({"final": found.final, "rewards": found.rewards})
        return 0
    means = ", ".join("none" if one is None else f"{one:.4g}" for one in found.rewards)
    print(
        clean_terminal(
            f"reward of each round's completions, before it was trained: {means}\nmodel   {found.final}"
        )
    )
    return 0
