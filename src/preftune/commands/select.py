"""The verb `select`: from a file of completions with rewards to a file of pairs, labels or groups that
`train` reads.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from preftune.cli.checks import check_new_file, check_seed, refuse_idle_rows
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.data.formats import FORMATS, detect
from preftune.data.options import DataOptions
from preftune.data.records import LoadedRecords, load_records
from preftune.data.signals import merge
from preftune.errors import ConfigError, DataError, check_range, refuse_idle
from preftune.selection.apply import apply
from preftune.selection.choices import NO_REWARD, Makes, Selected, Selection
from preftune.selection.first_pit import cut_at_first_pit
from preftune.selection.length_penalty import balanced_alpha, penalized
from preftune.selection.potential import keep_potential
from preftune.selection.rules import make_selection
from preftune.storage import new_file, write_jsonl
from preftune.terminal import clean_terminal
from preftune.text import plural
from preftune.types import Completion, Message, Record

Layout = Literal["pairs", "labels", "groups"]
_LAYOUTS: dict[Makes, tuple[Layout, ...]] = {
    "pairs": ("pairs", "groups"),
    "labels": ("labels", "groups"),
    "rewards": ("groups",),
}
OutputRow = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """From completions with rewards to pairs, labels or groups.

    Args:
        data: rows of prompt, completions and rewards (null where there is none): a file, a folder or a hub
            id.
        output: the file to write, *.jsonl.
        selection: best-of-n, top-fraction, rest, rso, best-vs-worst, best-vs-level, all-pairs,
            label-by-threshold, label-by-mean or dynamic-sampling.
        write: rows of pairs (prompt, chosen, rejected), of labels (prompt, completion, label) or of groups;
            the first of these that holds what the selection makes when not given.
        level: of best-vs-level: the rejected completion is nearest to mean + level * standard deviation.
        min_gap: of best-vs-worst, best-vs-level, all-pairs and label-by-mean: smallest difference of two rewards.
        fraction: of top-fraction: the share to keep.
        scope: of top-fraction: the best of the "collection" or of each "group".
        thresholds: of rest: one for each improvement step, increasing.
        improve_step: of rest: which threshold, from 1.
        temperature: of rso: in units of the reward.
        num_kept: of rso: completions to accept per prompt.
        ranking: of rso: "first-round", "tournament" or "none".
        threshold: of label-by-threshold: above it +1, below it -1.
        length_penalty: of every selection: taken off a reward for each character of its completion; "auto"
            finds the price at which the best completions are on average as long as the worst (DICE).
        first_pit: a column with values of the steps of each completion: completions below the best of their row are
            cut behind the first step with the lowest value before the selection.
        implicit: a column with the implicit reward of each completion: of the pairs that were made, those stay whose
            explicit margin exceeds the implicit one most (alignment potential).
        keep_potential: with implicit: the share of pairs to keep.
        seed: of draws and ties.
        overwrite: replace the output if it is there.
        json: print the counts as JSON.
        rows: how the data file is read.
    """

    data: str
    output: str
    selection: str = "best-vs-worst"
    write: Layout | None = None
    level: float | None = None
    min_gap: float | None = None
    fraction: float | None = None
    scope: Literal["collection", "group"] | None = None
    thresholds: list[float] | None = None
    improve_step: int | None = None
    temperature: float | None = None
    num_kept: int | None = None
    ranking: Literal["first-round", "tournament", "none"] | None = None
    threshold: float | None = None
    length_penalty: float | Literal["auto"] | None = None
    first_pit: str | None = None
    implicit: str | None = None
    keep_potential: float = 0.5
    seed: int = 0
    overwrite: bool = False
    json: bool = False
    rows: DataOptions = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        chosen = self.chosen()
        fitting = _LAYOUTS[chosen.makes]
        if self.write is not None and self.write not in fitting:
            raise ConfigError(
                f"The selection {self.selection} makes {chosen.makes}, which cannot be written so",
                got=self.write,
                expected=" or ".join(fitting),
            )
        if not self.output.endswith(".jsonl"):
            raise ConfigError(
                "The output is a file of JSON lines", got=self.output, expected="a name that ends in .jsonl"
            )
        check_new_file(self.output, self.overwrite)
        if Path(self.output).resolve() == Path(self.data).resolve():
            raise ConfigError(
                "The output is the data file itself", got=self.output, do="Choose another --output"
            )
        if isinstance(self.length_penalty, float | int) and not 0 < self.length_penalty < math.inf:
            raise ConfigError(
                "length_penalty is out of range",
                got=self.length_penalty,
                expected='a number above 0, or "auto"',
                do="Leave it out for none",
            )
        check_range(self, "(0, 1]", "keep_potential")
        if self.implicit is None:
            refuse_idle(self, "without implicit rewards", "keep_potential", do="Add --implicit COLUMN")
        elif chosen.makes != "pairs":
            raise ConfigError(
                f"The selection {self.selection} makes {chosen.makes}, which have no margins",
                got=f"implicit {self.implicit}",
                expected="a selection that makes pairs",
            )
        check_seed(self.seed)
        refuse_idle_rows(
            self.rows, ("split", "format", "columns", "bad_rows", "max_rows"), "completions with rewards"
        )

    def chosen(self) -> Selection:
        """The selection with its parameters."""
        return make_selection(
            self.selection,
            level=self.level,
            min_gap=self.min_gap,
            fraction=self.fraction,
            scope=self.scope,
            thresholds=self.thresholds,
            improve_step=self.improve_step,
            temperature=self.temperature,
            num_kept=self.num_kept,
            ranking=self.ranking,
            threshold=self.threshold,
        )

    def layout(self) -> Layout:
        return self.write or _LAYOUTS[self.chosen().makes][0]


@dataclass(frozen=True, kw_only=True)
class SelectResult:
    """What was read, left out and written."""

    output: str
    layout: Layout
    num_rows: int  # written
    num_bad: int
    dropped_rows: Mapping[str, int]
    joined: int  # rows that joined another one with the same prompt
    completions_in: int
    counts: Mapping[str, int]
    dropped: Mapping[str, int]
    left_out: Mapping[str, int]
    length_penalty: float | None  # the price that was taken; None where none was requested

    def lines(self) -> list[str]:
        counts = self.counts
        lines = [f"{plural(counts['groups_in'], 'group')} with {self.completions_in} completions"]
        lines += [f"skipped {self.num_bad} rows that cannot be used"] if self.num_bad else []
        lines += [f"dropped {count} rows: {reason}" for reason, count in self.dropped_rows.items()]
        lines += [f"{self.joined} rows joined to another of the same prompt"] if self.joined else []
        lines += (
            []
            if self.length_penalty is None
            else [f"length penalty {self.length_penalty:.4g} for each character"]
        )
        lines += [f"dropped {plural(count, 'group')}: {reason}" for reason, count in self.dropped.items()]
        lines += [
            f"left out {plural(count, 'completion')}: {reason}" for reason, count in self.left_out.items()
        ]
        made = {
            "pair": counts["pairs_out"],
            "preferred": counts["preferred_out"],
            "dispreferred": counts["dispreferred_out"],
        }
        what = ", ".join(
            plural(n, name) if name == "pair" else f"{n} {name}" for name, n in made.items() if n
        )
        stay = f"{plural(counts['groups_out'], 'group')}, {plural(counts['completions_out'], 'completion')}"
        return [
            *lines,
            f"{stay}{', ' + what if what else ''}: {plural(self.num_rows, 'row')} of {self.layout} in {self.output}",
        ]


def select(settings: SelectConfig) -> SelectResult:
    """Read, select, write the whole file or nothing."""
    with new_file(settings.output, settings.overwrite):
        return _select(settings)


def _select(settings: SelectConfig) -> SelectResult:
    loaded = load_records(settings.data, settings.rows)
    read: Sequence[Record] = loaded.records
    if settings.first_pit is not None:
        read = cut_at_first_pit(read, settings.first_pit)
    records: Sequence[Record] = merge(read, "rewards")
    price, records = _priced(records, settings.length_penalty)
    kept, found = apply(settings.chosen(), records, settings.seed)
    if settings.implicit is not None:
        kept, found = keep_potential(kept, found, settings.implicit, settings.keep_potential)
    if not kept:
        reasons = ", ".join(f"{plural(count, 'group')}: {reason}" for reason, count in found.dropped.items())
        further = "Choose another selection, or draw more completions"
        if set(found.dropped) == {NO_REWARD}:
            further = f"Add rewards with: preftune reward {settings.data} --reward NAME --output FILE"
        raise DataError(
            f"The selection {settings.selection} leaves nothing of {settings.data}",
            got=reasons,
            expected="at least one group",
            do=further,
        )
    count = 0

    def rows() -> Iterator[OutputRow]:
        nonlocal count
        for record in kept:
            for row in _rows(record, settings.layout()):
                count += 1
                yield row

    write_jsonl(Path(settings.output), rows(), "write the selection")
    return _result(settings, loaded, records, found, count, price)


def _priced(
    records: Sequence[Record], penalty: float | Literal["auto"] | None
) -> tuple[float | None, Sequence[Record]]:
    """(the price of a character, the records with their rewards less it)."""
    if penalty is None:
        return None, records
    rewards, lengths = (
        [record.rewards for record in records],
        [tuple(map(_length, r.completions)) for r in records],
    )
    alpha = balanced_alpha(rewards, lengths) if penalty == "auto" else float(penalty)
    paid = penalized(rewards, lengths, alpha)
    return alpha, [replace(record, rewards=group) for record, group in zip(records, paid, strict=True)]


def _length(completion: Completion) -> int:
    """Characters; of a trajectory, those of the assistant."""
    if isinstance(completion, str):
        return len(completion)
    return sum(len(turn.content) for turn in completion if turn.role == "assistant")


def _result(
    settings: SelectConfig,
    loaded: LoadedRecords,
    records: Sequence[Record],
    found: Selected,
    num_rows: int,
    price: float | None,
) -> SelectResult:
    return SelectResult(
        output=settings.output,
        layout=settings.layout(),
        num_rows=num_rows,
        num_bad=len(loaded.bad_rows),
        dropped_rows=loaded.dropped,
        joined=len(loaded.records) - len(records),
        completions_in=sum(len(record.completions) for record in records),
        counts=found.counts(),
        dropped=found.dropped,
        left_out=found.left_out,
        length_penalty=price,
    )


# --- rows ---


def _plain(text: Completion | tuple[Message, ...]) -> object:
    return text if isinstance(text, str) else [turn.as_dict() for turn in text]


def _rows(record: Record, layout: Layout) -> Iterator[OutputRow]:
    """The record's rows, proven to be read as what is meant: each completion in each of its roles once, since the
    number of pairs grows with the square of the completions.
    """
    write = {"pairs": _pair_rows, "labels": _label_rows, "groups": _group_rows}[layout]
    template, proven = record.template_columns(), set()
    for roles, written in write(record):
        row = {**template, **written}
        if proven.issuperset(roles):
            yield {**record.columns, **row}
            continue
        proven.update(roles)
        if taken := sorted(row.keys() & record.columns.keys()):
            raise DataError(
                f"{record.origin}: a column of the data has the name of one that select writes",
                got=taken[0],
                expected="another name",
                do="Rename it",
            )
        whole = {**record.columns, **row}
        form = detect([whole]).name
        again = FORMATS[layout].convert(whole) if form == layout else None
        if not isinstance(again, Record) or _known(again) != _known(FORMATS[layout].convert(row)):
            raise DataError(
                f"{record.origin}: the data's other columns change what the row means",
                got="the columns " + ", ".join(record.columns),
                expected=f"a row of {layout}",
                do="Rename them",
            )
        yield whole


def _known(record: object) -> tuple[object, ...] | None:
    """What training learns of a row."""
    if not isinstance(record, Record):
        return None
    return (*record.content(), record.ended, record.sources)


_Written = tuple[set[tuple[int, bool]], OutputRow]
"""(the completions of a row, each with whether it is the chosen one; the row)"""


def _pair_rows(record: Record) -> Iterator[_Written]:
    plain = [_plain(completion) for completion in record.completions]
    prompt = _plain(record.prompt)
    for chosen, rejected in record.pairs:
        ended = {"ended": [record.ended[chosen], record.ended[rejected]]} if record.ended else {}
        row = {
            "prompt": prompt,
            "chosen": plain[chosen],
            "rejected": plain[rejected],
            "chosen_reward": record.rewards[chosen],
            "rejected_reward": record.rewards[rejected],
            **ended,
        }
        yield {(chosen, True), (rejected, False)}, row


def _label_rows(record: Record) -> Iterator[_Written]:
    for k, (completion, label) in enumerate(zip(record.completions, record.labels, strict=True)):
        ended = {"ended": record.ended[k]} if record.ended else {}
        row = {
            "prompt": _plain(record.prompt),
            "completion": _plain(completion),
            "label": label,
            "reward": record.rewards[k],
            **ended,
        }
        yield {(k, True)}, row


def _group_rows(record: Record) -> Iterator[_Written]:
    known = {"labels": list(record.labels), "ended": list(record.ended), "sources": list(record.sources)}
    row = {
        "prompt": _plain(record.prompt),
        "completions": [_plain(completion) for completion in record.completions],
        "pairs": [list(pair) for pair in record.pairs],
        "rewards": list(record.rewards),
        **{name: values for name, values in known.items() if values},
    }
    yield {(k, True) for k in range(len(record.completions))}, row


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(SelectConfig, arguments, "preftune select", positional="data")
    result = select(settings)
    if settings.json:
        print_json(asdict(result))
    else:
        print("\n".join(clean_terminal(line) for line in result.lines()))
    return 0
