"""How good a model is: log-ratios on preference pairs, rewards or wins of its samples against the reference's, and
tasks of lm-eval and inspect-ai.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.cli.early import check_tasks
from preftune.cli.output import print_json, print_table
from preftune.cli.settings import parse_settings
from preftune.commands.eval_options import EvalConfig, beta_of, reference_of, started_from
from preftune.data.prepare import prepare
from preftune.data.records import load_prompts, load_prompts_with_answers
from preftune.errors import storage_error
from preftune.measures.suites import SuiteEvaluation, evaluate_suites
from preftune.model.load import check_same_tokenizer, load_on_device, load_tokenizer, resolve_model
from preftune.model.policy import score_all
from preftune.model.scorer import load_scorer
from preftune.model.whole_model import quiet_transformers
from preftune.progress import Reporter
from preftune.rewards.judged import Judged, PromptEvaluation, compare_stages, sample_and_judge
from preftune.rewards.win_rate import Answers, WinRate, check_judge, compare_sides, resolve_judge, win_rate
from preftune.sampling.sample import load_sampler, sample
from preftune.stats import (
    Interval,
    cluster_means,
    json_numbers,
    mean_interval,
    preferred_share,
    share_interval,
)
from preftune.train.runlog import RunFolder
from preftune.types import Group, Record


@dataclass(frozen=True, kw_only=True)
class PairEvaluation:
    """Means over pairs, with intervals; pairs of one group are averaged first."""

    num_pairs: int
    beta: float
    beta_of_run: bool  # whether beta is the one that the run of RUN/final was trained with
    intervals: Mapping[str, Interval]


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
        write_samples(_output_folder(settings.output), before, after, 0)
    return compare_stages(before, after, settings.reward)


def evaluate_wins(settings: EvalConfig, report: Reporter) -> WinRate:
    """Samples of the model against those of the reference, or against the answers of a column, by a judge."""
    assert settings.prompts is not None and settings.judge is not None
    judge = resolve_judge(settings.judge)
    if settings.against is None:
        records = load_prompts(settings.prompts, settings.rows, report)
        check_judge(judge, settings.judge, records, sampled=True)
        opponent = _answers(settings, reference_of(settings), records, report)
    else:
        records, texts = load_prompts_with_answers(settings.prompts, settings.against, settings.rows, report)
        check_judge(judge, settings.judge, records, sampled=False)
        opponent = Answers(name=settings.against, texts=[[text] for text in texts])
    model = _answers(settings, settings.model, records, report)
    report.note(f"{settings.judge.partition('(')[0]} compares {sum(map(len, model.texts))} pairs of answers")
    comparisons = compare_sides(judge, settings.judge, records, model, opponent)
    if settings.output is not None:
        folder = _output_folder(settings.output)
        for one in comparisons:
            folder.append("comparisons.jsonl", asdict(one))
    return win_rate(comparisons, settings.judge, opponent.name)


def _answers(settings: EvalConfig, name: str, records: Sequence[Record], report: Reporter) -> Answers:
    model, renderer = load_sampler(name, settings.loading, settings.precision, settings.device, settings.rows)
    prompts = [renderer.render(record).prompt for record in records]
    drawn = sample(
        model, renderer, prompts, settings.sampling, settings.seed, partial(report.update, f"sample {name}")
    )
    return Answers(
        name=name,
        texts=[[one.text for one in ones] for ones in drawn],
        ended=[[one.ended for one in ones] for ones in drawn],
        num_tokens=[[one.num_scored for one in ones] for ones in drawn],
        budget=settings.sampling.max_new_tokens,
    )


def evaluate_tasks(settings: EvalConfig, report: Reporter) -> SuiteEvaluation:
    """Tasks of lm-eval and inspect-ai, of the reference, if one is known, and of the model."""
    assert settings.tasks is not None
    tasks = check_tasks(settings.tasks)
    folder = None if settings.output is None else _output_folder(settings.output).path

    def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        source = resolve_model(name)
        model = load_on_device(source, settings.loading, settings.precision, settings.device)
        return model, load_tokenizer(source, settings.loading)

    return evaluate_suites(
        tasks,
        settings.model,
        settings.reference or started_from(settings),
        settings.suite,
        load,
        seed=settings.seed,
        output=folder,
        tell=report.note,
    )


def _output_folder(output: str) -> RunFolder:
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("make the folder", folder, error) from error
    return RunFolder(path=folder)


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
    found = evaluation_of(settings, report)
    if settings.json:
        print_json(json_numbers(found))
    elif isinstance(found, PairEvaluation):
        _tell_pairs(found)
    elif isinstance(found, PromptEvaluation):
        _tell_prompts(found)
    elif isinstance(found, WinRate):
        _tell_wins(found)
    else:
        _tell_tasks(found)
    return 0


Evaluation = PairEvaluation | PromptEvaluation | WinRate | SuiteEvaluation


def evaluation_of(settings: EvalConfig, report: Reporter) -> Evaluation:
    """What the settings choose: pairs, tasks, a judge or a reward."""
    if settings.data is not None:
        return evaluate_pairs(settings, report)
    if settings.tasks is not None:
        return evaluate_tasks(settings, report)
    return evaluate_prompts(settings, report) if settings.judge is None else evaluate_wins(settings, report)


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


def win_rows(found: WinRate) -> dict[str, Interval]:
    """The shares of a win rate that have an interval, by their names in tables."""
    rows = {"win rate": found.win_rate, "win rate, length-controlled": found.length_controlled}
    return rows if found.consistency is None else rows | {"judge agrees with itself": found.consistency}


def _tell_wins(found: WinRate) -> None:
    rows = [(name, f"{share.mean:.4f}", _span(share)) for name, share in win_rows(found).items()]
    title = f"{found.num_prompts} prompts against {found.opponent}"
    print_table(("quantity", "mean", "95% interval"), rows, title)
    own, other = found.characters
    print(
        f"{found.wins} wins, {found.ties} ties, {found.losses} losses; mean characters {own:.0f} against {other:.0f}"
    )
    if found.first_place is not None:
        print(
            f"The answer that is shown first gets {found.first_place:.0%} of the points (50% without a bias)."
        )
    if found.not_understood:
        print(f"{found.not_understood} comparisons have no verdict and do not count.")


def _tell_tasks(found: SuiteEvaluation) -> None:
    rows = []
    for score in found.scores:
        for name, one in (
            ("reference", score.before),
            ("model", score.after),
            ("difference", score.difference),
        ):
            if one is not None:
                sign = "+" if name == "difference" else ""
                rows.append(
                    (score.task, score.metric, name, f"{one.mean:{sign}.4f}", _span(one), str(one.num))
                )
    print_table(("task", "metric", "", "mean", "95% interval", "n"), rows, f"model {found.model}")


def _span(interval: Interval) -> str:
    return f"{interval.low:.4f} to {interval.high:.4f}"
