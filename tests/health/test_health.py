"""Each condition on histories made for it: what fires on one side of a threshold does not on the other."""

import shlex
from dataclasses import asdict, replace
from pathlib import Path

import jaxtyping
import pytest

from preftune.cli.settings import parse_settings
from preftune.health.conditions import CONDITIONS, check_health, health_numbers
from preftune.health.history import History, Points, Settings, history_of
from preftune.health.pairs import (
    FALL_NOT_USUAL,
    FALL_USUAL,
    GENERALISATION_GAP,
    HELD_OUT_LOSS,
    HELD_OUT_MARGIN,
    LENGTH_RULE,
    OVERLAP,
    REJECTED_SHARE,
)
from preftune.health.samples import (
    CLIPPED,
    ENTROPY_LOST,
    EQUAL_REWARDS,
    KL_PER_TOKEN,
    LENGTH_DRIFT,
    SAMPLER_GAP,
    SIGNS_OF_HACKING,
    STALENESS,
)
from preftune.health.steps import (
    CHOSEN_LOST,
    DISTANCE,
    GRADIENT,
    LOSS_CHANGE,
    LOSS_RISE,
    MOVEMENT,
    REWARD_FALL,
    SPIKES,
    START,
)
from preftune.health.verdict import LEVELS
from preftune.objectives import BNF as BNFLoss
from preftune.objectives import DPO, OBJECTIVES
from preftune.objectives.remedies import remedies
from preftune.rewards import resolve_reward
from preftune.train.options import TrainConfig

STEPS = 30
OFFLINE = Settings(
    objective="dpo", **asdict(remedies(DPO())), beta=0.1, learning_rate=1e-6, epochs=1.0, batch_size=8
)
SAMPLES = Settings(
    objective="rloo",
    beta=0.05,
    on_policy=True,
    learning_rate=1e-6,
    epochs=1.0,
    batch_size=8,
    num_completions=4,
    reward="length.min",
)


def points(values, first=1, every=1) -> Points:
    return Points(
        steps=tuple(range(first, first + every * len(values), every)), values=tuple(map(float, values))
    )


def history(train=None, held=None, settings=OFFLINE, steps=STEPS) -> History:
    """Training metrics at steps 1, 2, ...; evaluations at 0, 10, ... A run always logs its learning rate and
    epoch.
    """
    usual = {"learning_rate": [1e-6] * steps, "epoch": [step / steps for step in range(1, steps + 1)]}
    return History(
        train={name: points(values) for name, values in {**usual, **(train or {})}.items()},
        evaluation={name: points(values, 0, 10) for name, values in (held or {}).items()},
        settings=settings,
    )


def pair_runs(chosen, rejected, settings=OFFLINE, **held) -> History:
    """Log-ratios at evaluations; both completions begin at -100 nats."""
    logps = {"logps/chosen": [-100.0] * len(chosen), "logps/rejected": [-100.0] * len(chosen)}
    return history(
        held={"log_ratios/chosen": chosen, "log_ratios/rejected": rejected, **logps, **held},
        settings=settings,
    )


def halves(one, two) -> list[float]:
    return [one] * (STEPS // 2) + [two] * (STEPS // 2)


def spiky(share) -> History:
    loss = [1.0] * 10_000
    loss[100 : 100 + round(share * 10_000)] = [2.5] * round(share * 10_000)
    return history({"loss": loss}, steps=10_000)


BNF = replace(OFFLINE, objective="bnf", **asdict(remedies(BNFLoss())), beta=None)
FITTED = {"rewards/accuracies": [1.0] * STEPS, "loss": [1.0] * 10 + [0.001] * 20}
CASES = {  # name -> (condition, threshold, a history in which the measure is v)
    "start": (
        "reference",
        START,
        lambda v: history(held={"log_ratios/chosen": [-50 * v], "logps/chosen": [-50.0]}),
    ),
    "text lost": ("learning-rate-high", CHOSEN_LOST, lambda v: pair_runs([0, -100 * v], [0, -100 * v])),
    "loss rises": (
        "learning-rate-high",
        LOSS_RISE,
        lambda v: history({"loss": [1.0] + [1 + v] * (STEPS - 1)}),
    ),
    "spikes": ("learning-rate-high", SPIKES, spiky),
    "gradient": ("learning-rate-high", GRADIENT, lambda v: history({"grad_norm": halves(1.0, v)})),
    "reward falls": (
        "learning-rate-high",
        REWARD_FALL,
        lambda v: history(
            {"collect/reward": halves(1.0, 1.0 - 2 * v), "collect/reward_std": [2.0] * STEPS},
            settings=SAMPLES,
        ),
    ),
    "movement": ("learning-rate-low", MOVEMENT, lambda v: pair_runs([0, v / 2], [0, -v])),
    "distance": ("learning-rate-low", DISTANCE, lambda v: history(held={"kl": [0, v]}, settings=SAMPLES)),
    "loss change": (
        "learning-rate-low",
        LOSS_CHANGE,
        lambda v: history({"loss": halves(2.0, 2.0 * (1 - v))}),
    ),
    "displacement, bnf": (
        "displacement",
        FALL_NOT_USUAL,
        lambda v: pair_runs([0, -100 * v], [0, -100 * v - 5], BNF),
    ),
    "displacement, dpo": ("displacement", FALL_USUAL, lambda v: pair_runs([0, -100 * v], [0, -100 * v - 5])),
    "rejected only": ("rejected-only", REJECTED_SHARE, lambda v: pair_runs([0, 10 * (1 - v)], [0, -10 * v])),
    "identical pairs": (
        "identical-pairs",
        OVERLAP,
        lambda v: history({"pairs/common_ends": [v - 0.01, v, v + 0.01]}),
    ),
    "length rule": (
        "length-margins",
        LENGTH_RULE,
        lambda v: pair_runs([0, 5], [0, -5], length_correlation=[-v], length_bias=[-1.0]),
    ),
    "saturated": (
        "saturated",
        GENERALISATION_GAP,
        lambda v: history(FITTED, {"rewards/accuracies": [0.5, 1 - v]}),
    ),
    "overfitting, loss": (
        "overfitting",
        HELD_OUT_LOSS,
        lambda v: history({"loss": halves(1.0, 0.5)}, {"loss": [0.7, 0.5, 0.5 * (1 + v)]}),
    ),
    "overfitting, margin": (
        "overfitting",
        HELD_OUT_MARGIN,
        lambda v: replace(
            pair_runs([0, 4, 4 * (1 - v)], [0, -4, -4 * (1 - v)], BNF, loss=[-1, -2, -2]),
            train=history({"loss": halves(-1.0, -2.0)}).train,
        ),
    ),
    "longer": (
        "length",
        LENGTH_DRIFT,
        lambda v: history(held={"completions/length": [10, 10 * v]}, settings=SAMPLES),
    ),
    "kl": (
        "kl",
        KL_PER_TOKEN,
        lambda v: history(held={"kl": [0, 20 * v], "completions/length": [10, 20]}, settings=SAMPLES),
    ),
    "entropy": (
        "entropy",
        ENTROPY_LOST,
        lambda v: history(held={"entropy": [2, 2 * (1 - v)]}, settings=SAMPLES),
    ),
    "equal rewards": (
        "equal-rewards",
        EQUAL_REWARDS,
        lambda v: history({"collect/equal_rewards": [0, 0, v]}, settings=SAMPLES),
    ),
    "staleness": (
        "stale-samples",
        STALENESS,
        lambda v: history({"staleness": [v] * STEPS}, settings=SAMPLES),
    ),
    "clipped": (
        "stale-samples",
        CLIPPED,
        lambda v: history({"ratio/clipped": [v] * STEPS}, settings=SAMPLES),
    ),
    "sampler gap": (
        "stale-samples",
        SAMPLER_GAP,
        lambda v: history({"sampler_gap": [0, v, 0]}, settings=SAMPLES),
    ),
}


def found(a_history: History, condition: str):
    return {one.id: one for one in check_health(a_history)}[condition]


@pytest.mark.parametrize("name", CASES)
def test_it_fires_on_one_side_of_each_line_only(name):
    condition, threshold, make = CASES[name]
    worse = 0.99 if threshold.below else 1.01
    better = 1.01 if threshold.below else 0.99
    assert found(make(threshold.watch * better), condition).level == "ok"
    assert found(make(threshold.watch * worse), condition).level == "watch"
    if threshold.act is not None:
        assert found(make(threshold.act * better), condition).level == "watch"
        assert found(make(threshold.act * worse), condition).level == "act"


def test_every_threshold_has_a_case_and_every_condition_a_name_of_its_own():
    assert len({one.id for one in CONDITIONS}) == len(CONDITIONS)
    listed = [(one.id, threshold) for one in CONDITIONS for threshold in one.thresholds]
    cased = [(condition, threshold) for condition, threshold, _ in CASES.values()]
    assert all(one in cased or one == ("reward-hacking", SIGNS_OF_HACKING) for one in listed)
    assert all(one in listed for one in cased)


HACKED = {
    "completions/length": [10, 20],
    "entropy": [2, 0.5],
    "completions/ended": [0.9, 0.6],
    "reward": [1, -1],
    "kl": [0, 30],
}
RISING = {"collect/reward": halves(0.0, 2.0), "collect/reward_std": [1.0] * STEPS}


def test_a_rising_reward_is_suspected_by_the_signs_beside_it():
    assert found(history(RISING, settings=SAMPLES), "reward-hacking").level == "ok"
    for sign in set(HACKED) - {"kl"}:
        assert found(history(RISING, {sign: HACKED[sign]}, SAMPLES), "reward-hacking").level == "watch", sign
    both = found(history(RISING, HACKED, SAMPLES), "reward-hacking")
    assert (both.level, both.value) == ("act", 5.0)
    flat = {**RISING, "collect/reward": halves(0.0, 0.4)}
    assert found(history(flat, HACKED, SAMPLES), "reward-hacking").level == "ok"


def test_clipped_ratios_of_fresh_samples_name_the_temperature():
    clipped = {"ratio/clipped": [0.3] * STEPS}
    old = {**clipped, "staleness": [1.0] * STEPS}
    fresh = {**clipped, "staleness": [0.0, 1.0] * (STEPS // 2)}
    hot = replace(SAMPLES, temperature=0.7)
    seen = found(history(fresh, settings=hot), "stale-samples")
    assert (seen.level, seen.option) == ("watch", "--sampling.temperature 1")
    assert "sampled at temperature 0.7" in seen.evidence
    assert found(history(old, settings=hot), "stale-samples").option == "--collect.prompts 8"
    assert found(history(fresh, settings=SAMPLES), "stale-samples").option == "--precision fp32"


def test_equal_rewards_at_a_low_temperature_name_it():
    equal = {"collect/equal_rewards": [0, 0, 0.6]}
    assert found(history(equal, settings=SAMPLES), "equal-rewards").option == "--sampling.num_completions 8"
    cold = found(history(equal, settings=replace(SAMPLES, temperature=0.5)), "equal-rewards")
    assert cold.option == "--sampling.temperature 1" and "temperature 0.5" in cold.evidence


def test_displacement_is_of_training_pairs_too_and_needs_a_margin_that_grows():
    held = pair_runs([0, 3.0], [0, -3.0], BNF)
    sides = {
        "log_ratios/chosen": halves(0, -30),
        "log_ratios/rejected": halves(0, -60),
        "logps/chosen": [-100] * STEPS,
        "logps/rejected": [-100] * STEPS,
    }
    seen = found(replace(held, train=history(sides).train), "displacement")
    assert seen.level == "act"
    assert "-30.00" in seen.evidence
    assert found(pair_runs([0, -30], [0, -20], BNF), "displacement").level == "ok"
    assert found(pair_runs([0, -1.9], [0, -20], BNF), "displacement").level == "ok"  # less than MIN_FALL
    assert "displacement" not in {
        one.id
        for one in check_health(
            pair_runs([0, -30], [0, -60], replace(BNF, objective="apo-down", chosen_fall="intended"))
        )
    }


def test_a_fall_is_judged_by_what_the_objective_is_made_for():
    assert found(pair_runs([0, -8], [0, -20], OFFLINE), "displacement").level == "ok"
    assert found(pair_runs([0, -8], [0, -20], BNF), "displacement").level == "watch"
    assert found(pair_runs([0, -50], [0, -80], OFFLINE), "displacement").option == "--objective rpo"


def test_being_too_sure_is_watched_only_while_pairs_are_still_told_apart():
    held = {"loss": [0.7, 0.5, 2.0], "rewards/accuracies": [0.5, 0.8, 0.8]}
    assert found(history({"loss": halves(1.0, 0.5)}, held), "overfitting").level == "watch"
    held["rewards/accuracies"] = [0.5, 0.8, 0.7]
    seen = found(history({"loss": halves(1.0, 0.5)}, held), "overfitting")
    assert (seen.level, seen.option) == ("act", "--max_steps 10")


def test_brevity_is_watched_until_nothing_is_left():
    assert found(history(held={"completions/length": [30, 5]}, settings=SAMPLES), "length").level == "watch"
    assert found(history(held={"completions/length": [30, 2]}, settings=SAMPLES), "length").level == "act"


def test_a_short_run_has_no_trend_and_a_run_under_way_is_not_called_slow():
    for condition, threshold, make in CASES.values():
        if condition not in ("reference", "identical-pairs", "equal-rewards", "stale-samples"):
            whole = make(threshold.act or threshold.watch)
            cut = {
                name: Points(steps=one.steps[:9], values=one.values[:9]) for name, one in whole.train.items()
            }
            assert condition not in {one.id for one in check_health(replace(whole, train=cut))}, condition
    slow = CASES["movement"][2](0.0)
    assert found(slow, "learning-rate-low").level == "act"
    assert "learning-rate-low" not in {
        one.id for one in check_health(replace(slow, settings=replace(OFFLINE, epochs=2.1)))
    }


def test_samples_of_the_policy_are_no_evidence_of_displacement():
    whole = pair_runs([0, -50], [0, -80], replace(SAMPLES, objective="dpo"))
    assert not {"displacement", "rejected-only", "length-margins"} & {one.id for one in check_health(whole)}


def test_old_runs_that_log_no_share_of_equal_rewards_are_judged_by_the_spread():
    assert (
        found(
            history({"reward/std": [1.0] * 20 + [0.0] * 9 + [1.0]}, settings=SAMPLES), "equal-rewards"
        ).level
        == "act"
    )
    assert (
        found(history({"reward/std": [1.0] * 26 + [0.0] * 4}, settings=SAMPLES), "equal-rewards").level
        == "ok"
    )


def test_the_worst_comes_first_and_rows_keep_the_order_of_the_table():
    findings = check_health(replace(pair_runs([0, -50], [0, -80], BNF), settings=BNF))
    assert [one.number for one in findings] == sorted((one.number for one in findings), reverse=True)
    numbers = health_numbers(findings)
    order = [f"health/{one.id}" for one in CONDITIONS]
    assert list(numbers) == [name for name in order if name in numbers]
    assert numbers["health/displacement"] == LEVELS.index("act")


def test_a_history_is_read_from_rows_and_a_configuration_of_any_kind():
    rows = [
        {"step": 0, "phase": "eval", "eval_loss": 1.0},
        {"step": 1, "phase": "train", "loss": 2.0, "kl": None, "ok": True},
        {"step": 1, "phase": "train", "loss": 3.0},
        {"step": "x", "phase": "train", "loss": 9.0},
        {"step": 2, "phase": "odd"},
        {"step": 2, "phase": "train", "loss": float("inf")},
    ]
    read = history_of(
        rows, {"objective": {"name": "dpo", "beta": 0.1}, "optim": None, "collect": [1], "epochs": "x"}
    )
    assert read.train == {"loss": Points(steps=(1,), values=(3.0,))}
    assert read.evaluation == {"loss": Points(steps=(0,), values=(1.0,))}
    assert read.settings == Settings(objective="dpo", beta=0.1)
    assert check_health(history_of([], {})) == ()


def test_the_page_shows_every_threshold():
    text = (Path(__file__).parents[2] / "docs" / "health.md").read_text(encoding="utf-8")
    for condition in CONDITIONS:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{condition.id}` |")]
        assert all(threshold.text in row for threshold in condition.thresholds), condition.id


def test_the_page_names_every_setting_that_is_advised_for_an_objective():
    text = (Path(__file__).parents[2] / "docs" / "health.md").read_text(encoding="utf-8")
    facts = [remedies(kind()) for kind in OBJECTIVES.values()]
    advised = {
        one for fact in facts for one in (fact.against_fall, fact.against_overlap, fact.against_length)
    }
    names = {one if one.startswith("--objective ") else one.split()[0] for one in advised if one}
    assert not [name for name in names if name not in text]


@pytest.mark.parametrize("name", [*CASES, "hacking"])
def test_the_option_to_try_is_one_that_training_takes(name, monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # as for a user: no type checker in the way
    if name == "hacking":
        a_history, condition = history(RISING, HACKED, SAMPLES), "reward-hacking"
    else:
        condition, threshold, make = CASES[name]
        a_history = make((threshold.act or threshold.watch) * (0.99 if threshold.below else 1.01))
    option = shlex.split(found(a_history, condition).option)
    assert option[0].startswith("--")
    assert len(option) == 2
    settings = a_history.settings
    words = ["--data", "x.jsonl", "--output", "run", "--objective", settings.objective]
    words += ["--source", "on-policy", "--reward", "length.min"] if settings.on_policy else []
    given = words + option if option[0] != "--objective" else [*words[:4], *option]
    parse_settings(TrainConfig, given, prog="preftune train", description="")  # refuses what has no effect
    if option[0] == "--reward":
        resolve_reward(option[1])
