"""Many seeds at once are each seed alone: gradients of every objective, and whole runs."""

import pytest
import torch

from preftune.lab.environment import World
from preftune.lab.loop import Loop, run
from preftune.lab.methods import EXCLUDED, Method, all_methods, default_method
from preftune.lab.steps import make_step, seed_losses, token_scores
from preftune.objectives import OBJECTIVES, Coupled
from preftune.objectives.dpo import DPO
from preftune.objectives.ipo import IPO
from preftune.objectives.sft import SFT
from tests.lab.problems import tiny

SEEDS = (3, 5, 8)
METHODS = all_methods()


def gradient(world: World, method: Method, logits, completions, rewards) -> torch.Tensor:
    """Of the sum of all seeds' losses, with respect to the logits [S, rows, V]."""
    objective = method.objective
    leaf = logits.clone().requires_grad_()
    step = make_step(world, method, completions, rewards)
    behaviour = world.ref_of(logits)
    scores = token_scores(leaf, world.ref_of(logits), behaviour, step.tokens, objective.needs)
    mismatched = None
    if isinstance(objective, Coupled) and "mismatched" in objective.couples:
        mismatched = token_scores(leaf, world.ref_of(logits), behaviour, step.mismatched, objective.needs)
    losses, _ = seed_losses(objective, scores, mismatched, step, [None] * world.num_seeds)
    return torch.autograd.grad(losses.sum(), leaf)[0]


@pytest.mark.parametrize("policy", ["tabular", "gpt", "hazard"])
@pytest.mark.parametrize("name", METHODS)
def test_each_seed_s_gradient_is_that_of_its_own_run(name, policy):
    """With numbers of pairs that differ between the seeds."""
    method = METHODS[name]
    together = World(tiny(policy, data={"completions": 4, "min_gap": 0.45}), SEEDS, torch.float64)
    random = torch.Generator().manual_seed(1)
    logits = together.policy()(together.train_prompts)
    logits = logits.detach() + torch.randn(logits.shape, generator=random, dtype=torch.float64)
    completions = together.sample_data(3, 4)
    rewards = together.rewards(completions)
    found = gradient(together, method, logits, completions, rewards)
    assert torch.isfinite(found).all()
    for s, seed in enumerate(SEEDS):
        alone = World(together.problem, (seed,), torch.float64)
        part = slice(s, s + 1)
        torch.testing.assert_close(
            found[part],
            gradient(alone, method, logits[part], completions[part], rewards[part]),
            rtol=1e-10,
            atol=1e-12,
        )
    assert found.abs().max() > 0


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("tabular", "ipo"),
        ("tabular", "kto"),
        ("mlp", "bnf"),
        ("mlp", "dr-grpo"),
        ("gpt", "ipo"),
        ("hazard", "ppo"),
        ("hazard", "dpo"),
        ("positions", "bnf"),
        ("positions", "rwr"),
    ],
)
@pytest.mark.parametrize("source", ["data", "policy"])
def test_whole_runs_do_not_depend_on_who_runs_beside(name, policy, source):
    loop = Loop(
        source=source,
        steps=6,
        eval_every=3,
        collection=12,
        minibatch=4,
        epochs=2 if source == "policy" else None,
    )
    problem, method = tiny(policy), default_method(name)
    together = run(World(problem, SEEDS, torch.float64), method, loop, 0.05)
    for s, seed in enumerate(SEEDS):
        alone = run(World(problem, (seed,), torch.float64), method, loop, 0.05)
        for measure, values in alone.measures.items():
            torch.testing.assert_close(
                torch.tensor(together.measures[measure][:, s]),
                torch.tensor(values[:, 0]),
                rtol=1e-7,
                atol=1e-9,
            )
    assert abs(together.final("return") - together.measures["return"][0]).max() > 1e-3


def test_a_seed_s_loss_is_divided_by_its_own_pairs():
    """By hand: two seeds, one group of three; the first has rewards 1, 0, 0 (two pairs), the second 2, 1, 0
    (three).
    """
    world = World(tiny("tabular"), (0, 1), torch.float64)
    rewards = torch.tensor([[[1.0, 0.0, 0.0]], [[2.0, 1.0, 0.0]]], dtype=torch.float64)
    step = make_step(world, Method(objective=IPO(tau=0.5)), torch.tensor([[[0, 1, 2]], [[0, 1, 2]]]), rewards)
    assert step.totals.tolist() == [2, 3]
    assert step.unit_seed.tolist() == [0, 0, 1, 1, 1]
    assert (step.signal.chosen.tolist(), step.signal.rejected.tolist()) == ([0, 0, 3, 3, 4], [1, 2, 4, 5, 5])


def test_labels_are_the_sides_of_pairs_or_stand_alone():
    world = World(tiny("tabular"), (0,), torch.float64)
    completions = torch.tensor([[[4, 1, 2]]])
    rewards = torch.tensor([[[2.0, -1.0, 0.8]]], dtype=torch.float64)

    def seen(**settings) -> list[tuple[int, int]]:
        step = make_step(world, Method(objective=SFT(), **settings), completions, rewards)
        return list(zip(step.tokens.target.tolist(), step.signal.label.tolist(), strict=True))

    assert seen() == [(4, 1), (1, -1), (4, 1), (2, -1), (2, 1), (1, -1)]
    assert seen(only="preferred") == [(4, 1), (4, 1), (2, 1)]
    assert seen(labels="best_worst") == [(4, 1), (1, -1)]
    assert seen(labels="threshold", threshold=0.5) == [(4, 1), (1, -1), (2, 1)]
    assert seen(labels="threshold", threshold=0.5, only="dispreferred") == [(1, -1)]


def test_a_seed_without_pairs_learns_nothing_and_stops_nobody():
    world = World(tiny("tabular"), (0, 1), torch.float64)
    rewards = torch.tensor([[[1.0, 1.0]], [[2.0, 1.0]]], dtype=torch.float64)
    logits = torch.zeros((2, 1, 6), dtype=torch.float64)
    for name in ("dpo", "bnf", "kto", "aot"):
        found = gradient(world, default_method(name), logits, torch.tensor([[[0, 1]], [[0, 1]]]), rewards)
        assert found[0].abs().max() == 0 and found[1].abs().max() > 0, name


def test_mismatched_completions_are_read_under_the_next_prompt():
    """Two seeds, three prompts with a completion each; the last prompt's go under the first."""
    world = World(tiny("tabular"), (0, 1))
    completions = torch.tensor([[[4], [1], [2]], [[0], [5], [3]]])
    assert world.tokens(completions).row.tolist() == [0, 1, 2, 3, 4, 5]
    shifted = world.tokens(completions, shift=1)
    assert shifted.row.tolist() == [1, 2, 0, 4, 5, 3] and shifted.target.tolist() == [4, 1, 2, 0, 5, 3]


def test_answers_as_tokens():
    """Six positions: stopping at the third is three tokens, 0 0 1; never stopping six, all 0."""
    world = World(tiny("hazard"), (0,))
    tokens = world.tokens(torch.tensor([[[2, 6]]]))
    assert tokens.lengths.tolist() == [3, 6]
    assert tokens.target.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert tokens.row.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5]


def test_every_objective_runs_or_is_left_out_with_a_reason():
    assert set(METHODS) | set(EXCLUDED) == set(OBJECTIVES) and not set(METHODS) & set(EXCLUDED)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_noise_exchanges_the_sides_of_pairs(noise):
    """Pairs that are a coin's toss teach nothing of the reward; without noise the return rises."""
    problem = tiny("tabular", data={"completions": 8, "noise": noise}, contexts={"train": 60})
    track = run(
        World(problem, range(4), torch.float64), Method(objective=DPO(beta=1.0)), Loop(steps=60), 0.05
    )
    gain = track.final("return").mean() - track.measures["return"][0].mean()
    assert gain > 0.4 if noise == 0 else abs(gain) < 0.15
