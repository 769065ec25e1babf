"""What was measured of a data set, and the numbers that advice needs. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from preftune.measures.coverage import Nearness, RewardPeak
from preftune.measures.faults import Fault
from preftune.measures.formats import FormatBias
from preftune.measures.noise import Contradictions, ModelAgreement
from preftune.measures.overlap import LengthBias, PairOverlap
from preftune.stats import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Leakage:
    """Held-out rows whose prompt, or whole row, is in the training data; shares, by likeness."""

    held_out: str
    num_rows: int
    prompts: Mapping[str, float]
    rows: Mapping[str, float]
    example: str | None  # "file:row" of the held-out row and of the one it repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSamples:
    """What the model's own samples show about the data. Keys of mappings: all, chosen, rejected."""

    num_prompts: int
    num_samples: int  # of each prompt
    beyond_budget: (
        float  # share of the data's completions that are longer than own samples can be, and read up to there
    )
    near: Mapping[str, Nearness]
    agreement: ModelAgreement | None  # of a quick reward model on frozen states, with the labels
    similarity: Interval | None = None  # cosine of the mean hidden states of chosen and rejected completions
    peak: RewardPeak | None = None
    data_rewards: Mapping[str, Interval] = field(default_factory=dict)
    format_rewards: Mapping[str, Interval] = field(default_factory=dict)  # what the reward gives for a format
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
    num_prompts: int  # different prompts
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
    formats: Mapping[str, FormatBias]  # those that are in the pairs
    own: OwnSamples | None
    left_out: tuple[str, ...]  # what was not measured, and why


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
