"""Findings from the model's own samples. Pure."""

from preftune.diagnosis.data_measures import OwnSamples
from preftune.diagnosis.data_verdicts import BOUNDS, DataFinding, text_for
from preftune.measures.coverage import Nearness
from preftune.measures.noise import ModelAgreement
from preftune.text import interval_text, percent, plural, value_text


def findings_of(own: OwnSamples) -> list[DataFinding]:
    """What the model's own samples say."""
    found = [_near(name, told) for name, told in own.near.items()]
    if own.agreement:
        found.append(_noise(own.agreement))
    if own.peak:
        found += _peak(own)
    if own.reward_agreement:
        share = own.reward_agreement
        verdict = BOUNDS["reward_disagreement"].verdict(1 - share.mean, 1 - share.high)
        found.append(
            DataFinding(
                name="reward and preferences",
                measured=f"agree on {interval_text(share)}",
                verdict=verdict,
                says=text_for(
                    verdict,
                    "the reward wants what the data prefer",
                    "the reward wants something else than the data",
                ),
            )
        )
    return found


def _near(name: str, told: Nearness) -> DataFinding:
    gap = told.off_policy.mean
    bound = BOUNDS["off_policy"]
    verdict = bound.verdict(gap)
    covered = (
        "much as the model writes"
        if gap >= -bound.look
        else "within what it writes, and likelier than its own draws"
    )
    says = text_for(
        verdict, covered, "the model seldom writes such completions: draw own samples and judge them"
    )
    return DataFinding(
        name="off-policy" + (f", {name}" if name != "all" else ""),
        verdict=verdict,
        measured=f"{interval_text(told.off_policy, signed=True)} nats/token",
        says=f"rank {told.rank.mean:.2f} among own samples; {says}",
    )


def _noise(told: ModelAgreement) -> DataFinding:
    coin = told.agreement.low <= 0.5  # the pairs do not tell the quick model from a coin
    verdict = "look at this" if coin else BOUNDS["noise"].verdict(told.noise)
    doubt = (
        "so few pairs do not tell it from a coin: raise max_prompts"
        if coin
        else "it may not see what people saw: read some"
    )
    return DataFinding(
        name="noise of the labels",
        measured=f"upper estimate {percent(told.noise)}",
        verdict=verdict,
        says=f"a quick reward model agrees with {interval_text(told.agreement)} of {plural(told.num_pairs, 'pair')} it has not seen"
        + text_for(verdict, "", f"; {doubt}"),
    )


def _peak(own: OwnSamples) -> list[DataFinding]:
    assert own.peak is not None
    best = own.peak.best_of_data
    verdict = BOUNDS["best_of_data"].verdict(best.mean)
    flat = BOUNDS["zero_spread"].verdict(own.peak.zero_spread.mean, own.peak.zero_spread.low)
    sides = ", ".join(
        f"{name} {value_text(one.mean)}" for name, one in own.data_rewards.items() if name != "all"
    )
    curve = ", ".join(f"n={n} {value_text(one.mean)}" for n, one in own.peak.best_of_n.items())
    return [
        DataFinding(
            name="the data's best against own samples",
            measured=f"wins {interval_text(best)}",
            verdict=verdict,
            says=f"best of n own: {curve}"
            + (f"; data: {sides}" if sides else "")
            + text_for(
                verdict,
                "",
                ". The reward's peak lies outside what the model writes: start with sft on the best, or explore",
            ),
        ),
        DataFinding(
            name="prompts whose own rewards are equal",
            measured=interval_text(own.peak.zero_spread),
            verdict=flat,
            says=f"standard deviation of a prompt's rewards {interval_text(own.peak.spread)}"
            + text_for(
                flat, "", ". Group methods learn nothing there: draw more samples, or choose other prompts"
            ),
        ),
    ]


def coverage_case(own: OwnSamples) -> str | None:
    """Which of the paper's problems the data are like, where both conditions were measured."""
    if own.peak is None or "all" not in own.near:
        return None
    near = own.near["all"].off_policy.mean <= BOUNDS["off_policy"].look
    inside = own.peak.best_of_data.mean <= BOUNDS["best_of_data"].look
    return _CASES[near, inside]


_CASES = {
    (
        True,
        True,
    ): "Data and the reward's peak lie where the model writes (the paper's Mode Length): offline training may do.",
    (
        True,
        False,
    ): "The data lie where the model writes, the reward's peak does not (the paper's Min Length): train on-policy, or "
    "offline with a negative gradient (dpo, bnf).",
    (
        False,
        False,
    ): "Data and the reward's peak lie away from where the model writes (the paper's Skew Length): on-policy sampling "
    "matters most.",
    (
        False,
        True,
    ): "The reward's peak lies where the model writes, the data do not: own samples, judged, are the better data.",
}
