"""What the measures of a data set say in plain words, and from where on they say it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from preftune.measures.coverage import Nearness, RewardPeak
from preftune.measures.faults import FAULTS, Fault
from preftune.measures.noise import Contradictions, ModelAgreement
from preftune.measures.overlap import LengthBias, PairOverlap
from preftune.stats import Interval
from preftune.text import interval_text, percent, plural, value_text

DataVerdict = Literal["good", "look at this", "mend this"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A number above `look` wants a look, from `mend` on it wants mending; None never does."""

    look: float
    mend: float | None
    reason: str

    def verdict(self, value: float, mildest: float | None = None) -> DataVerdict:
        """`mildest` is the end of the number's interval that says least: what is to be mended lies beyond
        `look` there, too.
        """
        certain = mildest is None or mildest > self.look
        if self.mend is not None and value >= self.mend and certain:
            return "mend this"
        return "look at this" if value > self.look else "good"


BOUNDS: Mapping[str, Bound] = {
    "unusable_rows": Bound(
        look=0.0, mend=0.05, reason="share of rows; a few are typing errors, many are a wrong export"
    ),
    "fault_rows": Bound(
        look=0.0, mend=0.01, reason="share of rows; what stands in one row of a hundred is learned"
    ),
    "open_ends": Bound(
        look=0.05, mend=None, reason="share of rows; people, too, leave out a full stop, so it never condemns"
    ),
    "idle_pairs": Bound(look=0.0, mend=0.05, reason="share of pairs; they cost time and teach nothing"),
    "duplicates": Bound(
        look=0.01, mend=0.10, reason="share of rows; a repeated row has more weight than its author meant"
    ),
    "leakage": Bound(
        look=0.0, mend=0.01, reason="share of held-out rows; the held-out figure is too good by as much"
    ),
    "overlap": Bound(
        look=0.7, mend=None, reason="share of tokens; most of a pair then moves up and down at once"
    ),
    "near_identical": Bound(
        look=0.05, mend=0.25, reason="share of pairs; their likelihoods may fall together"
    ),
    "length_bias": Bound(
        look=0.1, mend=0.25, reason="P(chosen longer) from 1/2; at 3 of 4, length is most of the lesson"
    ),
    "contradictions": Bound(
        look=0.0, mend=0.05, reason="share of exchanged pairs, as their repetitions tell"
    ),
    "noise": Bound(look=0.4, mend=None, reason="1 - agreement; an upper estimate, so it never condemns"),
    "off_policy": Bound(look=0.3, mend=None, reason="nats per token; a factor of e^0.3 = 1.35 in perplexity"),
    "best_of_data": Bound(
        look=0.9, mend=None, reason="chance; fewer than one own sample in ten is as good as the data's best"
    ),
    "zero_spread": Bound(
        look=0.25, mend=0.5, reason="share of prompts; group methods learn nothing from them"
    ),
    "reward_disagreement": Bound(
        look=0.4, mend=0.5, reason="share of pairs that the reward orders the other way; 1/2 is a coin"
    ),
}
"""The thresholds are choices, with their reasons; docs/data_diagnosis.md says more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """Held-out rows whose prompt, or whose whole row, stands in the training data; shares, by likeness."""

    held_out: str
    num_rows: int
    prompts: Mapping[str, float]
    rows: Mapping[str, float]
    example: str | None  # "file:row" of the held-out row and of the one it repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSamples:
    """What the model's own samples say of the data. Keys of mappings: all, chosen, rejected."""

    num_prompts: int
    num_samples: int  # of each prompt
    beyond_budget: (
        float  # share of the data's completions that are longer than own samples can be, and read up to there
    )
    near: Mapping[str, Nearness]
    agreement: ModelAgreement | None  # of a quick reward model on frozen states, with the labels
    peak: RewardPeak | None = None
    data_rewards: Mapping[str, Interval] = field(default_factory=dict)
    # share of pairs that the reward orders as the data do; ties count half
    reward_agreement: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataMeasures:
    """All that was measured of a data set; None where it was not."""

    source: str
    model: str | None
    reward: str | None
    unit: Literal["tokens", "words"]  # of lengths and overlap
    num_rows: int
    num_records: int  # rows that can be used
    num_prompts: int  # different ones
    num_pairs: int  # that teach something
    completions_per_prompt: float
    completion_length: float  # mean
    unusable: Mapping[str, Fault]  # rows, by what is wrong
    dropped: Mapping[str, int]  # rows and groups in order that are not trained on, by reason
    faults: Mapping[str, Fault]
    idle_pairs: Mapping[str, int]  # pairs that teach nothing, by reason
    duplicates: Mapping[str, float]  # share of rows, by likeness
    duplicate_example: str | None
    lengths: LengthBias | None
    overlap: PairOverlap | None
    contradictions: Contradictions | None
    leakage: Leakage | None
    own: OwnSamples | None
    left_out: tuple[str, ...]  # what was not measured, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFinding:
    """One line of the diagnosis."""

    name: str
    measured: str
    verdict: DataVerdict
    says: str


def evidence(m: DataMeasures) -> dict[str, object]:
    """The numbers that advice is made of, by stable names; None where not measured."""
    own, peak = m.own, m.own.peak if m.own else None
    near = own.near.get("all") if own else None
    return {
        "num_prompts": m.num_prompts,
        "num_pairs": m.num_pairs,
        "completions_per_prompt": m.completions_per_prompt,
        "completion_tokens": m.completion_length if m.unit == "tokens" else None,
        "off_policy": near.off_policy.mean if near else None,
        "best_of_data": peak.best_of_data.mean if peak else None,
        "best_of_n": {n: one.mean for n, one in peak.best_of_n.items()} if peak else None,
        "reward_spread": peak.spread.mean if peak else None,
        "zero_spread": peak.zero_spread.mean if peak else None,
        "noise": own.agreement.noise if own and own.agreement else None,
        "length_bias": m.lengths.chosen_longer.mean if m.lengths else None,
        "overlap": m.overlap.overlap.mean if m.overlap else None,
        "duplicates": m.duplicates["near"],
        "leakage": m.leakage.prompts["near"] if m.leakage else None,
        "can_reward": m.reward is not None,
    }


def findings(m: DataMeasures) -> list[DataFinding]:
    """The measures with their verdicts, what spoils data first."""
    found = [*_rows(m), *_repetition(m)]
    found += _pairs(m) if m.num_pairs or m.idle_pairs else []
    found += findings_of(m.own) if m.own else []
    return [replace(one, says=one.says.replace(f"{m.source}:", "row ")) for one in found]


def _share(value: float) -> str:
    return "none" if value == 0 else f"{100 * value:.0f}%" if value >= 0.0995 else f"{100 * value:.2g}%"


def _say(verdict: DataVerdict, good: str, bad: str) -> str:
    return good if verdict == "good" else bad


def _rows(m: DataMeasures) -> list[DataFinding]:
    total = sum(one.rows for one in m.unusable.values())
    verdict = BOUNDS["unusable_rows"].verdict(total / m.num_rows)
    places = {
        what: f"{one.rows}, first {one.example}" if one.example else f"{one.rows}"
        for what, one in m.unusable.items()
    }
    examples = "; ".join(f"{what} ({place})" for what, place in places.items())
    found = [
        DataFinding(
            name="rows that cannot be used",
            measured=f"{total} of {m.num_rows}",
            verdict=verdict,
            says=_say(verdict, "every row can be read", examples),
        )
    ]
    for name, fault in m.faults.items():
        bound = BOUNDS["open_ends" if name in ("no_end", "cut_off") else "fault_rows"]
        measured = f"{plural(fault.rows, 'row')}, {_share(fault.share)}"
        found.append(
            DataFinding(
                name=name.replace("_", " "),
                measured=measured,
                verdict=bound.verdict(fault.share),
                says=f"{FAULTS[name]}; first {fault.example}",
            )
        )
    if not m.faults:
        found.append(
            DataFinding(
                name="faults in the texts",
                measured="none",
                verdict="good",
                says="no marker, special token or broken character, and no end that is missing",
            )
        )
    return found


def _repetition(m: DataMeasures) -> list[DataFinding]:
    near = m.duplicates["near"]
    verdict = BOUNDS["duplicates"].verdict(near)
    kinds = f"word for word: {_share(m.duplicates['exact'])}; but for case and punctuation: {_share(m.duplicates['normalized'])}"
    found = [
        DataFinding(
            name="duplicates",
            measured=f"{_share(near)} of rows",
            verdict=verdict,
            says=_say(
                verdict,
                "hardly a row repeats another",
                f"{kinds}; first {m.duplicate_example}. Keep one of each",
            ),
        )
    ]
    if m.leakage:
        leaked = m.leakage.prompts["near"]
        verdict = BOUNDS["leakage"].verdict(leaked)
        told = f"prompts of {m.leakage.held_out} that are trained on; whole rows: {_share(m.leakage.rows['near'])}"
        found.append(
            DataFinding(
                name="leakage",
                measured=f"{_share(leaked)} of {m.leakage.num_rows}",
                verdict=verdict,
                says=_say(
                    verdict,
                    "no held-out prompt is trained on",
                    f"{told}; first {m.leakage.example}. Take them out",
                ),
            )
        )
    return found


def _pairs(m: DataMeasures) -> list[DataFinding]:
    idle, total = sum(m.idle_pairs.values()), m.num_pairs + sum(m.idle_pairs.values())
    verdict = BOUNDS["idle_pairs"].verdict(idle / total)
    reasons = "; ".join(f"{count}: {reason}" for reason, count in m.idle_pairs.items())
    found = [
        DataFinding(
            name="pairs that teach nothing",
            measured=f"{idle} of {total}",
            verdict=verdict,
            says=_say(verdict, "every pair differs", reasons),
        )
    ]
    if m.overlap:
        found += _overlap(m.overlap, m.unit)
    if m.lengths:
        found.append(_length_finding(m.lengths, m.unit))
    if m.contradictions:
        found += _contradictions(m.contradictions)
    return found


def _overlap(told: PairOverlap, unit: str) -> list[DataFinding]:
    near = BOUNDS["near_identical"].verdict(told.near_identical)
    mean = BOUNDS["overlap"].verdict(told.overlap.mean)
    return [
        DataFinding(
            name="overlap of chosen and rejected",
            measured=interval_text(told.overlap),
            verdict=mean,
            says=f"share of {unit} in common, and {told.prefix_tokens:.1f} {unit} ({_share(told.prefix_share)}) of common beginning"
            + _say(mean, "", ". Prefer objectives that hold the chosen likelihood up (dpop, rpo, cal-dpo)"),
        ),
        DataFinding(
            name="near-identical pairs",
            measured=_share(told.near_identical),
            verdict=near,
            says=_say(
                near,
                "few pairs differ in a word or two only",
                "of pairs have nine tenths in common; they push likelihoods down on both sides. Drop them, or use dpop",
            ),
        ),
    ]


def _length_finding(told: LengthBias, unit: str) -> DataFinding:
    chance = told.chosen_longer
    mildest = 0.0 if chance.low <= 0.5 <= chance.high else min(abs(chance.low - 0.5), abs(chance.high - 0.5))
    verdict = BOUNDS["length_bias"].verdict(abs(chance.mean - 0.5), mildest)
    way = "longer" if chance.mean > 0.5 else "shorter"
    rule = (
        f"the rule 'longer wins' is right on {percent(told.longer_wins)}; "
        if told.longer_wins is not None
        else ""
    )
    told_text = f"{rule}difference {interval_text(told.difference, signed=True)} {unit}"
    return DataFinding(
        name="length bias",
        measured=f"chosen longer {interval_text(chance)}",
        verdict=verdict,
        says=told_text
        + _say(
            verdict,
            "",
            f". Training will make answers {way}: balance the lengths, or normalize by them (simpo, ld-dpo)",
        ),
    )


def _contradictions(told: Contradictions) -> list[DataFinding]:
    exchanged = told.exchanged or 0.0
    verdict: DataVerdict = BOUNDS["contradictions"].verdict(max(exchanged, told.in_cycles))
    says = (
        "no preference contradicts another" if told.num_repeated else "no pair is judged twice, and no cycle"
    )
    measured = f"{_share(told.in_cycles)} in cycles"
    if told.exchanged is not None:
        measured += f", {_share(exchanged)} exchanged"
    bad = (
        f"preferences that cannot all be right; {plural(told.num_repeated, 'repeated judgment')}. "
        "Judge them again, or use an objective for noise (robust-dpo, label_smoothing)"
    )
    return [
        DataFinding(name="contradictions", measured=measured, verdict=verdict, says=_say(verdict, says, bad))
    ]


# --- what needs the model ---


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
                says=_say(
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
    says = _say(verdict, covered, "the model seldom writes such completions: draw own samples and judge them")
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
        + _say(verdict, "", f"; {doubt}"),
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
            + _say(
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
            + _say(
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


def bounds_used() -> dict[str, dict[str, object]]:
    """The thresholds as plain values."""
    return {name: {"look": one.look, "mend": one.mend, "reason": one.reason} for name, one in BOUNDS.items()}


def count_verdicts(found: Sequence[DataFinding]) -> Mapping[DataVerdict, int]:
    """How many findings have each verdict, the worst first."""
    order: tuple[DataVerdict, ...] = ("mend this", "look at this", "good")
    return {verdict: sum(one.verdict == verdict for one in found) for verdict in order}
