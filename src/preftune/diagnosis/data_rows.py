"""What can be said of a data set without running a model: rows, texts, pairs and, with a tokenizer, tokens."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from preftune.data.fit import COMPLETION_CUT, CUT_EQUAL, EQUAL, fit
from preftune.data.formats import EMPTY, EQUAL_PAIR
from preftune.data.masks import masks_of
from preftune.data.options import DataOptions
from preftune.data.records import LoadedRecords, load_records
from preftune.data.render import Renderer
from preftune.data.signals import derive
from preftune.diagnosis.data_measures import DataMeasures, Leakage
from preftune.errors import ConfigError, DataError
from preftune.measures.duplicates import Repeats, normalized, repeats, repeats_of
from preftune.measures.faults import Fault, count_faults, faults_of
from preftune.measures.formats import FormatBias, format_bias
from preftune.measures.noise import Contradictions, contradictions
from preftune.measures.overlap import LengthBias, PairOverlap, length_bias, pair_overlap
from preftune.types import Completion, Group, Record

_WORDS = re.compile(r"\w+|[^\w\s]")  # words and punctuation, where there is no tokenizer
_PLACE = re.compile(r"^.*?(?:, row \d+|:\d+): ")


@dataclass(frozen=True, kw_only=True)
class SignalRows:
    """The rows of a data set that carry a signal, made of pairs where they can be.

    `groups` are in the records' order, None where the length policy or equal tokens leave nothing; all None
    without a model.
    """

    loaded: LoadedRecords
    records: tuple[Record, ...]
    groups: tuple[Group | None, ...]
    prompt: tuple[int, ...]  # of each record, the number of its prompt
    # file:row of rows that cannot be used, by what is wrong; empty where the row is not known
    unusable: dict[str, list[str]]
    dropped: dict[str, int]
    idle_pairs: dict[str, int]

    @property
    def num_prompts(self) -> int:
        return max(self.prompt) + 1


# --- reading ---


def read(source: str, options: DataOptions, renderer: Renderer | None) -> SignalRows:
    """Rows, pairs and groups of a source; rows that cannot be used are kept apart with what is wrong with
    them.
    """
    loaded = load_records(source, options)
    if not any(record.completions for record in loaded.records):
        raise DataError(
            f"{source} holds prompts only",
            got=f"format {loaded.format}",
            expected="rows with completions",
            do="Draw and judge some with `preftune sample` and `preftune reward`, or name preference data",
        )
    unusable: dict[str, list[str]] = {}
    for bad in loaded.bad_rows:
        unusable.setdefault(_kind(bad.message), []).append(f"{bad.file}:{bad.row}")
    if loaded.dropped.get(EMPTY):
        unusable[EMPTY] = [""] * loaded.dropped[EMPTY]
    records, dropped = _with_pairs(loaded, options)
    idle = _idle_texts(loaded)
    groups: list[Group | None] = [None] * len(records)
    if renderer is not None:
        for place, rendered in enumerate(renderer.render_all(records)):
            if isinstance(rendered, DataError):
                _refused(rendered, options)
                unusable.setdefault(_kind(str(rendered)), []).append(records[place].origin)
                continue
            fitted = fit(
                rendered, max_length=options.max_length, truncation=options.truncation, bos=renderer.bos
            )
            groups[place] = fitted.group
            same = len(rendered.pairs) - len(fitted.group.pairs if fitted.group else ())
            if same and (fitted.group is not None or fitted.kind in (EQUAL, CUT_EQUAL)):
                idle[
                    "equal tokens after cutting"
                    if fitted.kind in (COMPLETION_CUT, CUT_EQUAL)
                    else "equal tokens"
                ] += same
            elif fitted.group is None:
                dropped[fitted.kind] += 1
        if all(group is None for group in groups):
            got = ", ".join(f"{count} rows {reason}" for reason, count in dropped.items()) or "bad rows"
            raise DataError(
                f"{source}: no row is left that could be trained on",
                got=got,
                expected=f"at most {options.max_length} tokens",
                do="Raise max_length",
            )
    numbers: dict[object, int] = {}
    prompt = tuple(numbers.setdefault(record.identity, len(numbers)) for record in records)
    return SignalRows(
        loaded=loaded,
        records=records,
        groups=tuple(groups),
        prompt=prompt,
        unusable=unusable,
        dropped=dict(dropped),
        idle_pairs={reason: count for reason, count in idle.items() if count},
    )


def _kind(message: str) -> str:
    """What is wrong, without the place: messages of one kind begin alike."""
    return _PLACE.sub("", message).split("; got ")[0].rstrip(".")


def _refused(error: DataError, options: DataOptions) -> None:
    if options.bad_rows == "error":
        raise DataError(f"{error} Set bad_rows to skip to leave such rows out and count them") from error


def _with_pairs(loaded: LoadedRecords, options: DataOptions) -> tuple[tuple[Record, ...], Counter[str]]:
    """Records with pairs, given or derived; the records as they are where there are none."""
    usable = tuple(record for record in loaded.records if record.completions)
    try:
        records, report = derive(usable, "pairs", pairing=options.pairing, min_gap=options.min_gap)
    except ConfigError:
        raise
    except DataError:  # nothing gives a pair: completions alone, or one label for each prompt
        return usable, Counter()
    return records, Counter({f"without a pair: {reason}": count for reason, count in report.dropped.items()})


def _idle_texts(loaded: LoadedRecords) -> Counter[str]:
    """Pairs of the rows that teach nothing before any token is looked at."""
    idle = Counter({"equal texts": loaded.dropped.get(EQUAL_PAIR, 0)})
    for record in loaded.records:
        idle["equal texts"] += sum(record.completions[c] == record.completions[r] for c, r in record.pairs)
        if not record.pairs:
            known = [reward for reward in record.rewards if reward is not None]
            idle["equal rewards"] += sum(one == two for one, two in combinations(known, 2))
    return idle


# --- texts ---


def spoken(completion: Completion) -> list[str]:
    """The assistant's text in a completion."""
    return (
        [completion]
        if isinstance(completion, str)
        else [turn.content for turn in completion if turn.role == "assistant"]
    )


def whole_text(text: Completion) -> str:
    """A prompt or a completion with all its turns."""
    return text if isinstance(text, str) else "\n".join(turn.content for turn in text)


def _parts(record: Record) -> tuple[str, str]:
    """What must repeat for a row to be a repetition: its prompt, and its completions in any order."""
    return whole_text(record.prompt), "\n".join(sorted(map(whole_text, record.completions)))


def text_faults(rows: SignalRows, renderer: Renderer | None) -> dict[str, Fault]:
    """The faults of the rows' texts; with a model also its own special tokens."""
    special = list(renderer.tokenizer.all_special_tokens) if renderer else []
    bos = renderer.tokenizer.bos_token if renderer else None
    return count_faults(
        [
            (
                record.origin,
                faults_of(
                    [record.prompt]
                    if isinstance(record.prompt, str)
                    else [turn.content for turn in record.prompt],
                    [text for completion in record.completions for text in spoken(completion)],
                    record.ended,
                    special=special,
                    bos=bos if isinstance(bos, str) else None,
                ),
            )
            for record in rows.loaded.records
        ]
    )


def duplicates(rows: SignalRows) -> tuple[dict[str, float], str | None]:
    """Share of rows that repeat an earlier one, by likeness, and the first such row."""
    records = rows.loaded.records
    found = repeats([_parts(record) for record in records])
    return _shares(found), _example(found, records, records)


def leakage(rows: SignalRows, held: LoadedRecords) -> Leakage:
    """Held-out rows that are in the training data, by prompt and as whole rows."""
    mine = [_parts(record) for record in rows.loaded.records]
    theirs = [_parts(record) for record in held.records]
    prompts = repeats_of([(prompt,) for prompt, _ in theirs], [(prompt,) for prompt, _ in mine])
    return Leakage(
        held_out=held.records[0].origin.rpartition(":")[0],
        num_rows=len(theirs),
        prompts=_shares(prompts),
        rows=_shares(repeats_of(theirs, mine)),
        example=_example(prompts, held.records, rows.loaded.records),
    )


def _shares(found: Repeats) -> dict[str, float]:
    return {
        "exact": found.share("exact"),
        "normalized": found.share("normalized"),
        "near": found.share("near"),
    }


def _example(found: Repeats, records: Sequence[Record], others: Sequence[Record]) -> str | None:
    pairs = (
        f"{records[k].origin} repeats {others[place].origin}"
        for k, place in enumerate(found.near)
        if place is not None
    )
    return next(pairs, None)


# --- pairs ---


def pair_measures(
    rows: SignalRows, renderer: Renderer | None
) -> tuple[LengthBias | None, PairOverlap | None]:
    """Lengths and overlap of chosen and rejected: tokens of the rows as trained on, or words."""
    pieces, clusters = [], []
    for record, group, number in zip(rows.records, rows.groups, rows.prompt, strict=True):
        if renderer is not None and group is None:
            continue
        known = group if renderer is not None and group is not None else record
        texts = _pieces(known, renderer)
        pieces += [(texts[c], texts[r]) for c, r in known.pairs]
        clusters += [number] * len(known.pairs)
    if not pieces:
        return None, None
    chosen, rejected = ([len(one) for one in side] for side in zip(*pieces, strict=True))
    return length_bias(chosen, rejected, clusters), pair_overlap(pieces, clusters)


def _pieces(known: Record | Group, renderer: Renderer | None) -> list[list]:
    """Words of each completion, or its scored tokens without the end-of-turn token, which does not describe
    likeness.
    """
    if isinstance(known, Record):
        return [_WORDS.findall(" ".join(spoken(completion))) for completion in known.completions]
    assert renderer is not None
    scored = [ids[mask].tolist() for ids, mask in zip(known.completions, masks_of(known), strict=True)]
    return [ids[:-1] if ids[-1] == renderer.end_of_turn else ids for ids in scored]


def text_contradictions(rows: SignalRows) -> Contradictions | None:
    """Pairs of texts, normalized, that cannot all be right."""
    judged = []
    for record in rows.loaded.records:
        prompt, texts = (
            normalized(whole_text(record.prompt)),
            [normalized(whole_text(one)) for one in record.completions],
        )
        judged += [(prompt, texts[c], texts[r]) for c, r in record.pairs if texts[c] != texts[r]]
    return contradictions(judged) if judged else None


def formats(rows: SignalRows) -> dict[str, FormatBias]:
    """The formats of chosen and rejected completions."""
    pairs, clusters = [], []
    for record, number in zip(rows.records, rows.prompt, strict=True):
        texts = ["\n".join(spoken(one)) for one in record.completions]
        pairs += [(texts[c], texts[r]) for c, r in record.pairs]
        clusters += [number] * len(record.pairs)
    return format_bias(pairs, clusters) if pairs else {}


def measure_rows(
    source: str,
    rows: SignalRows,
    renderer: Renderer | None,
    held: LoadedRecords | None,
    model: str | None,
    reward: str | None,
) -> DataMeasures:
    """All that needs no samples."""
    kept = [
        (number, group) for number, group in zip(rows.prompt, rows.groups, strict=True) if group is not None
    ]
    if renderer is not None:
        sizes = [size for _, group in kept for size in group.num_scored]
        num_pairs = sum(len(group.pairs) for _, group in kept)
    else:
        sizes = [len(piece) for record in rows.records for piece in _pieces(record, None)]
        num_pairs = sum(len(record.pairs) for record in rows.records)
    texts: dict[int, set[Completion]] = {}
    for number, record in zip(rows.prompt, rows.records, strict=True):
        texts.setdefault(number, set()).update(record.completions)
    lengths, overlap = pair_measures(rows, renderer)
    repeated, example = duplicates(rows)
    return DataMeasures(
        source=source,
        model=model,
        reward=reward,
        unit="tokens" if renderer else "words",
        num_rows=rows.loaded.num_rows,
        num_records=len(rows.loaded.records),
        num_prompts=rows.num_prompts,
        num_pairs=num_pairs,
        completions_per_prompt=float(np.mean([len(found) for found in texts.values()])),
        completion_length=float(np.mean(sizes)),
        unusable={
            what: Fault(rows=len(at), share=len(at) / rows.loaded.num_rows, example=at[0])
            for what, at in rows.unusable.items()
        },
        dropped=rows.dropped,
        faults=text_faults(rows, renderer),
        idle_pairs=rows.idle_pairs,
        duplicates=repeated,
        duplicate_example=example,
        lengths=lengths,
        overlap=overlap,
        contradictions=text_contradictions(rows),
        leakage=leakage(rows, held) if held else None,
        formats=formats(rows),
        own=None,
        left_out=(),
    )
