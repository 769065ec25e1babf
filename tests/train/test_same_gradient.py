"""However a step is cut up and laid out, the weights after it are the same."""

import numpy as np
import pytest
import torch

from preftune.model.layout import LayoutOptions, split_micro_batches
from preftune.model.policy import Policy, score_groups
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.sft import SFT
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_step, make_score
from preftune.train.step import run_step
from tests.models import random_groups, tiny_model

GROUPS = random_groups(seed=3, num_groups=9, completions=3)
LAYOUTS = {
    "flat": (LayoutOptions(micro_batch_tokens=4096), "flat"),
    "flat, uneven pieces": (LayoutOptions(micro_batch_tokens=70), "flat"),
    "one piece": (LayoutOptions(micro_batch_tokens=4096), "shared"),
    "one group a piece": (LayoutOptions(micro_batch_tokens=1), "shared"),
    "uneven pieces": (LayoutOptions(micro_batch_tokens=70), "shared"),
    "packed": (LayoutOptions(micro_batch_tokens=4096), "packed"),
    "packed, uneven pieces": (LayoutOptions(micro_batch_tokens=90), "packed"),
    "single": (LayoutOptions(micro_batch_tokens=100), "single"),
}


def three_steps(objective, layout, sharing) -> dict[str, torch.Tensor]:
    """SGD, which hides no scale of the gradient as AdamW would."""
    model = tiny_model("llama", std=0.15)
    policy = Policy(model=model, precision="fp32", sharing=sharing, sharing_reason="")
    anchor = Policy(
        model=tiny_model("llama", std=0.15, seed=1), precision="fp32", sharing="single", sharing_reason=""
    )
    known = {id(group): score_groups(anchor, [group], LayoutOptions())[0] for group in GROUPS}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scorer = make_score(
        policy, objective, Anchors(reference=lambda part: [known[id(group)] for group in part])
    )
    for start in (0, 3, 6):
        pieces = cut_step(GROUPS[start : start + 3], objective.signal, policy, layout)
        run_step(pieces, objective, scorer, list(policy.trainable().values()), optimizer, max_grad_norm=1.0)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "objective", [BNF(), BNF(reduction="pair_min"), DPO(), SFT(), SFT(reduction="sequence_mean")], ids=repr
)
def test_three_steps_do_not_depend_on_the_cut(objective):
    start = tiny_model("llama", std=0.15).state_dict()
    wanted = three_steps(objective, *LAYOUTS["one piece"])
    moved = max(float((wanted[name] - start[name]).abs().max()) for name in wanted)
    assert moved > 1e-3
    for name, (layout, sharing) in list(LAYOUTS.items())[1:]:
        got = three_steps(objective, layout, sharing)
        for key, tensor in wanted.items():
            gap = float((got[key] - tensor).abs().max() / tensor.abs().max())
            assert gap < 1e-6, (name, key, gap)


def test_the_layouts_of_this_test_do_differ():
    counts = {
        name: len(split_micro_batches(GROUPS[:3], layout, sharing))
        for name, (layout, sharing) in LAYOUTS.items()
    }
    assert counts["one piece"] == counts["flat"] == 1 and counts["one group a piece"] == 3
    assert 1 < counts["uneven pieces"] <= 3 and 1 < counts["flat, uneven pieces"] <= 3
    assert sum(len(completion) for group in GROUPS for completion in group.completions) > 100
    assert (
        len({int(np.sum([len(group.completions) for group in GROUPS[i : i + 3]])) for i in (0, 3, 6)}) > 1
    )  # uneven steps
