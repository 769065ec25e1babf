"""What a resumed on-policy run needs to continue with the same numbers, and its form as JSON, without loss."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from preftune.train.onpolicy.collect import Draw
from preftune.types import Group


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """Groups ready to be learned from, and when they were drawn."""

    number: int
    step: int  # optimizer steps that the policy had done
    groups: tuple[Group, ...]


@dataclass(kw_only=True)
class SourceState:
    """Everything that a resumed run needs to continue with the same numbers."""

    draws: int = 0  # draws begun: the cursor over the prompts, and the seed of the next
    collections: int = 0
    begun: int = 0  # optimizer steps before the collections in `current` came into use
    current: list[Collection] = field(default_factory=list)  # the newest last; earlier states are replayed
    waiting: list[Collection] = field(default_factory=list)  # drawn, and held back by `lag`
    gathered: list[Group] = field(default_factory=list)  # of the collection that is being filled
    unjudged: Draw | None = None


def plain_state(state: SourceState) -> dict[str, Any]:
    drawn = state.unjudged
    return {
        "draws": state.draws,
        "collections": state.collections,
        "begun": state.begun,
        "current": [_plain_collection(one) for one in state.current],
        "waiting": [_plain_collection(one) for one in state.waiting],
        "gathered": [plain_group(group) for group in state.gathered],
        "unjudged": None
        if drawn is None
        else {
            "groups": [plain_group(group) for group in drawn.groups],
            "texts": drawn.texts,
            "ended": drawn.ended,
            "columns": drawn.columns,
        },
    }


def state_of(plain: Mapping[str, Any]) -> SourceState:
    drawn = plain["unjudged"]
    return SourceState(
        draws=plain["draws"],
        collections=plain["collections"],
        begun=plain["begun"],
        current=[_collection_of(one) for one in plain["current"]],
        waiting=[_collection_of(one) for one in plain["waiting"]],
        gathered=[group_of(one) for one in plain["gathered"]],
        unjudged=None
        if drawn is None
        else Draw(
            groups=tuple(group_of(one) for one in drawn["groups"]),
            texts=tuple(map(tuple, drawn["texts"])),
            ended=tuple(map(tuple, drawn["ended"])),
            columns={
                name: tuple(map(tuple, values)) for name, values in drawn.get("columns", {}).items()
            },  # states of before rollouts have none
        ),
    )


def _plain_collection(collection: Collection) -> dict[str, Any]:
    return {
        "number": collection.number,
        "step": collection.step,
        "groups": [plain_group(one) for one in collection.groups],
    }


def _collection_of(plain: Mapping[str, Any]) -> Collection:
    return Collection(
        number=plain["number"], step=plain["step"], groups=tuple(group_of(one) for one in plain["groups"])
    )


_ARRAYS = {
    "completions": np.int32,
    "scored": np.bool_,
    "behaviour_logp": np.float32,
    "correction": np.float32,
    "behaviour_value": np.float32,
    "step_rewards": np.float32,
}


def plain_group(group: Group) -> dict[str, Any]:
    """A group as JSON holds it, without loss: a float32 is a double exactly."""
    arrays = {name: [array.tolist() for array in getattr(group, name)] for name in _ARRAYS}
    return (
        {one.name: getattr(group, one.name) for one in fields(Group)}
        | arrays
        | {"prompt": group.prompt.tolist()}
    )


def group_of(plain: Mapping[str, Any]) -> Group:
    arrays: dict[str, Any] = {
        name: tuple(np.array(one, dtype=kind) for one in plain.get(name, ()))
        for name, kind in _ARRAYS.items()
    }
    others: dict[str, Any] = {
        name: tuple(plain[name]) for name in ("probabilities", "labels", "rewards", "sources")
    }
    return Group(
        prompt=np.array(plain["prompt"], dtype=np.int32),
        pairs=tuple(map(tuple, plain["pairs"])),
        origin=plain["origin"],
        **others,
        **arrays,
    )
