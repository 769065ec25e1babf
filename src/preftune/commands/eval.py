"""How good a model is: log-ratios on preference pairs, or the reward of its samples against the reference's."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from preftune.cli.checks import READING_OPTIONS, Precision, check_seed, refuse_idle_rows
from preftune.cli.output import print_json, print_table
from preftune.cli.settings import parse_settings
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.data.records import load_prompts
from preftune.errors import ConfigError, check_range, refuse_idle, storage_error
from preftune.model.layout import LayoutOptions
from preftune.model.load import check_same_tokenizer, load_tokenizer, resolve_model
from preftune.model.policy import score_all
from preftune.model.scorer import load_scorer
from preftune.model.whole_model import LoadOptions, quiet_transformers
from preftune.progress import Reporter
from preftune.rewards.judged import Judged, PromptEvaluation, compare_stages, sample_and_judge
from preftune.sampling.sample import SampleOptions, load_sampler
from preftune.spec.strict_yaml import parse_yaml
from preftune.stats import (
    Interval,
    cluster_means,
    json_numbers,
    mean_interval,
    preferred_share,
    share_interval,
)
from preftune.train.runlog import RunFolder
from preftune.types import Group


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How good a model is: on preference data by its log-ratios to a reference, on prompts by a reward of its
    samples.

    Args:
        model: the model to judge.
        data: preference data with pairs.
        prompts: a data file; only its prompts are used.
        reference: what to compare with: the anchor of log-ratios, and the model "before" on prompts; for the
            final/ of a run, what it started from, when not given.
        reward: on prompts: a built-in reward, module:function or a weighted sum; docs/rewards.md lists them.
        output: on prompts: a folder for samples.jsonl.
        beta: on pairs: the implicit reward is beta * log-ratio; for the final/ of a run, the run's own, when not
            given; otherwise 1.
        seed: of the draw.
        precision: "fp32" or "bf16".
        device: "auto" takes a GPU if there is one.
        json: print JSON.
        sampling: how completions are drawn.
        rows: how data files become groups of tokens.
        layout: how groups are laid out for the model.
        loading: security settings for loading models.
    """

    model: str
    data: str | None = None
    prompts: str | None = None
    reference: str | None = None
    reward: str | None = None
    output: str | None = None
    beta: float | None = None
    seed: int = 0
    precision: Precision = "fp32"
    device: str = "auto"
    json: bool = False
    sampling: SampleOptions = field(default_factory=SampleOptions)
    rows: DataOptions = field(default_factory=DataOptions)
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        if (self.data is None) == (self.prompts is None):
            raise ConfigError(
                "eval wants preference data or prompts",
                got="both" if self.data else "neither",
                expected="--data FILE or --prompts FILE",
            )
        if self.data is not None:
            refuse_idle(
                self,
                "on preference data",
                "reward",
                "output",
                "sampling",
                "seed",
                got="--data",
                do="Use --prompts FILE",
            )
        elif self.reward is None:
            raise ConfigError(
                "prompts are scored by a reward", got="none", expected="--reward NAME or module:function"
            )
        elif self.beta is not None or self.layout != LayoutOptions():
            raise ConfigError(
                "beta and layout have no effect on prompts", got="--prompts", do="Leave them out"
            )
        check_range(self, "(0, inf)", "beta")
        check_seed(self.seed)
        if self.prompts is not None:
            refuse_idle_rows(self.rows, READING_OPTIONS, "prompts")


@dataclass(frozen=True, kw_only=True)
class PairEvaluation:
    """Means over pairs, with intervals; pairs of one group are averaged first."""

    num_pairs: int
    beta: float
    beta_of_run: bool  # whether beta is the one that the run of RUN/final was trained with
    intervals: Mapping[str, Interval]


def reference_of(settings: EvalConfig) -> str:
    """The reference that was named, or the model that the run of RUN/final started from."""
    if settings.reference is not None:
        return settings.reference
    model = _run_config(settings).get("model")
    if not isinstance(model, str):
        raise ConfigError(
            "eval compares with a reference",
            got=f"none, and {settings.model} is not a run or the final/ of one",
            expected="--reference MODEL",
            do="Name the model that the tuning started from",
        )
    return model


def evaluate_pairs(settings: EvalConfig, report: Reporter) -> PairEvaluation:
    """Accuracy, margin and log-ratios of chosen and rejected, of the model against the reference."""
    assert settings.data is not None
    reference = reference_of(settings)
    source = resolve_model(settings.model)
    tokenizer = load_tokenizer(source, settings.loading)
    check_same_tokenizer(settings.model, reference, settings.loading)
    prepared = prepare(settings.data, tokenizer, "pairs", settings.rows)
    for line in prepared.report.lines():
        report.note(line)
    return evaluate_groups(settings, prepared.groups, report)


def evaluate_groups(settings: EvalConfig, groups: Sequence[Group], report: Reporter) -> PairEvaluation:
    """The same of groups that were read before."""
    reference = reference_of(settings)
    logps = []
    for name in (settings.model, reference):
        policy = load_scorer(name, settings.loading, settings.layout, settings.precision, settings.device)
        tell = partial(report.update, f"score {name}")
        logps.append(score_all(policy, groups, settings.layout, tell))
        del policy  # one model at a time is in memory
    sums = [[[float(ids.sum(dtype=np.float64)) for ids in group] for group in model] for model in logps]
    beta, of_run = beta_of(settings)
    clusters = [index for index, group in enumerate(groups) for _ in group.pairs]
    sides = [
        [[sums[model][index][place] for model in (0, 1)] for place in pair]
        for index, group in enumerate(groups)
        for pair in group.pairs
    ]
    logp = np.array(sides)  # [pairs, chosen and rejected, model and reference]
    ratios = logp[..., 0] - logp[..., 1]
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    means = {
        "log_ratios/chosen": ratios[:, 0],
        "log_ratios/rejected": ratios[:, 1],
        "rewards/margins": margins,
    }
    ranked = preferred_share(logp[:, 0] - logp[:, 1])  # [pairs, model and reference]
    shares = {
        "rewards/accuracies": preferred_share(margins),
        "ranking/accuracies": ranked[:, 0],
        "ranking/reference_accuracies": ranked[:, 1],
    }
    return PairEvaluation(
        num_pairs=len(sides),
        beta=beta,
        beta_of_run=of_run,
        intervals={name: mean_interval(cluster_means(values, clusters)) for name, values in means.items()}
        | {name: share_interval(cluster_means(values, clusters)) for name, values in shares.items()},
    )


def beta_of(settings: EvalConfig) -> tuple[float, bool]:
    """(beta, whether it is the run's own): the one that was given, else that of the run of RUN/final, else 1."""
    if settings.beta is not None:
        return settings.beta, False
    objective = _run_config(settings).get("objective")
    beta = objective.get("beta") if isinstance(objective, Mapping) else None
    if isinstance(beta, (int, float)) and not isinstance(beta, bool) and beta > 0:
        return float(beta), True
    return 1.0, False


def _run_config(settings: EvalConfig) -> Mapping[str, object]:
    """The configuration of the run that RUN or RUN/final stands for; empty if the model is neither."""
    folder = Path(settings.model).expanduser().resolve()
    run = folder if (folder / "final").is_dir() else folder.parent
    try:
        path = run / "config.yaml"
        config = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, ConfigError):
        return {}
    return config if isinstance(config, Mapping) else {}


def evaluate_prompts(settings: EvalConfig, report: Reporter) -> PromptEvaluation:
    """Samples of both models on the same prompts, scored by the same reward."""
    assert settings.prompts is not None
    assert settings.reward is not None
    records = load_prompts(settings.prompts, settings.rows, report)
    stages: list[list[Judged]] = []
    for name in (reference_of(settings), settings.model):
        model, renderer = load_sampler(
            name, settings.loading, settings.precision, settings.device, settings.rows
        )
        stages.append(
            sample_and_judge(
                model,
                renderer,
                records,
                settings.sampling,
                settings.reward,
                settings.seed,
                lambda done, of, name=name: report.update(f"sample {name}", done, of),
            )
        )
    before, after = stages
    if settings.output is not None:
        _write_samples(Path(settings.output), before, after)
    return compare_stages(before, after, settings.reward)


def _write_samples(folder: Path, before: list[Judged], after: list[Judged]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", folder, error) from error
    write_samples(RunFolder(path=folder), before, after, 0)


def write_samples(run: RunFolder, before: list[Judged], after: list[Judged], step: int) -> None:
    """samples.jsonl, as the report reads it."""
    for stage, ones in (("before", before), ("after", after)):
        for one in ones:
            run.append(
                "samples.jsonl", {"stage": stage, "step": step if stage == "after" else 0, **asdict(one)}
            )


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(EvalConfig, arguments, "preftune eval")
    report = Reporter(quiet=settings.json)
    if settings.data is not None:
        pairs = evaluate_pairs(settings, report)
        if settings.json:
            print_json(json_numbers(pairs))
        else:
            _tell_pairs(pairs)
    else:
        prompts = evaluate_prompts(settings, report)
        if settings.json:
            print_json(json_numbers(prompts))
        else:
            _tell_prompts(prompts)
    return 0


def _tell_pairs(found: PairEvaluation) -> None:
    rows = [(name, f"{interval.mean:.4f}", _span(interval)) for name, interval in found.intervals.items()]
    title = f"{found.num_pairs} pairs, beta {found.beta:g}" + " (of the run)" * found.beta_of_run
    print_table(("quantity", "mean", "95% interval"), rows, title)


def _tell_prompts(found: PromptEvaluation) -> None:
    rows = [
        (name, f"{s.reward.mean:.4f}", _span(s.reward), f"{s.ended:.0%}", f"{s.num_tokens:.0f}")
        for name, s in (("reference", found.before), ("model", found.after))
    ]
    rows.append(("difference", f"{found.difference.mean:+.4f}", _span(found.difference), "", ""))
    title = f"{found.num_prompts} prompts, reward {found.reward}"
    print_table(("", "reward", "95% interval", "ended", "tokens"), rows, title)


def _span(interval: Interval) -> str:
    return f"{interval.low:.4f} to {interval.high:.4f}"
