"""Is this run healthy? Named conditions, each a pure function of what the run has logged and of its settings.

They see series of numbers: no model, no file. A run therefore gets the same findings during training, at its
end, and years later from its metrics.jsonl. Thresholds are calibrated by benchmarks/health.py; see
docs/health.md.
"""

from collections.abc import Sequence

from preftune.health import pairs as pairs
from preftune.health import samples as samples
from preftune.health import steps as steps
from preftune.health.history import History
from preftune.health.verdict import LEVELS, Condition, Finding

CONDITIONS = (
    Condition(
        id="reference",
        title="Reference mismatch",
        measure=steps.reference_mismatch,
        thresholds=(steps.START,),
    ),
    Condition(
        id="learning-rate-high",
        title="Learning rate too high",
        measure=steps.rate_high,
        thresholds=(steps.CHOSEN_LOST, steps.LOSS_RISE, steps.SPIKES, steps.GRADIENT, steps.REWARD_FALL),
    ),
    Condition(
        id="learning-rate-low",
        title="Learning rate too low",
        measure=steps.rate_low,
        thresholds=(steps.MOVEMENT, steps.DISTANCE, steps.LOSS_CHANGE),
    ),
    Condition(
        id="displacement",
        title="Displacement",
        measure=pairs.displacement,
        thresholds=(pairs.FALL_NOT_USUAL, pairs.FALL_USUAL),
    ),
    Condition(
        id="rejected-only",
        title="Margin only from the rejected side",
        measure=pairs.rejected_only,
        thresholds=(pairs.REJECTED_SHARE,),
    ),
    Condition(
        id="identical-pairs",
        title="Near-identical pairs",
        measure=pairs.identical_pairs,
        thresholds=(pairs.OVERLAP,),
    ),
    Condition(
        id="length-margins",
        title="Margins that follow length",
        measure=pairs.margin_by_length,
        thresholds=(pairs.LENGTH_RULE,),
    ),
    Condition(
        id="saturated",
        title="Saturated margins",
        measure=pairs.saturated,
        thresholds=(pairs.GENERALISATION_GAP,),
    ),
    Condition(
        id="overfitting",
        title="Overfitting",
        measure=pairs.overfitting,
        thresholds=(pairs.HELD_OUT_LOSS, pairs.HELD_OUT_MARGIN),
    ),
    Condition(
        id="length", title="Length drift", measure=samples.length_drift, thresholds=(samples.LENGTH_DRIFT,)
    ),
    Condition(id="kl", title="KL blow-up", measure=samples.kl_blow_up, thresholds=(samples.KL_PER_TOKEN,)),
    Condition(
        id="entropy",
        title="Entropy collapse",
        measure=samples.entropy_collapse,
        thresholds=(samples.ENTROPY_LOST,),
    ),
    Condition(
        id="equal-rewards",
        title="Groups with equal rewards",
        measure=samples.equal_rewards,
        thresholds=(samples.EQUAL_REWARDS,),
    ),
    Condition(
        id="reward-hacking",
        title="Possible reward hacking",
        measure=samples.reward_hacking,
        thresholds=(samples.SIGNS_OF_HACKING,),
    ),
    Condition(
        id="stale-samples",
        title="Stale samples",
        measure=samples.stale_samples,
        thresholds=(samples.STALENESS, samples.CLIPPED, samples.SAMPLER_GAP),
    ),
)
"""The closed table."""


def check_health(history: History) -> tuple[Finding, ...]:
    """A finding for each condition whose metrics the run has, the worst first, otherwise in the order of the
    table.
    """
    findings = []
    for condition in CONDITIONS:
        measured = condition.measure(history)
        if measured is not None:
            findings.append(
                Finding(
                    id=condition.id,
                    title=condition.title,
                    level=measured.level,
                    value=measured.value,
                    evidence=measured.evidence,
                    threshold=measured.threshold.text,
                    reason=measured.threshold.reason,
                    meaning=measured.meaning,
                    option=measured.option,
                )
            )
    return tuple(sorted(findings, key=lambda finding: -finding.number))


def health_numbers(findings: Sequence[Finding]) -> dict[str, int]:
    """For a row of metrics.jsonl: 0 ok, 1 watch, 2 act."""
    order = [condition.id for condition in CONDITIONS]
    return {
        f"health/{one.id}": LEVELS.index(one.level)
        for one in sorted(findings, key=lambda one: order.index(one.id))
    }
