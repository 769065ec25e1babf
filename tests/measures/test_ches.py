"""CHES by hand, the filter's grammar, and hidden states that do not depend on the layout."""

import numpy as np
import pytest
import torch

from preftune.errors import ConfigError, DataError
from preftune.measures.ches import below_quantile, ches, parse_filter
from preftune.measures.probe import ches_scores, mean_logit, probe_groups
from preftune.model.layout import LayoutOptions
from preftune.model.policy import Policy, model_head
from preftune.types import Group
from tests.models import random_groups, tiny_model


def quiet(done: int, total: int) -> None:
    pass


def test_ches_by_hand():
    """S_w = (3, 1) over 2 positions, S_l = (1, -2) over 4: <S_w, S_l> = 1 and |S_w|^2 = 10."""
    found = ches(np.array([3.0, 1.0]), np.array([1.0, -2.0]), 2, 4)
    assert (found.plain, found.normalized) == (-9.0, 1 / 8 - 10 / 4)
    assert ches(np.ones(3), np.ones(3), 5, 5).plain == 0  # the same completion twice
    with pytest.raises(DataError, match="with tokens"):
        ches(np.ones(1), np.ones(1), 0, 1)


def test_the_grammar_of_the_filter():
    assert parse_filter("ches<0.9") == 0.9 and parse_filter(" ches < .5 ") == 0.5
    for text in (
        "ches<1",
        "ches<0",
        "ches<0.0",
        "ches>0.9",
        "ches",
        "length<3",
        "ches<90%",
        "ches<-0.5",
        "ches<1e-3",
    ):
        with pytest.raises(ConfigError, match=r"filter cannot be understood.*ches<0.9"):
            parse_filter(text)


def test_what_is_below_a_quantile():
    assert below_quantile([4.0, 1.0, 3.0, 2.0, 5.0], 0.75) == (4.0, [False, True, True, True, False])
    assert below_quantile([1.0, 2.0], 0.5) == (1.5, [True, False])
    assert below_quantile([7.0], 0.9) == (7.0, [False])
    with pytest.raises(DataError, match="no pairs"):
        below_quantile([], 0.5)


def alone(model, group: Group, k: int) -> torch.Tensor:
    """[H]: one sequence by itself; the last layer's states from the prompt's last token to the completion's
    last but one.
    """
    ids = torch.from_numpy(np.concatenate([group.prompt, group.completions[k]])).long()
    states = model(input_ids=ids[None], output_hidden_states=True, use_cache=False).hidden_states[-1][0]
    return states[len(group.prompt) - 1 : -1].sum(0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("sharing", ["shared", "packed"])
@torch.no_grad()
def test_hidden_states_do_not_depend_on_the_layout(name, sharing):
    """Two pairs of each group, against one sequence at a time through the whole model."""
    model = tiny_model(name)
    groups = random_groups(3, num_groups=5)
    policy = Policy(model=model, precision="fp32", sharing=sharing, sharing_reason="")
    pairs = [[(0, 1), (1, 0)]] * len(groups)
    found = ches_scores(policy, groups, pairs, LayoutOptions(micro_batch_tokens=96), quiet)
    for group, scores in zip(groups, found, strict=True):
        sums = [alone(model, group, k).double().numpy() for k in range(2)]
        for (c, r), one in zip(((0, 1), (1, 0)), scores, strict=True):
            across, own = sums[c] @ sums[r], sums[c] @ sums[c]
            n_c, n_r = len(group.completions[c]), len(group.completions[r])
            assert one.plain == pytest.approx(across - own, rel=1e-4, abs=1e-3)
            assert one.normalized == pytest.approx(across / (n_c * n_r) - own / n_c**2, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "granite", "gpt2"])
@torch.no_grad()
def test_probes_are_the_model_s_own_logits(name):
    """Scale and soft cap included: gemma3 caps, granite scales."""
    model = tiny_model(name)
    groups = random_groups(1, num_groups=3)
    policy = Policy(model=model, precision="fp32", sharing="shared", sharing_reason="")
    for group, row in zip(groups, probe_groups(policy, groups, LayoutOptions(), quiet), strict=True):
        for completion, probe in zip(group.completions, row, strict=True):
            ids = torch.from_numpy(np.concatenate([group.prompt, completion])).long()
            logits = model(input_ids=ids[None]).logits[0, len(group.prompt) - 1 : -1].float()
            target = ids[len(group.prompt) :, None]
            assert probe.logit == pytest.approx(logits.gather(1, target)[:, 0].numpy(), rel=1e-4, abs=1e-4)
            assert probe.mean_logit == pytest.approx(logits.mean(1).numpy(), rel=1e-4, abs=1e-4)
            assert probe.logp == pytest.approx(
                logits.log_softmax(1).gather(1, target)[:, 0].numpy(), rel=1e-4, abs=1e-4
            )
            assert probe.greedy.tolist() == logits.argmax(1).tolist()
            assert probe.greedy_logp == pytest.approx(
                logits.log_softmax(1).amax(1).numpy(), rel=1e-4, abs=1e-4
            )


def test_a_biased_head_has_the_mean_of_its_bias():
    head = model_head(tiny_model("llama"))
    hidden, bias = torch.randn(4, 32), torch.randn(64)
    biased = type(head)(weight=head.weight, bias=bias, scale=2.0)
    assert torch.allclose(
        mean_logit(hidden, biased), 2.0 * (hidden @ head.weight.t() + bias).mean(1), atol=1e-5
    )
