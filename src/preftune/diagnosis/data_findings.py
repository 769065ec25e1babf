"""Findings in plain words from the measures of a data set. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from preftune.diagnosis.data_measures import DataMeasures
from preftune.diagnosis.data_verdicts import BOUNDS, DataFinding, DataVerdict, text_for
from preftune.diagnosis.sample_findings import findings_of
from preftune.measures.faults import FAULTS
from preftune.measures.formats import FormatBias
from preftune.measures.noise import Contradictions
from preftune.measures.overlap import LengthBias, PairOverlap
from preftune.text import interval_text, percent, plural


def findings(m: DataMeasures) -> list[DataFinding]:
    """The measures with their verdicts, faults of the data first."""
    found = [*_rows(m), *_repetition(m)]
    found += _pairs(m) if m.num_pairs or m.idle_pairs else []
    found += findings_of(m.own) if m.own else []
    return [replace(one, meaning=one.meaning.replace(f"{m.source}:", "row ")) for one in found]


def _share(value: float) -> str:
    return "none" if value == 0 else f"{100 * value:.0f}%" if value >= 0.0995 else f"{100 * value:.2g}%"


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
            name="unusable rows",
            measured=f"{total} of {m.num_rows}",
            verdict=verdict,
            meaning=text_for(verdict, "every row can be read", examples),
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
                meaning=f"{FAULTS[name]}; first {fault.example}",
            )
        )
    if not m.faults:
        found.append(
            DataFinding(
                name="faults in the texts",
                measured="none",
                verdict="good",
                meaning="no markers, special tokens, broken characters or missing ends",
            )
        )
    return found


def _repetition(m: DataMeasures) -> list[DataFinding]:
    near = m.duplicates["near"]
    verdict = BOUNDS["duplicates"].verdict(near)
    kinds = f"exact: {_share(m.duplicates['exact'])}; except for case and punctuation: {_share(m.duplicates['normalized'])}"
    found = [
        DataFinding(
            name="duplicates",
            measured=f"{_share(near)} of rows",
            verdict=verdict,
            meaning=text_for(
                verdict,
                "hardly any row repeats another",
                f"{kinds}; first {m.duplicate_example}. Keep one of each",
            ),
        )
    ]
    if m.leakage:
        leaked = m.leakage.prompts["near"]
        verdict = BOUNDS["leakage"].verdict(leaked)
        told = f"prompts of {m.leakage.held_out} that are in the data; whole rows: {_share(m.leakage.rows['near'])}"
        found.append(
            DataFinding(
                name="leakage",
                measured=f"{_share(leaked)} of {m.leakage.num_rows}",
                verdict=verdict,
                meaning=text_for(
                    verdict,
                    "no held-out prompt is in the data",
                    f"{told}; first {m.leakage.example}. Remove them",
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
            meaning=text_for(verdict, "every pair differs", reasons),
        )
    ]
    if m.overlap:
        found += _overlap(m.overlap, m.unit)
    if m.lengths:
        found.append(_length_finding(m.lengths, m.unit))
    if m.formats:
        found.append(_format_finding(m.formats))
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
            meaning=f"share of common {unit}; the common prefix has {told.prefix_tokens:.1f} {unit} ({_share(told.prefix_share)})"
            + text_for(
                mean,
                "",
                ". Prefer objectives that keep the chosen likelihood from falling (dpop, rpo, cal-dpo)",
            ),
        ),
        DataFinding(
            name="near-identical pairs",
            measured=_share(told.near_identical),
            verdict=near,
            meaning=text_for(
                near,
                "few pairs differ in only a word or two",
                "of pairs have nine tenths in common; they lower the likelihood of both sides. Drop them, or use dpop",
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
        meaning=told_text
        + text_for(
            verdict,
            "",
            f". Training will make answers {way}: balance the lengths, or normalize by them (simpo, ld-dpo)",
        ),
    )


def _format_finding(told: Mapping[str, FormatBias]) -> DataFinding:
    """The format with the largest difference, followed by the differences of the other formats."""
    name, worst = max(told.items(), key=lambda item: abs(item[1].difference.mean))
    gap = worst.difference
    mildest = 0.0 if gap.low <= 0 <= gap.high else min(abs(gap.low), abs(gap.high))
    verdict = BOUNDS["format_bias"].verdict(abs(gap.mean), mildest)
    shares = "; ".join(
        f"{one}: {percent(bias.chosen)} of chosen, {percent(bias.rejected)} of rejected"
        + (f", wins {percent(bias.wins)} of {bias.num_unequal}" if bias.wins is not None else "")
        for one, bias in told.items()
    )
    way = "more" if gap.mean > 0 else "fewer"
    return DataFinding(
        name="format bias",
        measured=f"{name} {interval_text(gap, signed=True)}",
        verdict=verdict,
        meaning=shares
        + text_for(verdict, "", f". Training will write {way} answers with it: balance the pairs by format"),
    )


def _contradictions(told: Contradictions) -> list[DataFinding]:
    exchanged = told.exchanged or 0.0
    verdict: DataVerdict = BOUNDS["contradictions"].verdict(max(exchanged, told.in_cycles))
    meaning = (
        "no preference contradicts another" if told.num_repeated else "no repeated judgments, and no cycles"
    )
    measured = f"{_share(told.in_cycles)} in cycles"
    if told.exchanged is not None:
        measured += f", {_share(exchanged)} exchanged"
    bad = (
        f"contradictory preferences; {plural(told.num_repeated, 'repeated judgment')}. "
        "Label them again, or use an objective for noisy labels (robust-dpo, label_smoothing)"
    )
    return [
        DataFinding(
            name="contradictions", measured=measured, verdict=verdict, meaning=text_for(verdict, meaning, bad)
        )
    ]
