"""How good a model is: log-ratios on preference pairs, or the reward of its samples against the reference's."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

from preftune.data.options import DataOptions
from preftune.model.layout import split_micro_batches
from preftune.data.prepare import load_records, prepare, prompt_only
from preftune.errors import ConfigError, storage_error
from preftune.rewards.judged import Judged, sample_and_judge
from preftune.sampling.sample import load_sampler
from preftune.model.load import check_same_tokeniser, load_model, load_tokenizer, pick_device, resolve_model
from preftune.model.policy import Policy, choose_layout, score_groups
from preftune.model.reference import RefLogps
from preftune.stats import Interval, cluster_means, mean_interval, paired_interval
from preftune.progress import Reporter
from preftune.train.runlog import RunFolder
from preftune.types import Group, Record
from preftune.cli.checks import EvalConfig


@dataclass(frozen=True, kw_only=True)
class PairEvaluation:
    """Means over pairs, with intervals; pairs of one group are averaged first."""

    num_pairs: int
    beta: float
    intervals: Mapping[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one model's samples came to."""

    reward: Interval
    ended: float
    num_tokens: float


@dataclass(frozen=True, kw_only=True)
class PromptEvaluation:
    """The reference's and the model's samples of the same prompts, and the difference per prompt."""

    num_prompts: int
    reward: str
    before: Stage
    after: Stage
    difference: Interval


def reference_of(settings: EvalConfig) -> str:
    """The reference that was named, or the model that the run of RUN/final started from."""
    if settings.reference is not None:
        return settings.reference
    config = Path(settings.model).expanduser().resolve().parent / "config.yaml"
    try:
        return str(yaml.safe_load(config.read_text(encoding="utf-8"))["model"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError("eval compares with a reference", got=f"none, and {settings.model} is not the final/ of a run",
                          expected="--reference MODEL", do="Name the model that the tuning started from") from error  # fmt: skip


def evaluate_pairs(settings: EvalConfig, report: Reporter) -> PairEvaluation:
    """Accuracy, margin and log-ratios of chosen and rejected, of the model against the reference."""
    assert settings.data is not None
    reference = reference_of(settings)
    source = resolve_model(settings.model)
    tokenizer = load_tokenizer(source, settings.loading)
    check_same_tokeniser(settings.model, reference, settings.loading)
    prepared = prepare(settings.data, tokenizer, "pairs", settings.rows)
    for line in prepared.report.lines():
        report.note(line)
    logps = [_score_all(settings, name, prepared.groups, report) for name in (settings.model, reference)]
    ratios = [
        [float(a.sum(dtype=np.float64) - b.sum(dtype=np.float64)) for a, b in zip(one, two, strict=True)]
        for one, two in zip(*logps, strict=True)
    ]
    beta = settings.beta if settings.beta is not None else 1.0
    clusters, chosen, rejected = [], [], []
    for index, (group, ratio) in enumerate(zip(prepared.groups, ratios, strict=True)):
        for c, r in group.pairs:
            clusters.append(index)
            chosen.append(ratio[c])
            rejected.append(ratio[r])
    margins = beta * (np.array(chosen) - np.array(rejected))
    quantities = {
        "log_ratios/chosen": chosen, "log_ratios/rejected": rejected, "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).astype(float),
    }  # fmt: skip
    return PairEvaluation(
        num_pairs=len(chosen), beta=beta,
        intervals={name: mean_interval(cluster_means(values, clusters)) for name, values in quantities.items()},
    )  # fmt: skip


def _score_all(settings: EvalConfig, name: str, groups: Sequence[Group], report: Reporter) -> RefLogps:
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model = load_model(resolve_model(name), settings.loading, dtype).to(pick_device(settings.device))  # type: ignore[arg-type]
    sharing, reason = choose_layout(model, settings.layout, settings.precision)
    policy = Policy(model=model, precision=settings.precision, sharing=sharing, sharing_reason=reason)
    logps: RefLogps = [[] for _ in groups]
    done = 0
    report.update(f"score {name}", 0, len(groups))
    for indices in split_micro_batches(groups, settings.layout, sharing):
        for index, one in zip(indices, score_groups(policy, [groups[i] for i in indices], settings.layout), strict=True):
            logps[index] = one
        done += len(indices)
        report.update(f"score {name}", done, len(groups))
    return logps


def load_prompts(source: str, options: DataOptions, report: Reporter) -> Sequence[Record]:
    """The records of a file without their completions; rows that were skipped are counted."""
    loaded = load_records(source, options)
    if loaded.bad_rows:
        report.note(f"skipped {len(loaded.bad_rows)} rows that cannot be used, the first: {loaded.bad_rows[0].message}")
    return [prompt_only(record) for record in loaded.records]


def evaluate_prompts(settings: EvalConfig, report: Reporter) -> PromptEvaluation:
    """Samples of both models on the same prompts, judged by the same reward."""
    assert settings.prompts is not None
    assert settings.reward is not None
    records = load_prompts(settings.prompts, settings.rows, report)
    stages: list[list[Judged]] = []
    for name in (reference_of(settings), settings.model):
        model, renderer = load_sampler(name, settings.loading, settings.precision, settings.device, settings.rows.template)
        stages.append(sample_and_judge(
            model, renderer, records, settings.sampling, settings.reward, settings.seed,
            lambda done, of, name=name: report.update(f"sample {name}", done, of),
        ))  # fmt: skip
    before, after = stages
    if settings.output is not None:
        _write_samples(Path(settings.output), before, after)
    return compare_stages(before, after, settings.reward)


def compare_stages(before: list[Judged], after: list[Judged], reward: str) -> PromptEvaluation:
    """Completions that the reward left without a number take no part."""
    known = [(b, a) for b, a in zip(before, after, strict=True) if b.reward is not None and a.reward is not None]
    clusters = [b.prompt_index for b, _ in known]
    rewards = [[float(one.reward or 0.0) for one in side] for side in zip(*known, strict=True)] or [[], []]
    return PromptEvaluation(
        num_prompts=len(set(clusters)), reward=reward, before=_stage(before, rewards[0], clusters),
        after=_stage(after, rewards[1], clusters), difference=paired_interval(rewards[0], rewards[1], clusters),
    )  # fmt: skip


def _stage(judged: list[Judged], rewards: list[float], clusters: list[int]) -> Stage:
    return Stage(
        reward=mean_interval(cluster_means(rewards, clusters)), ended=float(np.mean([one.ended for one in judged])),
        num_tokens=float(np.mean([one.num_tokens for one in judged])),
    )  # fmt: skip


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
            run.append("samples.jsonl", {"stage": stage, "step": step if stage == "after" else 0, **asdict(one)})
