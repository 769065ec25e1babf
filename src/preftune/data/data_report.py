"""What became of the rows of a source on their way to groups, counted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from preftune.data.column_account import column_lines
from preftune.data.signals import SignalReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Quantiles of a number of tokens."""

    min: int
    median: int
    p95: int
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        """The quantiles of some lengths, each a length that occurs; all 0 if there are none."""
        low, median, high, top = np.quantile(lengths or [0], [0.0, 0.5, 0.95, 1.0], method="higher")
        return cls(min=int(low), median=int(median), p95=int(high), max=int(top))

    def __str__(self) -> str:
        return f"median {self.median}, 95% {self.p95}, longest {self.max}"


def census_lines(census: Mapping[str, int]) -> list[str]:
    """What the data state about their completions, in one line."""
    return ["census: " + ", ".join(f"{count} {name}" for name, count in census.items())] if census else []


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What was read, derived, cut and dropped on the way from a source to its groups."""

    source: str
    format: str
    template: Literal["chat", "plain"]
    num_rows: int
    num_bad: int
    dropped_rows: Mapping[str, int]
    derived: SignalReport | None  # None where the records were taken as they are
    fitted: Mapping[str, int]  # groups by what the length policy did with them
    num_groups: int
    num_completions: int
    num_pairs: int
    num_tokens: int  # prompts once, and all completions
    num_context: int  # completion tokens that are not scored: what the assistant of a trajectory reads
    prompt_tokens: Lengths
    completion_tokens: Lengths
    columns: Mapping[str, str] = field(
        default_factory=dict
    )  # every column of the source -> what it was used as
    census: Mapping[str, int] = field(
        default_factory=dict
    )  # completions by what the data state about them; pairs, ties
    left_out: Mapping[str, int] = field(default_factory=dict)  # what the chat template does not write
    warning: str = ""  # of labels that are all equal
    eval_data: Mapping[str, Any] = field(
        default_factory=dict
    )  # the report of the held-out file, in plain values; empty where rows of this source are held out
    filtered: Mapping[str, int] = field(
        default_factory=dict
    )  # pairs that were left out of training, by reason

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "DataReport":
        """The report of which these are the plain values."""
        lengths = {name: Lengths(**values[name]) for name in ("prompt_tokens", "completion_tokens")}
        derived = values["derived"] and SignalReport(**values["derived"])
        return cls(**{**values, **lengths, "derived": derived})

    def source_lines(self) -> list[str]:
        """What was read: columns, census, and rows that were left out."""
        lines = [f"{self.source}: {self.num_rows} rows, format {self.format}, {self.template} template"]
        lines += column_lines(self.columns) + census_lines(self.census)
        if self.num_bad:
            lines.append(f"skipped {self.num_bad} rows that cannot be used")
        return lines + [f"dropped {count} rows: {reason}" for reason, count in self.dropped_rows.items()]

    def lines(self) -> list[str]:
        """The report for a terminal."""
        lines = self.source_lines()
        if self.derived:
            made_of = ", ".join(
                f"{count} records with {name}" for name, count in self.derived.sources.items()
            )
            joined = (
                f", {self.derived.merged} joined to another of the same prompt" if self.derived.merged else ""
            )
            lines.append(f"{self.derived.signal} from {made_of}{joined}")
            if self.derived.num_samples:
                lines.append(f"{self.derived.num_samples} completions of the policy are in no pair")
            if self.derived.num_soft:
                lines.append(
                    f"{self.derived.num_soft} of {self.derived.num_pairs} pairs have a probability"
                    + (", the others count as certain" * (self.derived.num_soft < self.derived.num_pairs))
                )
            lines += [f"dropped {count} records: {reason}" for reason, count in self.derived.dropped.items()]
            lines += [
                f"left out {count} completions: {reason}" for reason, count in self.derived.left_out.items()
            ]
        lines += [f"{count} groups {kind}" for kind, count in self.fitted.items()]
        pairs = f", {self.num_pairs} pairs" if self.num_pairs else ""
        lines.append(
            f"{self.num_groups} groups, {self.num_completions} completions{pairs}, {self.num_tokens} tokens"
        )
        lines.append(f"prompt tokens: {self.prompt_tokens}")
        if self.num_completions:
            lines.append(f"completion tokens: {self.completion_tokens}")
        if self.num_context:
            lines.append(
                f"{self.num_context} tokens of trajectories are not the assistant's and are not scored"
            )
        lines += [f"{count} {what}" for what, count in self.left_out.items()]
        lines += [self.warning] if self.warning else []
        if self.eval_data:
            held = DataReport.of(self.eval_data)
            lines += [f"eval_data: {line}" for line in held.source_lines()]
            lines.append(f"eval_data: {held.num_groups} groups, {held.num_completions} completions")
        return lines + self.filtered_lines()

    def filtered_lines(self) -> list[str]:
        """What was left out after the groups were made."""
        return [f"left out {count} pairs of training: {reason}" for reason, count in self.filtered.items()]
