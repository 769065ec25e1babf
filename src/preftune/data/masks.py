"""Which tokens of a completion are scored, where some are not. Pure."""

import numpy as np

from preftune.types import Group


def masks_of(group: Group) -> tuple[np.ndarray, ...]:
    """A mask for each completion, also where all tokens are scored."""
    return group.scored or tuple(np.ones(len(ids), dtype=bool) for ids in group.completions)


def joined_masks(*groups: Group) -> tuple[np.ndarray, ...]:
    """`Group.scored` of the completions of all groups one after another: empty where all tokens are scored."""
    if not any(group.scored for group in groups):
        return ()
    return tuple(mask for group in groups for mask in masks_of(group))


def ones_of(group: Group) -> tuple[np.ndarray, ...]:
    """A weight of 1 for each scored token of each completion."""
    return tuple(np.ones(size, dtype=np.float32) for size in group.num_scored)
