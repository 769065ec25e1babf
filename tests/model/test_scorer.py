"""A model loaded by its name gives every group its log-probabilities, whatever micro-batches they fall into."""

import numpy as np
import pytest

from preftune.model.layout import LayoutOptions
from preftune.model.load import LoadOptions, load_on_device, weights_dtype
from preftune.model.policy import micro_batches, score_all, score_groups
from preftune.model.scorer import load_scorer, make_scorer
from preftune.types import Group

SMALL = LayoutOptions(micro_batch_tokens=24)


def group(*lengths: int) -> Group:
    ids = np.arange(3, 20, dtype=np.int32)
    return Group(prompt=ids[:4], completions=tuple(ids[:length] for length in lengths))


GROUPS = [group(9, 3), group(2), group(7, 7, 1), group(4, 5)]


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return load_scorer(str(tiny_folder), LoadOptions(), SMALL, "fp32", "cpu")


def test_groups_keep_their_order(policy):
    steps: list[tuple[int, int]] = []
    scored = score_all(policy, GROUPS, SMALL, lambda done, of: steps.append((done, of)))
    assert steps[0] == (0, 4) and steps[-1] == (4, 4) and len(steps) > 2
    for found, one in zip(scored, GROUPS, strict=True):
        alone = score_groups(policy, [one], LayoutOptions())[0]
        assert [len(logp) for logp in found] == [len(ids) for ids in one.completions]
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, alone, strict=True))


def test_micro_batches_cover_all_groups_once(policy):
    parts = list(micro_batches(policy, GROUPS, SMALL))
    assert sorted(i for indices, _ in parts for i in indices) == [0, 1, 2, 3] and len(parts) > 1
    assert all([GROUPS[i] for i in indices] == part for indices, part in parts)


def test_weights_have_the_precision(tiny_folder):
    model = load_on_device(str(tiny_folder), LoadOptions(), "bf16", "cpu")
    notes: list[str] = []
    low = make_scorer(model, LayoutOptions(), "bf16", notes.append)
    assert model.dtype == weights_dtype("bf16") and low.precision == "bf16"
    assert bool(notes) == bool(low.sharing_reason)
