"""Counted operations against PyTorch's own counter, on what is really computed."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from preftune.model.adapters import LoraOptions, inject_lora
from preftune.model.cost import Shape, Work, product_rate, work_of
from preftune.model.layout import LayoutOptions, collate
from preftune.model.policy import Policy, score
from preftune.types import Group
from tests.models import random_groups, tiny_model
from tests.pinned import needs_pinned


def ids(count: int) -> np.ndarray:
    return np.arange(3, 3 + count, dtype=np.int32)


def test_by_hand():
    """One layer of width 4 and a window of 2: of 3 + 2 positions, (1 + 2 + 2) pairs in the prompt, 2 for each
    that follows.
    """
    shape = Shape(body=10, trained_body=6, head=20, trains_head=False, attention=((4, 2), (4, None)))
    group = Group(prompt=ids(3), completions=(ids(2), ids(2)), origin="a")
    forward = 2.0 * 10 * 5 + 2 * 20 * 4 + 4 * 4 * (5 + 2 + 2) + 4 * 4 * (6 + 4 + 4)
    assert work_of(shape, [group]) == Work(
        forward=forward, backward=2.0 * 10 * 5 + 2 * 6 * 5 + 2 * 20 * 4 + 8 * 4 * (5 + 2 + 2 + 6 + 4 + 4)
    )


@needs_pinned("transformers")
@pytest.mark.parametrize("rank", [0, 2])
def test_products_are_those_that_run(rank):
    """Without attention, whose kernel computes the halves of squares too. One token of the head's four
    products is recomputed.
    """
    model, groups = tiny_model("llama"), random_groups(1)
    if rank:
        inject_lora(model, LoraOptions(rank=rank))
    shape = Shape.of(model)
    work = work_of(Shape(**{**vars_of(shape), "attention": ()}), groups)
    policy = Policy(model=model, precision="fp32", sharing="flat", sharing_reason="")
    batch = collate(groups, LayoutOptions(), "flat")
    with FlopCounterMode(display=False) as counter:
        loss = score(policy, batch).logp.sum()
        forward = products(counter)
        loss.backward()
    assert work.forward == forward
    first_layer = 0.0 if not rank else first_inputs(model, batch.num_positions)
    assert work.backward == pytest.approx(products(counter) - forward + first_layer, rel=1e-12)


def vars_of(shape: Shape) -> dict:
    return {name: getattr(shape, name) for name in shape.__dataclass_fields__}


def products(counter: FlopCounterMode) -> float:
    counts = counter.get_flop_counts()["Global"]
    return float(sum(count for operation, count in counts.items() if "mm" in str(operation)))


def first_inputs(model, positions: int) -> float:
    """With adapters the embeddings need no gradient, so that none flows into the first layer's projections."""
    attention = model.get_decoder().layers[0].self_attn
    found = 0
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        found += projection.base_layer.weight.numel() + projection.lora_A["default"].weight.numel()
    return 2.0 * found * positions


def test_a_rate_is_a_rate():
    assert product_rate(torch.device("cpu"), "fp32") > 1e8
