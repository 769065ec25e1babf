"""The first stage of the set-up: the groups that a run learns from, and those that it holds out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from preftune.data.fit import take_completions
from preftune.data.options import DataOptions
from preftune.data.prepare import Prepared, prepare
from preftune.data.signals import SignalName
from preftune.data.store import LazyGroups, SomeGroups
from preftune.errors import ConfigError, DataError
from preftune.model.limits import Limits
from preftune.objectives import Objective, objective_name
from preftune.text import plural
from preftune.train.sources import hold_out
from preftune.types import SOURCES, Group, Hybrid, Labels, Pairs, Record, Rewards

SIGNAL_NAMES: dict[type, SignalName] = {
    Pairs: "pairs",
    Labels: "labels",
    Rewards: "rewards",
    Hybrid: "hybrid",
}


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """Data files of a run, and their use."""

    data: str
    eval_data: str | None
    eval_fraction: float
    seed: int  # of the held-out split
    rows: DataOptions
    objective: Objective
    room: int | None = (
        None  # on-policy: tokens that a drawn completion may need; of the data, prompts are used
    )
    uses_completions: bool = False  # on-policy: whether the completions in the data are learned from as well
    unjudged: bool = False  # whether unscored samples are next to the pairs of the data

    @property
    def signal(self) -> SignalName:
        """What is made of the completions in the data; samples of the policy come from sampling if there is any."""
        signal = SIGNAL_NAMES[self.objective.signal]
        return "pairs" if signal == "hybrid" and self.room is not None else signal


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadData:
    """Prepared groups of a run; on-policy, groups are prompts without completions."""

    plan: DataPlan
    prepared: Prepared
    train: Sequence[Group]
    held: Sequence[Group]
    held_records: Sequence[Record] = ()  # of held-out prompts from a separate file
    alone: int = 0  # groups left out because they have fewer completions than the objective compares
    crowded: int = 0  # groups left out because their prompts leave no room for samples

    @property
    def lines(self) -> list[str]:
        """Describe which rows are used and which are dropped."""
        return [
            *self.prepared.report.lines(),
            *(
                [f"{plural(self.alone, 'group')} left out: too few completions to compare with each other"]
                if self.alone
                else []
            ),
            *(
                [
                    f"{plural(self.crowded, 'group')} left out: the prompt leaves no room for sampling.max_new_tokens"
                ]
                if self.crowded
                else []
            ),
            f"{len(self.train)} groups to train on, {len(self.held)} held out",
        ]


def read_data(plan: DataPlan, tokenizer: PreTrainedTokenizerBase) -> ReadData:
    """Training groups and held-out groups."""
    if plan.unjudged:
        return _read_paired(plan, tokenizer)
    if plan.room is not None:
        prepared = prepare(plan.data, tokenizer, "prompts", prompt_rows(plan))
        if plan.eval_data is not None:
            other = prepare(plan.eval_data, tokenizer, "prompts", prompt_rows(plan))
            return ReadData(
                plan=plan,
                prepared=_reported(prepared, other),
                train=prepared.groups,
                held=other.groups,
                held_records=other.records,
            )
        train, held = hold_out(prepared.groups, plan.eval_fraction, plan.seed)
        return ReadData(plan=plan, prepared=prepared, train=train, held=held)
    signal = plan.signal
    prepared = prepare(plan.data, tokenizer, signal, plan.rows)
    if plan.eval_data is not None:
        other = prepare(plan.eval_data, tokenizer, signal, plan.rows)
        train, held, prepared = prepared.groups, other.groups, _reported(prepared, other)
    else:
        train, held = hold_out(prepared.groups, plan.eval_fraction, plan.seed)
    learned = learned_groups(train, plan.objective)
    if not learned:
        lacking = (
            f"fewer than {plan.objective.least_completions} completions with a reward"
            if plan.objective.signal is Rewards
            else "a preferred completion"
        )
        without = "with" if plan.objective.signal is Rewards else "without"
        raise _teaches_nothing(plan, f"{len(prepared.groups)} groups {without} {lacking}")
    alone = len(train) - len(learned) if plan.objective.signal is Rewards else 0
    if warning := one_class(prepared, plan.objective):
        prepared = replace(prepared, report=replace(prepared.report, warning=warning))
    return ReadData(plan=plan, prepared=prepared, train=learned, held=held, alone=alone)


def _reported(prepared: Prepared, held: Prepared) -> Prepared:
    """The data with the account of the held-out file in its report."""
    return replace(prepared, report=replace(prepared.report, eval_data=held.report.as_dict()))


def _read_paired(plan: DataPlan, tokenizer: PreTrainedTokenizerBase) -> ReadData:
    """Pairs of the data whose prompts leave room for samples; held-out pairs as well."""
    prepared = prepare(plan.data, tokenizer, plan.signal, plan.rows, columns_passed=True)
    train, held, records = prepared.groups, (), ()
    if plan.eval_data is None:
        train, held = hold_out(prepared.groups, plan.eval_fraction, plan.seed)
    else:
        other = prepare(plan.eval_data, tokenizer, plan.signal, plan.rows, columns_passed=True)
        held, records = other.groups, other.records
    most = plan.rows.max_length - (plan.room or 0)
    fitting = [
        SomeGroups(
            groups=groups,
            places=np.array(
                [k for k, group in enumerate(groups) if len(group.prompt) <= most], dtype=np.int64
            ),
        )
        for groups in (train, held)
    ]
    if not fitting[0]:
        raise DataError(
            "No prompt leaves room for samples",
            got=f"rows.max_length {plan.rows.max_length}, sampling.max_new_tokens {plan.room}",
            expected=f"prompts of at most {most} tokens",
            do="Lower --sampling.max_new_tokens or raise --rows.max_length",
        )
    return ReadData(
        plan=plan,
        prepared=prepared,
        train=fitting[0],
        held=WrittenGroups(groups=fitting[1]),
        held_records=records,
        crowded=len(train) + len(held) - sum(map(len, fitting)),
    )


def one_class(prepared: Prepared, objective: Objective) -> str:
    """What the objective will do with labels that are all equal; nothing where both kinds occur."""
    derived, name = prepared.report.derived, objective_name(objective)
    if derived is None or derived.signal != "labels" or (derived.num_preferred and derived.num_dispreferred):
        return ""
    if len(_counted(objective)) < 2:  # SFT learns from one kind anyway
        return ""
    if derived.num_preferred:
        return (
            f"warning: all {derived.num_preferred} labels are +1, so {name} only raises the probability of completions, "
            "as supervised fine-tuning does. Is there a column that says which completions are dispreferred?"
        )
    return (
        f"warning: all {derived.num_dispreferred} labels are -1, so {name} only lowers the probability of completions, and "
        "nothing says what to write instead. Is there a column that says which completions are preferred?"
    )


def within(plan: DataPlan, limits: Limits) -> DataPlan:
    """The plan with rows no longer than the model's positions."""
    most = limits.positions
    if most is None or plan.rows.max_length <= most:
        return plan
    return replace(plan, rows=replace(plan.rows, max_length=most))


def read_completions(
    plan: DataPlan, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Group]
) -> Sequence[Group]:
    """On-policy: the groups of the data that are learned from as they are, those of the training prompts."""
    if not plan.uses_completions:
        return ()
    known = {group.prompt.tobytes() for group in prompts}
    groups = prepare(plan.data, tokenizer, plan.signal, plan.rows, columns_passed=True).groups
    places = [place for place, group in enumerate(groups) if group.prompt.tobytes() in known]
    learned = learned_groups(
        SomeGroups(groups=groups, places=np.array(places, dtype=np.int64)), plan.objective
    )
    if not learned:
        raise _teaches_nothing(plan, "collect.data_share above 0")
    return WrittenGroups(groups=learned) if plan.objective.signal is Hybrid else learned


def _teaches_nothing(plan: DataPlan, got: str) -> DataError:
    return DataError(
        f"{plan.data} has nothing for this objective to learn from",
        got=got,
        expected="completions with preferences"
        if plan.room is not None
        else "preferred completions or pairs",
    )


def prompt_rows(plan: DataPlan) -> DataOptions:
    """How prompts are read: without what makes pairs of completions, and with room for a completion."""
    new_tokens = plan.room or 0
    length = plan.rows.max_length - new_tokens + 1
    if length < 2:
        raise ConfigError(
            "rows.max_length leaves no room for a prompt",
            got=f"{plan.rows.max_length} tokens",
            expected=f"more than sampling.max_new_tokens, {new_tokens}",
        )
    if plan.uses_completions:  # then these state what is made of the completions in the data
        return replace(plan.rows, max_length=length, pairing="all", min_gap=0.0, soft_label_temperature=None)
    return replace(plan.rows, max_length=length)


@dataclass(frozen=True, eq=False, kw_only=True)
class LearnedGroups(LazyGroups):
    """Labeled groups without the completions that an objective puts no weight on; made on request."""

    groups: Sequence[Group]
    counted: frozenset[int]  # labels

    def __len__(self) -> int:
        return len(self.groups)

    def _at(self, place: int) -> Group:
        group = self.groups[place]
        keep = [k for k, label in enumerate(group.labels) if label in self.counted]
        return group if len(keep) == len(group.completions) else take_completions(group, keep, pairs=())


@dataclass(frozen=True, eq=False, kw_only=True)
class WrittenGroups(LazyGroups):
    """Groups that mark their completions as the data's; made when they are requested."""

    groups: Sequence[Group]

    def __len__(self) -> int:
        return len(self.groups)

    def _at(self, place: int) -> Group:
        group = self.groups[place]
        return replace(group, sources=(SOURCES.index("data"),) * len(group.completions))


def _counted(objective: Objective) -> frozenset[int]:
    """The labels on which the objective puts weight."""
    lengths = torch.ones(1, dtype=torch.long)
    return frozenset(
        label
        for label in (1, -1)
        if (objective.weights(lengths, Labels(label=torch.tensor([label]))).sum() > 0).item()
    )


def learned_groups(groups: Sequence[Group], objective: Objective) -> Sequence[Group]:
    """Labeled groups without the completions on which the objective puts no weight (SFT: the dispreferred
    ones); of rewarded groups those with as many completions as the objective compares.
    """
    if objective.signal is Rewards and objective.least_completions > 1:
        enough = [
            place
            for place, group in enumerate(groups)
            if sum(reward is not None for reward in group.rewards) >= objective.least_completions
        ]
        if len(enough) == len(groups):
            return groups
        return SomeGroups(groups=groups, places=np.array(enough, dtype=np.int64))
    if objective.signal is not Labels:
        return groups
    counted = _counted(objective)
    places = [place for place, group in enumerate(groups) if any(label in counted for label in group.labels)]
    return LearnedGroups(
        groups=SomeGroups(groups=groups, places=np.array(places, dtype=np.int64)), counted=counted
    )
