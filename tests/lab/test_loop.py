"""B, M, T and C: what is drawn, how often it is used, and what is counted."""

import pytest
import torch

from preftune.errors import ConfigError
from preftune.lab.environment import World
from preftune.lab.loop import Loop, _gather, _part, run
from preftune.lab.methods import default_method
from preftune.lab.steps import token_scores
from tests.lab.problems import tiny


def counted(policy: str = "mlp", **settings) -> dict[str, int]:
    track = run(World(tiny(policy), (0,)), default_method("dr-grpo"), Loop(**settings), 0.01)
    return {name: counts[-1] for name, counts in track.counters.items()}


def test_counters():
    """Twelve completions a collection in minibatches of four: three steps a pass."""
    online = {"source": "policy", "collection": 12, "minibatch": 4, "completions": 4}
    assert counted(**online, steps=12, epochs=2) == {
        "grad_steps": 12,
        "samples_drawn": 24,
        "reward_queries": 24,
        "prompts_seen": 3,
    }
    assert counted(**online, steps=12, epochs=1)["samples_drawn"] == 48
    assert counted(**online, steps=12, prompts="fresh")["prompts_seen"] == 12
    assert counted(**online, steps=7, epochs=2)["samples_drawn"] == 24  # the second collection is cut short
    assert (
        counted(collection=12, minibatch=4, completions=4, steps=12)["samples_drawn"] == 12
    )  # offline: one collection


def test_data_are_judged_by_the_truth_and_samples_by_the_reward_model():
    problem = tiny("hazard", reward={"kind": "short"}, reward_model={"pairs": 50})
    for source, true in (("data", True), ("policy", False)):
        world = World(problem, (0, 1))
        gathered = _gather(world, default_method("dpo"), world.policy(), Loop(source=source), 5, 4)
        assert torch.equal(gathered.rewards, world.rewards(gathered.completions, true=true))
        assert not torch.equal(gathered.rewards, world.rewards(gathered.completions, true=not true))


@pytest.mark.parametrize("policy", ["tabular", "mlp", "gpt"])
def test_a_minibatch_keeps_its_own_samplers_probabilities(policy):
    """Nothing was learned since they were sampled: each token has the probability with which it was drawn, in
    any order.
    """
    world = World(tiny(policy), (0, 1), torch.float64)
    made = world.policy()
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.3 * torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
            )
    gathered = _gather(world, default_method("ppo"), made, Loop(source="policy"), 3, 4)
    piece = _part(world, gathered, torch.tensor([[2, 0], [1, 2]]))
    logits, tokens = made(piece.prompts), world.tokens(piece.completions)
    scores = token_scores(
        logits, world.ref_of(logits), piece.behaviour, tokens, frozenset({"behaviour_logp"})
    )
    torch.testing.assert_close(scores.behaviour_logp, scores.logp.detach(), rtol=1e-10, atol=1e-12)
    assert scores.logp.std() > 0.1 and torch.equal(piece.completions[0, 0], gathered.completions[0, 2])


def test_measured_at_the_start_at_the_end_and_between():
    track = run(World(tiny("tabular"), (0, 1)), default_method("dpo"), Loop(steps=5, eval_every=2), 0.01)
    assert track.steps == [0, 2, 4, 5]
    assert all(values.shape == (4, 2) for values in track.measures.values())


@pytest.mark.parametrize(
    ("policy", "settings", "wanted"),
    [
        ("mlp", {"minibatch": 5}, "B, M and C do not fit"),
        ("mlp", {"completions": 5, "minibatch": 4}, "B, M and C do not fit"),
        ("mlp", {"collection": 40}, "a group for each training prompt"),
        ("hazard", {"prompts": "fresh"}, "no effect where there are none"),
        ("mlp", {"steps": 0}, "steps is out of range"),
        ("mlp", {"epochs": 2}, "epochs has no effect on a single collection"),
    ],
)
def test_settings_that_do_not_fit(policy, settings, wanted):
    with pytest.raises(ConfigError, match=wanted):
        run(World(tiny(policy), (0,)), default_method("dpo"), Loop(**settings), 0.01)


def test_what_is_on_policy_learns_what_is_rare():
    """An arm that the reference draws once in five hundred times: own samples find it, a single collection
    does not.
    """
    problem = tiny("tabular", reference={"kind": "table", "table": [0.5, 0.3, 0.1, 0.096, 0.002, 0.002]})
    world = World(problem, range(5))
    online = run(world, default_method("rloo"), Loop(source="policy", steps=100), 0.1)
    offline = run(
        World(problem, range(5)), default_method("rloo"), Loop(source="policy", steps=100, epochs=100), 0.1
    )
    assert online.final("return").mean() > offline.final("return").mean() + 0.2
