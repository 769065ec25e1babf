"""DFT: a prompt with a demonstration and two samples, a prompt with two equal demonstrations and one sample."""

import math

import pytest
import torch

from preftune.errors import StorageError
from preftune.objectives.dft import DFT, is_demonstration
from tests.objectives.coupled import couple, coupled, make_step_scores, numbers, rewards_of
from tests.objectives.golden import gradient

LOGP, REF = [-2.0, -3.0, -4.0, -1.0, -5.0, -6.0], [-1.0, -2.0, -1.0, -9.0, -4.0, -2.0]
LENGTHS = [1, 2, 1, 1, 1, 3]
SIGNAL = rewards_of((1.0, 0.0, 0.5), (2.0, 2.0, 1.0))
PROMPTS = [70, 70, 70, 30, 30, 30]
DFT1, DFT2 = DFT(tau=2.0, gamma=0.75), DFT(tau=0.5, gamma=0.75, variant="dft2")
# exponents d of the samples 1, 2 and 5: lp / 2 - lr, and lp / |y| / .5
D1 = [-1.5 + 2.0, -2.0 + 1.0, -3.0 + 2.0]
D2 = [-3.0, -8.0, -4.0]


def step(ref=REF):
    return make_step_scores(LOGP, ref, LENGTHS)


def estimates(d, before=(0.0, 0.0)):
    """u of both prompts from the definition: .25 exp(before) + .75 mean exp(d)."""
    first = 0.25 * math.exp(before[0]) + 0.75 * (math.exp(d[0]) + math.exp(d[1])) / 2
    return math.log(first), math.log(0.25 * math.exp(before[1]) + 0.75 * math.exp(d[2]))


@pytest.mark.parametrize(("objective", "d"), [(DFT1, D1), (DFT2, D2)], ids=["dft", "dft2"])
def test_golden(objective, d):
    score = LOGP if objective is DFT1 else [total / n for total, n in zip(LOGP, LENGTHS, strict=True)]
    first, second = estimates(d)
    weight = [math.exp(d[0] - first), math.exp(d[1] - first), math.exp(d[2] - second)]
    scores = coupled(objective, step(REF if objective is DFT1 else None), SIGNAL, prompt=PROMPTS)
    losses = objective(scores, SIGNAL)
    assert losses.per_unit.tolist() == pytest.approx(
        [
            -score[0] + (weight[0] * score[1] + weight[1] * score[2]) / 2,
            -(score[3] + score[4]) / 2 + weight[2] * score[5],
        ]
    )
    assert losses.weight.tolist() == [1, 1]
    slopes = [-1.0, weight[0] / 2, weight[1] / 2, -0.5, -0.5, weight[2]]
    share = [1] * 6 if objective is DFT1 else LENGTHS
    expected = [
        slope / n for slope, n, count in zip(slopes, share, LENGTHS, strict=True) for _ in range(count)
    ]
    assert gradient(losses, scores) == pytest.approx(expected, rel=1e-9)
    assert losses.metrics["dft/u"].tolist() == pytest.approx([first, first, second])
    assert losses.metrics["dft/weight"].tolist() == pytest.approx(weight)
    assert losses.metrics["rewards/chosen"].tolist() == pytest.approx(
        [score[k] / objective.tau for k in (0, 0, 2, 3, 4)]
    )
    assert ("log_ratios/chosen" in losses.metrics) == (objective is DFT1)


def test_u_is_kept_for_each_prompt():
    first, second = estimates(D1)
    _, state = couple(DFT1, step(), SIGNAL, prompt=PROMPTS)
    assert numbers(state) == {"prompt": [30, 70], "u": pytest.approx([second, first])}
    # Prompt 70 again beside a new one, 50; 30 stays as it is.
    found, later = couple(DFT1, step(), SIGNAL, state, prompt=[50] * 3 + [70] * 3)
    new, again = estimates(D1, before=(0.0, first))
    assert numbers(later) == {"prompt": [30, 50, 70], "u": pytest.approx([second, new, again])}
    assert found.completion["u"].tolist() == pytest.approx([0, new, new, 0, 0, again])
    assert found.completion["weight"].tolist() == pytest.approx(
        [0, math.exp(D1[0] - new), math.exp(D1[1] - new), 0, 0, math.exp(D1[2] - again)]
    )
    assert {name: tensor.dtype for name, tensor in later.items()} == {
        "prompt": torch.int64,
        "u": torch.float64,
    }
    assert numbers(state)["prompt"] == [30, 70]  # what came in is as it was


def test_two_groups_of_one_prompt_share_an_estimate():
    found, state = couple(DFT1, step(), SIGNAL, prompt=[70] * 6)
    u = math.log(0.25 + 0.75 * sum(map(math.exp, D1)) / 3)
    assert numbers(state) == {"prompt": [70], "u": pytest.approx([u])}
    assert found.completion["u"][[1, 2, 5]].tolist() == pytest.approx([u] * 3)


def test_without_memory_the_gradient_is_the_target_s():
    """gamma 1, one prompt: -lp(y) + tau log mean_j exp(lp_j / tau - lr_j), whatever was remembered."""
    signal, objective = rewards_of((1.0, 0.0, 0.0, 0.0, 0.0, 0.0)), DFT(tau=2.0, gamma=1.0)
    state = {"prompt": torch.tensor([3]), "u": torch.tensor([900.0], dtype=torch.float64)}
    scores = coupled(objective, step(), signal, state, prompt=[3] * 6)
    logp, ref = (
        torch.segment_reduce(x, "sum", lengths=scores.lengths) for x in (scores.logp, scores.ref_logp)
    )
    target = -logp[0] + 2.0 * ((logp[1:] / 2.0 - ref[1:]).logsumexp(0) - math.log(5))
    expected = torch.autograd.grad(target, scores.logp)[0].tolist()
    assert gradient(objective(scores, signal), scores) == pytest.approx(expected, rel=1e-9)


def test_weights_are_bounded_by_samples_over_gamma():
    scores = make_step_scores([-1.0, -2.0, -500.0], [-1.0, -2000.0, -1.0])
    found, _ = couple(DFT1, scores, rewards_of((1.0, 0.0, 0.0)), prompt=[3] * 3)
    assert found.completion["weight"].tolist() == pytest.approx([0.0, 2 / 0.75, 0.0])


def test_a_group_of_equal_rewards_weighs_nothing_and_is_not_remembered():
    signal = rewards_of((1.0, 1.0, 1.0), (2.0, 2.0, 1.0))
    assert DFT1.weights(torch.tensor(LENGTHS), signal).tolist() == [0, 1]
    scores = coupled(DFT1, step(), signal, prompt=PROMPTS)
    assert DFT1(scores, signal).weight.tolist() == [0, 1]
    assert numbers(couple(DFT1, step(), signal, prompt=PROMPTS)[1])["prompt"] == [30]
    alone = rewards_of((1.0,), (2.0,))
    nothing, state = couple(DFT1, make_step_scores([-1.0, -2.0], [-1.0, -2.0]), alone, prompt=[1, 2])
    assert nothing.completion["weight"].tolist() == [0, 0]
    assert numbers(state) == {"prompt": [], "u": []}


def test_demonstrations_are_the_best_of_their_group():
    assert is_demonstration(SIGNAL).tolist() == [True, False, False, True, True, False]


def test_dft2_needs_no_reference():
    assert DFT1.needs == {"ref_logp", "coupling"}
    assert DFT2.needs == {"coupling"}
    assert DFT1.couples == DFT2.couples == {"scores"}


@pytest.mark.parametrize(
    ("prompt", "u", "match"),
    [
        ([1, 2], [0.0], "damaged; got 2 prompts and 1 values"),
        ([2, 1], [0.0, 0.0], "one value for each prompt, prompts in order"),
        ([1, 1], [0.0, 0.0], "damaged"),
        ([1, 3, 2], [0.0, 0.0, 0.0], "damaged"),
    ],
)
def test_a_damaged_state_is_refused(prompt, u, match):
    state = {"prompt": torch.tensor(prompt), "u": torch.tensor(u, dtype=torch.float64)}
    with pytest.raises(StorageError, match=match):
        couple(DFT1, step(), SIGNAL, state, prompt=PROMPTS)


def test_a_state_of_another_shape_is_refused():
    with pytest.raises(StorageError, match="The state of dft does not fit"):
        couple(DFT1, step(), SIGNAL, {"prompt": torch.tensor([1])}, prompt=PROMPTS)
