"""A census of a data set before training: what was found, how long it is, and what might teach the wrong
thing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from preftune.data.column_account import column_lines
from preftune.data.data_report import Lengths, census_lines
from preftune.data.fit import fit
from preftune.data.masks import masks_of
from preftune.data.options import DataOptions
from preftune.data.records import LoadedRecords, load_records
from preftune.data.render import Renderer, make_renderer
from preftune.data.signals import SignalName, available_signals
from preftune.errors import DataError
from preftune.terminal import clean_terminal
from preftune.types import SOURCES, Group, Record

_PROMPT_STYLES = ("dim", "dim on grey11")  # tints take turns, so that tokens can be distinguished
_COMPLETION_STYLES = ("green", "green on grey19")
_END_STYLE = "bold black on yellow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a data set holds, rendered with one tokenizer. Counts are of records unless the name states
    otherwise.
    """

    source: str
    format: str
    template: str
    signals: tuple[SignalName, ...]  # that the data can give
    num_rows: int
    num_bad: int
    bad_messages: tuple[str, ...]  # the first few
    dropped_rows: Mapping[str, int]
    columns: Mapping[str, str]  # every column -> what it was used as
    census: Mapping[str, int]  # completions by what the data state about them; pairs, ties
    stop: str  # why training would stop; empty if it would not
    num_records: int
    num_completions: int
    fitted: Mapping[str, int]  # records by what max_length and truncation would do with them
    prompt_tokens: Lengths
    completion_tokens: Lengths
    preferred_tokens: Lengths  # scored tokens of completions that are chosen, labeled +1, or have the best reward of their prompt
    dispreferred_tokens: Lengths
    preferred_mean: float
    dispreferred_mean: float
    starts_with_bos: int
    double_bos: int
    completions_ending_turn: int  # completions whose last token is the end-of-turn token
    special_inside: (
        int  # completions with a special token before their last token, from the text or the template
    )
    duplicate_prompts: int
    duplicate_records: int
    identical_completions: int  # records in which two completions are equal
    num_soft: int  # pairs with a probability
    left_out: Mapping[str, int]  # what the chat template does not write: what -> prompts
    reward_ties: int  # records in which two rewards are equal
    groups: tuple[Group, ...]  # for showing
    renderer: Renderer

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON, without groups and renderer."""
        names = [name for name in self.__dataclass_fields__ if name not in ("groups", "renderer")]
        values = {name: getattr(self, name) for name in names}
        return {
            name: asdict(value) if isinstance(value, Lengths) else value for name, value in values.items()
        }

    def lines(self) -> list[str]:
        """The census for a terminal."""
        lines = [
            f"{self.source}: {self.num_rows} rows, format {self.format}, {self.template} template",
            *column_lines(self.columns),
            *census_lines(self.census),
            "signals: " + (", ".join(self.signals) or "none (prompts only)"),
            f"{self.num_records} records, {self.num_completions} completions, {self.num_bad} bad rows",
            *self.bad_messages,
            *(f"dropped {count} rows: {reason}" for reason, count in self.dropped_rows.items()),
            f"prompt tokens: {self.prompt_tokens}",
        ]
        if self.num_completions:
            lines += [f"completion tokens: {self.completion_tokens}"]
            lines += [f"{self.completions_ending_turn} completions end with the end-of-turn token"]
        if self.preferred_tokens.max and self.dispreferred_tokens.max:
            bias = self.preferred_mean - self.dispreferred_mean
            lines += [
                f"preferred completions: {self.preferred_tokens}; dispreferred: {self.dispreferred_tokens}; "
                f"length bias {bias:+.1f} tokens on average"
            ]
        lines += [f"{count} records {kind}" for kind, count in self.fitted.items()]
        lines.append(f"{self.starts_with_bos} prompts start with BOS, {self.double_bos} with two")
        for count, what in (
            (self.special_inside, "completions hold a special token before their end"),
            (self.duplicate_prompts, "records repeat a prompt"),
            (self.duplicate_records, "records repeat another"),
            (self.identical_completions, "records hold equal completions"),
            (self.reward_ties, "records hold equal rewards"),
            (self.num_soft, "pairs have a probability"),
        ):
            lines += [f"{count} {what}"] if count else []
        lines += [f"{count} {what}" for what, count in self.left_out.items()]
        return [clean_terminal(line) for line in lines]

    def samples(self, count: int = 3) -> list[Text]:
        """The first groups as colored text: prompt tokens dim, completion tokens green, the end of the turn
        marked.
        """
        return [group_text(group, self.renderer) for group in self.groups[:count]]


def inspect_data(source: str | Path, tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> Inspection:
    """The census of a source as it would be trained on. Too long rows are counted, never an error here."""
    loaded = load_records(source, options, stops=False)
    renderer = make_renderer(tokenizer, options, many=True)
    pairs = list(zip(loaded.records, renderer.render_all(loaded.records), strict=True))
    bad = [bad.message for bad in loaded.bad_rows]
    bad += [str(group) for _, group in pairs if isinstance(group, DataError)]
    if options.bad_rows == "error" and bad:
        raise DataError(f"{bad[0]} Set bad_rows to skip to leave such rows out and count them")
    rendered = [(record, group) for record, group in pairs if isinstance(group, Group)]
    return _census(str(source), loaded, rendered, bad, renderer, options)


def _census(
    source: str,
    loaded: LoadedRecords,
    rendered: Sequence[tuple[Record, Group]],
    bad: Sequence[str],
    renderer: Renderer,
    options: DataOptions,
) -> Inspection:
    records, groups = [record for record, _ in rendered], [group for _, group in rendered]
    completions = [ids for group in groups for ids in group.completions]
    preferred, dispreferred = _lengths_by_preference(groups)
    return Inspection(
        source=source,
        format=loaded.format,
        template=renderer.mode,
        signals=available_signals(records),
        num_rows=loaded.num_rows,
        num_bad=len(bad),
        bad_messages=tuple(bad[:5]),
        dropped_rows=loaded.dropped,
        columns=loaded.columns,
        census=loaded.census,
        stop=loaded.stop,
        num_records=len(records),
        num_completions=len(completions),
        fitted=_fitted(groups, renderer, options),
        prompt_tokens=Lengths.of([len(group.prompt) for group in groups]),
        completion_tokens=Lengths.of([len(ids) for ids in completions]),
        preferred_tokens=Lengths.of(preferred),
        dispreferred_tokens=Lengths.of(dispreferred),
        preferred_mean=_mean(preferred),
        dispreferred_mean=_mean(dispreferred),
        starts_with_bos=sum(_leading_bos(group, renderer.bos) >= 1 for group in groups),
        double_bos=sum(_leading_bos(group, renderer.bos) >= 2 for group in groups),
        completions_ending_turn=sum(int(ids[-1]) == renderer.end_of_turn for ids in completions),
        special_inside=_special_inside(groups, renderer),
        duplicate_prompts=len(records) - len({record.identity for record in records}),
        duplicate_records=len(records) - len({record.content() for record in records}),
        identical_completions=sum(
            len(set(record.completions)) < len(record.completions) for record in records
        ),
        left_out=dict(renderer.left_out),
        num_soft=sum(len(record.probabilities) for record in records),
        reward_ties=sum(len(set(record.rewards)) < len(record.rewards) for record in records),
        groups=tuple(groups),
        renderer=renderer,
    )


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / len(lengths) if lengths else 0.0


def _fitted(groups: Sequence[Group], renderer: Renderer, options: DataOptions) -> dict[str, int]:
    """What the length policy would do; under `error`, how many rows it would stop at."""
    kinds = Counter()
    for group in groups:
        try:
            kinds[
                fit(
                    group, max_length=options.max_length, truncation=options.truncation, bos=renderer.bos
                ).kind
            ] += 1
        except DataError:
            kinds["an error: longer than max_length"] += 1
    return dict(kinds)


def _lengths_by_preference(groups: Sequence[Group]) -> tuple[list[int], list[int]]:
    """Token lengths of preferred and of dispreferred completions, by whatever signal the groups hold."""
    sides: tuple[list[int], list[int]] = ([], [])
    for group in groups:
        lengths = group.num_scored
        rewards = [reward for reward in group.rewards if reward is not None]
        for chosen, rejected in group.pairs:
            sides[0].append(lengths[chosen])
            sides[1].append(lengths[rejected])
        for length, label in zip(lengths, group.labels, strict=False):
            if label is not None:
                sides[label < 0].append(length)
        if len(set(rewards)) > 1:
            sides[0].append(lengths[group.rewards.index(max(rewards))])
            sides[1].append(lengths[group.rewards.index(min(rewards))])
    return sides


def _leading_bos(group: Group, bos: int | None) -> int:
    if bos is None:
        return 0
    others = np.flatnonzero(group.prompt != bos)
    return int(others[0]) if len(others) else len(group.prompt)


def _special_inside(groups: Sequence[Group], renderer: Renderer) -> int:
    """Trajectories are not counted: the template puts special tokens around each of their turns."""
    special = np.array(sorted({*renderer.tokenizer.all_special_ids, renderer.end_of_turn}))
    single = [
        ids
        for group in groups
        for ids, num_scored in zip(group.completions, group.num_scored, strict=True)
        if len(ids) == num_scored
    ]
    return sum(bool(np.isin(ids[:-1], special).any()) for ids in single)


# --- tokens in color ---

_END_TOKENS = 2000
"""Tokens shown of each end of a long text."""


def group_text(group: Group, renderer: Renderer) -> Text:
    """One group for the terminal, every token tinted in turn; what completions are is said before each."""
    text = Text().append(clean_terminal(f"{group.origin}: {len(group.prompt)} prompt tokens\n"), style="bold")
    _append_tokens(text, group.prompt, renderer, _PROMPT_STYLES)
    for index, ids in enumerate(group.completions):
        num_scored = group.num_scored[index]
        told = f"{len(ids)} tokens" + f", {num_scored} of them scored" * (num_scored < len(ids))
        text.append(f"\n--- completion {index + 1}{_standing(group, index)}, {told}\n", style="bold")
        mask = masks_of(group)[index]
        for run in np.split(
            np.arange(len(ids)), np.flatnonzero(np.diff(mask)) + 1
        ):  # the assistant's and the others'
            _append_tokens(text, ids[run], renderer, _COMPLETION_STYLES if mask[run[0]] else _PROMPT_STYLES)
    return text.append("\n")


def _standing(group: Group, index: int) -> str:
    parts = [" chosen"] if any(index == chosen for chosen, _ in group.pairs) else []
    known = zip(group.pairs, group.probabilities, strict=False)
    parts += [f" probability {chance:g}" for (chosen, _), chance in known if index == chosen]
    parts += [" rejected"] if any(index == rejected for _, rejected in group.pairs) else []
    parts += [f" label {group.labels[index]:+d}"] if group.labels and group.labels[index] is not None else []
    parts += (
        [f" reward {group.rewards[index]:g}"] if group.rewards and group.rewards[index] is not None else []
    )
    parts += [f" source {SOURCES[group.sources[index]]}"] if group.sources else []
    return ",".join(parts)


def _append_tokens(text: Text, ids: np.ndarray, renderer: Renderer, styles: tuple[str, str]) -> None:
    if len(ids) > 2 * _END_TOKENS:
        _append_tokens(text, ids[:_END_TOKENS], renderer, styles)
        text.append(f"\n… {len(ids) - 2 * _END_TOKENS:,} tokens are not shown …\n", style="bold")
        ids = ids[-_END_TOKENS:]
    for index, piece in enumerate(token_pieces(ids, renderer)):
        ends = index == len(ids) - 1 and int(ids[-1]) == renderer.end_of_turn and styles is _COMPLETION_STYLES
        text.append(clean_terminal(piece), style=_END_STYLE if ends else styles[index % 2])


def token_pieces(ids: np.ndarray, renderer: Renderer) -> list[str]:
    """The text that each token adds: bytes of one character come out with the token that completes it.

    Tokens are decoded behind another one, as decoders in the way of SentencePiece leave out the blank that a
    text begins with.
    """
    before = renderer.encoder.ids(["a"])[0]
    skip = len(renderer.decode(before))
    pieces, start = [], 0
    for end in range(1, len(ids) + 1):
        piece = renderer.decode(np.concatenate([before, ids[start:end]]))[skip:]
        whole = (
            not piece.endswith("\ufffd") or end - start >= 4 or end == len(ids)
        )  # UTF-8 takes at most 4 bytes
        pieces.append(piece if whole else "")
        start = end if whole else start
    return pieces
