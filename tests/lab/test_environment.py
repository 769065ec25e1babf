"""Problems made concrete: laws, samples, exact measures and the fitted network, against numbers from
elsewhere.
"""

import numpy as np
import pytest
import torch

from preftune.lab.distributions import Truncated
from preftune.lab.environment import World
from preftune.lab.length_reward import fitted_reward
from preftune.lab.policies import hazard_log_odds, stopping_law
from preftune.lab.problem import load_problem, shipped_problems
from tests.lab.problems import tiny


def test_the_paper_s_reference_in_numbers():
    """Of onpolicy_paper.md, section 2.1: exact bins of tanh of a Cauchy variable."""
    law = load_problem("r1").reference_law()
    assert -(law * np.log(law)).sum() == pytest.approx(4.117, abs=5e-4)
    assert law[60:81].sum() == pytest.approx(0.0457, abs=5e-5) and law[10:31].sum() == pytest.approx(
        0.454, abs=5e-4
    )
    assert (law * load_problem("r1").reward_values()).sum() == pytest.approx(0.0390, abs=5e-5)
    assert (law * load_problem("r2").reward_values()).sum() == pytest.approx(0.3772, abs=5e-5)


def test_every_shipped_problem_loads():
    assert {
        "r1",
        "r2",
        "r1_width20",
        "r1_width30",
        "tokens",
        "length_min",
        "length_mode",
        "length_skew",
    } <= set(shipped_problems())
    for name in shipped_problems():
        assert load_problem(name).data_law().sum() == pytest.approx(1)


def test_the_network_starts_at_the_reference():
    world = World(load_problem("r1"), (0, 1))
    found = world.measure(world.policy())
    assert found["kl"].max() < 1e-3 and found["kl_reverse"].max() < 1e-3
    assert found["return"] == pytest.approx([0.0390, 0.0390], abs=2e-3)


@pytest.mark.parametrize("policy", ["tabular", "hazard", "positions"])
def test_other_policies_start_at_it_exactly(policy):
    world = World(tiny(policy), (0,), torch.float64)
    found = world.measure(world.policy())
    assert abs(found["kl"].item()) < 1e-12
    law = world.ref_law
    assert found["return"].item() == pytest.approx((law * world.reward).sum().item(), abs=1e-12)
    per_token = -(law * law.log()).sum().item()
    assert found["entropy"].item() == pytest.approx(
        per_token * (3 if policy == "positions" else 1), abs=1e-12
    )


def test_a_law_of_lengths_and_its_hazards_are_the_same_thing():
    law = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
    z = hazard_log_odds(law)
    assert torch.sigmoid(z).tolist() == pytest.approx([0.1, 0.2 / 0.9, 0.3 / 0.7, 0.25 / 0.4])
    logits = torch.stack([torch.zeros_like(z), z], dim=-1)[None]
    assert stopping_law(logits).exp()[0].tolist() == pytest.approx(law.tolist())


@pytest.mark.parametrize("policy", ["tabular", "hazard", "positions"])
def test_samples_follow_the_law(policy):
    world = World(tiny(policy), (0,), torch.float64)
    logits = world.policy()(world.train_prompts)
    for drawn in (world.sample(logits, 3, 4000), world.sample_data(3, 4000)):
        found = torch.bincount(drawn.flatten(), minlength=len(world.ref_law)) / drawn.numel()
        assert (found - world.ref_law).abs().max() < 0.015


def test_truncated_lengths_by_simulation():
    reference = tiny("hazard").reference_law()
    exact = Truncated(mean=2.0, share=0.7).law(reference, reference)
    random = np.random.default_rng(0)
    drawn = random.choice(len(reference), size=200_000, p=reference)
    cut = np.ceil(random.exponential(2.0, size=len(drawn))).astype(int) - 1
    drawn = np.where(random.random(len(drawn)) < 0.7, np.minimum(drawn, cut), drawn)
    assert np.bincount(drawn, minlength=len(reference)) / len(drawn) == pytest.approx(exact, abs=4e-3)


def test_the_reward_model_orders_lengths_as_the_truth_does():
    reward = -torch.arange(10, dtype=torch.float64)
    pairs = torch.randint(0, 10, (2, 500, 2), generator=torch.Generator().manual_seed(0))
    value = fitted_reward(pairs, reward, 5, 1e-3)
    assert (value.diff(dim=1)[:, :-1] < 0).all()  # the last outcome is as long as the one before
    over = value.gather(1, pairs.flatten(1))
    assert over.mean(1).tolist() == pytest.approx([0, 0], abs=1e-12) and over.std(
        1
    ).tolist() == pytest.approx([1, 1])


def test_the_reward_model_is_the_minimum_of_its_loss():
    """Found again by L-BFGS for one seed, as standardized values."""
    reward, ridge = -torch.arange(10, dtype=torch.float64), 0.05
    pairs = torch.randint(0, 10, (1, 300, 2), generator=torch.Generator().manual_seed(1))
    length = torch.arange(1, 11, dtype=torch.float64).clamp(max=9)
    features = torch.stack([length / 9, (length / 9) ** 2, (length - 5).abs() / 9], dim=1)
    drawn = features[pairs[0]].flatten(0, 1)
    scaled = (features - drawn.mean(0)) / drawn.std(0)
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )
    told_apart = pairs[0][reward[pairs[0][:, 0]] != reward[pairs[0][:, 1]]]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = scaled @ weight
        gap = value[told_apart[:, 0]] - value[told_apart[:, 1]]
        sign = torch.sign(reward[told_apart[:, 0]] - reward[told_apart[:, 1]])
        loss = -torch.nn.functional.logsigmoid(sign * gap).mean() + ridge / 2 * (weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    value = (scaled @ weight).detach()
    over = value[pairs.flatten()]
    expected = (value - over.mean()) / over.std()
    torch.testing.assert_close(fitted_reward(pairs, reward, 5, ridge)[0], expected, rtol=1e-6, atol=1e-7)
