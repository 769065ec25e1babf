"""Pairs that are left out before training, by what the policy at its start makes of them."""

from collections.abc import Sequence
from dataclasses import replace

from preftune.data.fit import take_completions
from preftune.errors import DataError
from preftune.measures.ches import below_quantile, parse_filter
from preftune.measures.probe import ches_scores
from preftune.model.layout import LayoutOptions, group_pairs
from preftune.model.policy import Policy
from preftune.progress import Reporter
from preftune.train.groups import ReadData
from preftune.types import Group


def filter_pairs(
    expression: str, policy: Policy, layout: LayoutOptions, data: ReadData, report: Reporter
) -> ReadData:
    """The training groups without pairs whose length-normalized CHES is at or above the quantile that
    the expression names.

    The pairs of labeled groups are every +1 against every -1. What is left out is counted in the data
    report.
    """
    train = data.train
    pairs = [group_pairs(group) for group in train]
    if not any(pairs):
        raise DataError(
            "filter has no pairs to choose from",
            got=f"{len(train)} groups without one",
            expected="prompts with a preferred and a dispreferred completion",
            do="Leave out --filter",
        )
    scored = ches_scores(policy, train, pairs, layout, lambda done, of: report.update("ches", done, of))
    limit, below = below_quantile([one.normalized for row in scored for one in row], parse_filter(expression))
    verdicts = iter(below)
    kept = [
        _with_pairs(group, ones, [next(verdicts) for _ in ones])
        for group, ones in zip(train, pairs, strict=True)
    ]
    groups = [group for group in kept if group is not None]
    if not groups:
        raise DataError(
            "filter leaves nothing to train on",
            got=f"{len(below)} pairs, none below a CHES of {limit:.4g}",
            do="Use more pairs, or leave out --filter",
        )
    reason = f"length-normalized CHES of {limit:.4g} or more, by filter {expression.replace(' ', '')}"
    filtered = replace(data.prepared.report, filtered={reason: len(below) - sum(below)})
    report.note(filtered.filtered_lines()[0])
    return replace(data, prepared=replace(data.prepared, report=filtered), train=groups)


def _with_pairs(group: Group, pairs: Sequence[tuple[int, int]], keep: Sequence[bool]) -> Group | None:
    """The group with the kept pairs and the completions that are in one of them, or that never were in a
    pair.
    """
    if all(keep):
        return group
    inside = {k for pair in pairs for k in pair}
    stay = {k for pair, kept in zip(pairs, keep, strict=True) if kept for k in pair}
    completions = [k for k in range(len(group.completions)) if k in stay or k not in inside]
    if not completions:
        return None
    return take_completions(
        group, completions, [p for p, kept in enumerate(keep) if kept] if group.pairs else ()
    )
