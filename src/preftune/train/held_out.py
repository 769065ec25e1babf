"""Held-out metrics of a run: of its policy as it is, and whether a metric that a setting names is among them."""

import time
from dataclasses import replace

from preftune.health.conditions import health_numbers
from preftune.model.cost import Shape, utilisation, work_of
from preftune.objectives import State
from preftune.progress import Reporter
from preftune.train.best import LATER, SAMPLED_METRICS
from preftune.train.evaluate import evaluate, evaluate_samples
from preftune.train.health_monitor import Watch
from preftune.train.optimizers import averaged_weights
from preftune.train.runlog import RunFolder
from preftune.train.setup import TrainingJob


def held_out_metrics(
    job: TrainingJob, report: Reporter, step: int, state: State | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the held-out data, and how well the machine was used."""
    sampled: dict[str, float] = {}
    if job.samples is not None:
        sampled = evaluate_samples(
            job.samples,
            job.eval_groups,
            job.anchors.reference,
            lambda done, of: report.update("evaluate", done, of),
            step,
        )
    if not job.watches_groups:
        return sampled, {}
    started = time.perf_counter()
    metrics = evaluate(
        job.policy,
        job.eval_groups,
        job.config.objective,
        job.anchors,
        job.config.layout,
        state,
        job.processes,
        temperature=job.config.scored_at,
    )
    seconds, operations = (
        time.perf_counter() - started,
        work_of(Shape.of(job.policy.model), job.eval_groups).forward,
    )
    return metrics | sampled, {
        "eval_mfu": utilisation(
            operations, seconds, job.policy.device, job.config.precision, job.processes.size
        )
    }


def check_best_metric(job: TrainingJob) -> None:
    """Before anything is written: whether keep_best names a metric that evaluations will have."""
    best = job.best
    if best is None:
        return
    metrics = dict.fromkeys(SAMPLED_METRICS, 0.0)
    if job.watches_groups:
        few = replace(job, eval_groups=job.eval_groups[:4])
        metrics, _ = held_out_metrics(few, Reporter(quiet=True), 0, None)
    parts = job.samples is not None and best.metric.name.startswith(
        ("reward/", "reward_none/", "reward_std/")
    )
    if best.metric.name not in (*metrics, *LATER) and not parts:
        raise best.unknown(metrics)  # type: ignore


def log_evaluation(
    job: TrainingJob, run: RunFolder, report: Reporter, step: int, state: State | None, watch: Watch
) -> dict[str, float]:
    """Write held-out metrics and the run's health as one row; without held-out data check health alone, which
    needs no row.
    """
    if not job.eval_groups:
        if run.writes:
            watch.findings()
        return {}
    with averaged_weights(job.optimizer):
        metrics, used = held_out_metrics(job, report, step, state)
        if job.best is not None:
            job.best.see(step, metrics, job.policy)
    row = {"step": step, "phase": "eval"} | {f"eval_{k}": v for k, v in metrics.items()} | used
    if run.writes:
        run.append("metrics.jsonl", row | health_numbers(watch.findings(row)))
    shown = [
        f"{k} {metrics[k]:.4f}"
        for k in ("loss", "rewards/margins", "rewards/accuracies", "reward", "kl")
        if k in metrics
    ]
    if shown:
        report.note(f"step {step}: held-out " + ", ".join(shown))
    return metrics
