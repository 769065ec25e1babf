"""The trainer's log-probabilities against the sampler's."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from preftune.errors import TrainingError
from preftune.model.layout import LayoutOptions
from preftune.model.policy import Policy
from preftune.sampling.agreement import Agreement, agreement, check_agreement, compare_logps
from preftune.sampling.sample import SampleOptions, sample
from preftune.sampling.sampled import Sampled
from tests.models import tiny_model
from tests.sampling.test_engine import PROMPTS, RENDERER


def policy_of(model) -> Policy:
    return Policy(model=model, precision="fp32", sharing="shared", sharing_reason="")


def test_by_hand():
    one, two = [np.array([-1.0, -2.0]), np.array([-0.5])], [np.array([-1.25, -2.0]), np.array([-1.5])]
    assert compare_logps(one, two) == Agreement(mean=1.25 / 3, max=1.0, num_tokens=3)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.9}], ids=str)
def test_the_same_model_agrees_and_another_does_not(settings):
    model = tiny_model("qwen3")
    drawn = sample(
        model, RENDERER, PROMPTS, SampleOptions(num_completions=4, max_new_tokens=12, **settings), 0
    )
    layout = LayoutOptions(micro_batch_tokens=40)  # several micro-batches, in an order of their own
    found = agreement(policy_of(model), PROMPTS, drawn, layout)
    assert found.num_tokens == sum(len(one.token_ids) for ones in drawn for one in ones)
    assert found.mean <= found.max < 1e-4
    check_agreement(found, 1e-3)
    with torch.no_grad():
        model.lm_head.weight[7] += 0.3
    found = agreement(policy_of(model), PROMPTS, drawn)
    with pytest.raises(TrainingError, match="The trainer and the sampler disagree"):
        check_agreement(found, 1e-3)


def test_tokens_that_the_model_did_not_draw_are_context():
    """The first three tokens as a beginning that was given, and two in the middle as a tool's result."""
    model = tiny_model("qwen3")
    drawn = sample(model, RENDERER, PROMPTS, SampleOptions(num_completions=4, max_new_tokens=12), 0)
    masked = [[_with_context(one) for one in ones] for ones in drawn]
    found = agreement(policy_of(model), PROMPTS, masked)
    assert found.num_tokens == sum(one.num_scored for ones in masked for one in ones)
    assert 0 < found.num_tokens < sum(len(one.token_ids) for ones in drawn for one in ones)
    assert found.max < 1e-4
    shifted = [[replace(one, scored=np.roll(one.scored, 1)) for one in ones] for ones in masked]
    assert agreement(policy_of(model), PROMPTS, shifted).mean > 0.01


def _with_context(one: Sampled) -> Sampled:
    scored = np.ones(len(one.token_ids), dtype=bool)
    if len(scored) > 8:
        scored[:3] = scored[5:7] = False
    assert one.logp is not None and one.behaviour_logp is not None
    return replace(one, scored=scored, logp=one.logp[scored], behaviour_logp=one.behaviour_logp[scored])


def test_no_number_is_no_agreement():
    with pytest.raises(TrainingError, match="differ by nan nats per token on average"):
        check_agreement(Agreement(mean=math.nan, max=math.nan, num_tokens=1), 1.0)


def test_a_sampler_that_tells_nothing_is_refused():
    model = tiny_model("llama")
    drawn = sample(model, RENDERER, PROMPTS[:2], SampleOptions(max_new_tokens=3), 0)
    drawn[1] = [replace(one, logp=None) for one in drawn[1]]
    with pytest.raises(TrainingError, match="A completion of prompt 1 has no log-probabilities"):
        agreement(policy_of(model), PROMPTS[:2], drawn)


@pytest.mark.parametrize(
    ("gap", "limit", "advice"),
    [
        (0.021, 1e-3, r"bf16 or fp8 .*--dtype float32.*--precision bf16.*--collect\.sampler_gap 0\.05"),
        (0.15, 0.1, r"--collect\.sampler_gap 0\.3"),
        (1.5, 1e-3, "The sampler has other weights"),
        (math.nan, 1e-3, "Lower --learning_rate"),
    ],
)
def test_the_size_of_a_gap_names_its_cause(gap, limit, advice):
    with pytest.raises(TrainingError, match=advice):
        check_agreement(Agreement(mean=gap, max=2 * gap, num_tokens=9), limit)
