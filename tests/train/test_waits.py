"""How often a step waits for the device: everything that must know a number of it, or a size that depends on one."""

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from preftune.model.adapters import LoraOptions, inject_lora
from preftune.model.layout import LayoutOptions, collate
from preftune.model.policy import Policy, hidden_states, make_value_head, model_head, score_groups
from preftune.model.reference import REFERENCE_SCORES, VOCABULARY_SCORES
from preftune.objectives import OBJECTIVES, Objective, advantages, base
from preftune.objectives.advantages import discounted_by_doubling, discounted_in_order
from preftune.train import step as step_module
from preftune.train.anchors import Anchors
from preftune.train.batches import cut_mismatched, cut_step, make_score, reads_last
from preftune.train.optim import OptimOptions
from preftune.train.optimizers import make_optimizer
from preftune.train.rounding import RoundedAdamW, sum_gradients_exactly
from preftune.train.step import run_step
from preftune.types import Hybrid, Rewards
from tests.models import random_groups, tiny_model

_FETCHES = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__")
_SIZES = ("nonzero", "_unique2", "unique_dim", "unique_consecutive", "masked_select", "_local_scalar_dense")


class Fetched(TorchFunctionMode):
    """Calls of a tensor's methods that bring numbers to Python."""

    def __init__(self, found: Counter):
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _FETCHES:
            self.found[name] += not (_is_window(args[0]) or _on_the_host(args[0]))
            with torch._C.DisableTorchFunction(), Uncounted():
                result = func(*args, **(kwargs or {}))
            if name == "cpu":
                ON_THE_HOST.append(result)
            return result
        return func(*args, **(kwargs or {}))


ON_THE_HOST: list[torch.Tensor] = []
"""What an objective counts from step to step, what was fetched, and what is computed from nothing but these."""


def _on_the_host(tensor: torch.Tensor) -> bool:
    return any(tensor is one for one in ON_THE_HOST)


def _is_window(tensor: torch.Tensor) -> bool:
    """The window of a layer, which goes through the model in the shape of a mask, and never to a device."""
    return tensor.shape == (1, 1, 1, 1)


class Sized(TorchDispatchMode):
    """Operators whose result has a size that depends on numbers of a tensor."""

    def __init__(self, found: Counter):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        by_mask = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        on_the_host = bool(tensors) and all(_on_the_host(one) for one in tensors)
        if not Uncounted.depth and not on_the_host and (name in _SIZES or by_mask or unsized):
            self.found[name] += 1
        result = func(*args, **kwargs)
        if on_the_host:
            ON_THE_HOST.extend(one for one in tree_leaves(result) if isinstance(one, torch.Tensor))
        return result


class Uncounted:
    """Within, operators belong to a call that has been counted."""

    depth = 0

    def __enter__(self):
        Uncounted.depth += 1

    def __exit__(self, *_):
        Uncounted.depth -= 1


def waits(work) -> Counter:
    found: Counter = Counter()
    with Fetched(found), Sized(found):
        work()
    return found


def groups_for(objective: Objective):
    groups = random_groups(seed=3, num_groups=6)
    found = []
    for group in groups:
        behaviour = tuple(np.full(len(ids), -2.0, np.float32) for ids in group.completions)
        more: dict = {"behaviour_logp": behaviour, "behaviour_value": behaviour}
        count = len(group.completions)
        if objective.signal is Rewards:
            more |= {"pairs": (), "rewards": tuple(float(k % 2) for k in range(count))}
        elif objective.signal is Hybrid:
            more["sources"] = (0, 1, 2)[:count]
        else:
            more["labels"] = (1, -1, None)[:count]
        found.append(replace(group, **more))
    return found


def step_of(name: str, layout: LayoutOptions, precision: str = "fp32", rank: int = 0):
    """One step in several micro-batches, its anchors known, its batches on the device."""
    objective, model = OBJECTIVES[name](), tiny_model("llama")
    model.get_input_embeddings().padding_idx = None  # its gradient is sparse on a CPU, and leaves out padding
    adapted = inject_lora(model, LoraOptions(rank=rank)) if rank else None
    head = make_value_head(model) if objective.needs & {"value", "value_after"} else None
    policy = Policy(
        model=model,
        precision=precision,
        sharing="flat",
        sharing_reason="",
        peft_model=adapted,
        value_head=head,
    )
    groups, last = groups_for(objective), reads_last(objective)
    pieces = cut_step(groups, objective.signal, policy, layout, last)
    mismatched = cut_mismatched(groups, objective, policy, layout)
    every = [g for piece in (*pieces, *mismatched) for g in piece.content.groups]
    logps = {g.origin: score_groups(policy, [g], layout)[0] for g in every}
    known = lambda part: [logps[g.origin] for g in part]  # noqa: E731
    vocabulary = objective.needs & VOCABULARY_SCORES
    held = replace(policy, model=copy.deepcopy(model), peft_model=None)

    def hidden(part):
        batch = collate(part, layout, policy.sharing, last)
        with torch.no_grad():
            return hidden_states(held.model, batch, "flat")[batch.predict_at], model_head(held.model)

    anchors = Anchors(
        reference=known if objective.needs & REFERENCE_SCORES else None,
        reference_hidden=hidden if vocabulary else None,
        contrast=known if "contrast" in objective.needs else None,
        behaviour=(lambda part: [list(g.behaviour_logp) for g in part])
        if "behaviour_logp" in objective.needs
        else None,
        behaviour_value=(lambda part: [list(g.behaviour_value) for g in part])
        if "behaviour_value" in objective.needs
        else None,
    )
    optimizer = make_optimizer(policy.trainable(), OptimOptions(learning_rate=1e-3))
    score, parameters = make_score(policy, objective, anchors), list(policy.trainable().values())
    assert len(pieces) >= 3
    state = objective.initial_state() if isinstance(objective, base.Coupled) else {}
    ON_THE_HOST[:] = [one for one in state.values() if one.dtype == torch.int64 or one.dim() == 1]
    return lambda: run_step(
        pieces, objective, score, parameters, optimizer, 1.0, state=state or None, mismatched=mismatched
    )


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """On a CPU, entries that count are picked out, as nobody has to wait for their number."""
    for module in (base, step_module, advantages):
        monkeypatch.setattr(module, "PICKED_ON", set())


def test_what_waits_is_counted():
    one = torch.tensor([1.0, 0.0, 2.0])
    found = waits(
        lambda: (
            one[0].item(),
            one.tolist(),
            bool(one[0] > 0),
            one[one > 0],
            one.nonzero(),
            one.unique(),
            torch.repeat_interleave(one, one.long()),
            torch.repeat_interleave(one, one.long(), output_size=3),
            one + one,
        )
    )
    assert sum(found.values()) == 7, found


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_step_waits_at_most_three_times_however_it_is_cut(name, as_on_a_gpu):
    """Once for the weight of the step, once for its losses, metrics and gradient norm together; coupled objectives
    at most once between.
    """
    found = waits(step_of(name, LayoutOptions(micro_batch_tokens=40)))
    assert sum(found.values()) <= 3, found


@pytest.mark.parametrize("name", ["sft", "dpo", "bnf", "grpo", "rloo"])
def test_adapters_and_bf16_add_no_wait(name, as_on_a_gpu):
    found = waits(step_of(name, LayoutOptions(micro_batch_tokens=40), "bf16", rank=2))
    assert sum(found.values()) <= 3, found


@pytest.mark.parametrize("name", ["sft", "bnf", "kto", "dynamic-ft"])
def test_entries_that_do_not_count_are_left_out_in_either_way(name, monkeypatch):
    results = []
    for picked in ({"cpu"}, set()):
        monkeypatch.setattr(base, "PICKED_ON", picked)
        monkeypatch.setattr(step_module, "PICKED_ON", picked)
        results.append(step_of(name, LayoutOptions(micro_batch_tokens=40))())
    one, other = results
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-6)


def test_rounded_weights_are_counted_without_a_wait():
    weights = [torch.nn.Parameter(torch.randn(5, 7).bfloat16()) for _ in range(8)]
    sum_gradients_exactly(weights)
    optimizer = RoundedAdamW(weights, lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, seed=1)
    for weight in weights:
        weight.grad = torch.randn(5, 7)
    optimizer.step()
    assert not waits(optimizer.step)
    assert [int(optimizer.state[weight]["step"]) for weight in weights] == [2] * 8


@pytest.mark.parametrize("discount", [0.95, 0.0, 1.0])
def test_discounted_sums_by_doubling_are_those_in_order(discount):
    draw = torch.Generator().manual_seed(4)
    lengths = torch.tensor([1, 33, 2, 7, 1, 64, 5])
    values = torch.randn(113, generator=draw, dtype=torch.double)
    found = discounted_by_doubling(values, lengths, discount)
    torch.testing.assert_close(found, discounted_in_order(values, lengths, discount), rtol=1e-12, atol=1e-12)
    assert not waits(lambda: discounted_by_doubling(values, lengths, discount))
