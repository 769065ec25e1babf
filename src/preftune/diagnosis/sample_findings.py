"""Findings from the model's own samples. Pure."""

from collections.abc import Mapping

from preftune.diagnosis.data_measures import OwnSamples
from preftune.diagnosis.data_verdicts import BOUNDS, DataFinding, text_for
from preftune.measures.coverage import Nearness
from preftune.measures.noise import EXCHANGED, STRONG, ModelAgreement
from preftune.stats import Interval
from preftune.text import interval_text, percent, plural, value_text


def findings_of(own: OwnSamples) -> list[DataFinding]:
    """The findings from the model's own samples."""
    found = [_near(name, told) for name, told in own.near.items()]
    if own.agreement:
        found += [_noise(own.agreement), _invariance(own.agreement), _strong(own.agreement)]
    if own.similarity:
        found.append(
            DataFinding(
                name="information content",
                measured=f"similarity {interval_text(own.similarity)}",
                verdict="good",
                meaning="cosine of the mean hidden states of chosen and rejected; of two data sets under one model, "
                "the one with the lower similarity tells a reward model more per pair",
            )
        )
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
                meaning=text_for(
                    verdict,
                    "the reward prefers what the data prefer",
                    "the reward and the data prefer different completions",
                ),
            )
        )
    if own.format_rewards:
        found.append(_format_rewards(own.format_rewards))
    return found


def _format_rewards(told: Mapping[str, Interval]) -> DataFinding:
    """What a reward gives for a format."""
    certain = [name for name, gap in told.items() if gap.low > 0 or gap.high < 0]
    texts = "; ".join(f"{name} {interval_text(gap, signed=True)}" for name, gap in told.items())
    return DataFinding(
        name="format bias of the reward",
        measured=", ".join(certain) or "none",
        verdict="check" if certain else "good",
        meaning=f"reward of own samples with a format, less that of others of the same prompt: {texts}",
    )


def _near(name: str, told: Nearness) -> DataFinding:
    gap = told.off_policy.mean
    bound = BOUNDS["off_policy"]
    verdict = bound.verdict(gap)
    covered = (
        "similar to what the model writes"
        if gap >= -bound.check
        else "within what the model writes, and likelier than its own samples"
    )
    meaning = text_for(
        verdict, covered, "the model rarely writes such completions: train on scored samples of the model"
    )
    return DataFinding(
        name="off-policy" + (f", {name}" if name != "all" else ""),
        verdict=verdict,
        measured=f"{interval_text(told.off_policy, signed=True)} nats/token",
        meaning=f"rank {told.rank.mean:.2f} among own samples; {meaning}",
    )


def _noise(told: ModelAgreement) -> DataFinding:
    coin = told.agreement.low <= 0.5  # the interval of the quick model's accuracy includes chance
    verdict = "check" if coin else BOUNDS["noise"].verdict(told.noise)
    doubt = (
        "with this few pairs its accuracy may be chance: raise max_prompts"
        if coin
        else "the model may miss what people see: read some pairs"
    )
    return DataFinding(
        name="noise of the labels",
        measured=f"upper estimate {percent(told.noise)}",
        verdict=verdict,
        meaning=f"a quick reward model agrees with {interval_text(told.agreement)} of {plural(told.num_pairs, 'pair')} not used to fit it"
        + text_for(verdict, "", f"; {doubt}"),
    )


def _invariance(told: ModelAgreement) -> DataFinding:
    lost = told.agreement.mean - told.exchanged.mean
    verdict = BOUNDS["noise_variance"].verdict(lost)
    return DataFinding(
        name="noise invariance",
        measured=f"agreement {percent(told.agreement.mean)} to {percent(told.exchanged.mean)}",
        verdict=verdict,
        meaning=f"of the same quick model where {percent(EXCHANGED)} of the labels that it is fitted to are exchanged"
        + text_for(verdict, "", ". Wrong labels cost much here: collect more pairs, or label them twice"),
    )


def _strong(told: ModelAgreement) -> DataFinding:
    verdict = BOUNDS["strong"].verdict(told.strong.mean, told.strong.low)
    return DataFinding(
        name="strong preferences",
        measured=interval_text(told.strong),
        verdict=verdict,
        meaning=f"share of pairs that the quick model fits above {STRONG} or below {1 - STRONG:.2f}"
        + text_for(verdict, "", ". Bound what they add: label_smoothing, ipo, or a larger beta"),
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
            name="best of the data against own samples",
            measured=f"better with probability {interval_text(best)}",
            verdict=verdict,
            meaning=f"best of n own: {curve}"
            + (f"; data: {sides}" if sides else "")
            + text_for(
                verdict,
                "",
                ". The reward's peak is outside what the model writes: start with sft on the best completions, or explore",
            ),
        ),
        DataFinding(
            name="prompts with equal own rewards",
            measured=interval_text(own.peak.zero_spread),
            verdict=flat,
            meaning=f"standard deviation of a prompt's rewards {interval_text(own.peak.spread)}"
            + text_for(
                flat,
                "",
                ". Group methods learn nothing from them: raise the number of samples, or choose other prompts",
            ),
        ),
    ]


def coverage_case(own: OwnSamples) -> str | None:
    """Which of the paper's problems the data are like, where both conditions were measured."""
    if own.peak is None or "all" not in own.near:
        return None
    near = own.near["all"].off_policy.mean <= BOUNDS["off_policy"].check
    inside = own.peak.best_of_data.mean <= BOUNDS["best_of_data"].check
    return _CASES[near, inside]


_CASES = {
    (
        True,
        True,
    ): "Data and the reward's peak are where the model writes (Mode Length in Tajwar et al.): offline training may suffice.",
    (
        True,
        False,
    ): "The data are where the model writes, the reward's peak is not (Min Length in Tajwar et al.): train on-policy, or "
    "offline with a negative gradient (dpo, bnf).",
    (
        False,
        False,
    ): "Data and the reward's peak are away from what the model writes (Skew Length in Tajwar et al.): on-policy sampling "
    "matters most.",
    (
        False,
        True,
    ): "The reward's peak is where the model writes, the data are not: own samples, scored by the reward, are the better data.",
}
