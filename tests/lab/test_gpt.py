"""The small transformer: its law over arms, against torch's own layers on one sequence at a time, and against
sums by hand.
"""

import math

import pytest
import torch
from torch import nn

from preftune.errors import TrainingError
from preftune.lab.environment import World
from preftune.lab.gpt import HEADS, HIDDEN_SIZE, LAYERS, GPTPolicy, Tree
from preftune.lab.problem import load_problem
from tests.lab.problems import tiny

TREE = Tree(base=3, length=3)
SIZE = 5


def policy(seeds: tuple[int, ...] = (4, 7)) -> GPTPolicy:
    """With weights large enough that everything matters."""
    made = GPTPolicy(SIZE, TREE, [torch.Generator().manual_seed(seed) for seed in seeds], torch.float64)
    with torch.no_grad():
        for place, weight in enumerate(made.parameters()):
            random = torch.Generator().manual_seed(place)
            weight += 0.3 * torch.randn(weight.shape, generator=random, dtype=torch.float64)
    return made


class Oracle(nn.Module):
    """One seed's network of torch's own parts, which reads a sequence: the context, then digits."""

    def __init__(self, made: GPTPolicy, seed: int) -> None:
        super().__init__()
        self.prompt, self.head = (
            nn.Linear(SIZE, HIDDEN_SIZE, bias=False),
            nn.Linear(HIDDEN_SIZE, TREE.base, bias=False),
        )
        self.tokens, self.positions = (
            nn.Embedding(TREE.base, HIDDEN_SIZE),
            nn.Embedding(TREE.length, HIDDEN_SIZE),
        )
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                HIDDEN_SIZE,
                HEADS,
                4 * HIDDEN_SIZE,
                dropout=0.0,
                activation=nn.GELU(approximate="tanh"),
                norm_first=True,
                batch_first=True,
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(HIDDEN_SIZE)
        self.double().eval()
        self.pairs = [
            (self.prompt.weight, made.prompt, True),
            (self.head.weight, made.head, True),
            (self.tokens.weight, made.tokens, False),
            (self.positions.weight, made.positions, False),
        ]
        for i, layer in enumerate(self.layers):
            attention, wide, narrow = layer.self_attn, layer.linear1, layer.linear2
            self.pairs += [
                (attention.in_proj_weight, made.attends[i], True),
                (attention.out_proj.weight, made.joins[i], True),
                (wide.weight, made.widens[i], True),
                (narrow.weight, made.narrows[i], True),
            ]
            biases = {
                "attend": attention.in_proj_bias,
                "join": attention.out_proj.bias,
                "widen": wide.bias,
                "narrow": narrow.bias,
            }
            self.pairs += [(bias, made.biases[f"{name}{i}"], False) for name, bias in biases.items()]
        norms = [norm for layer in self.layers for norm in (layer.norm1, layer.norm2)] + [self.norm]
        self.norm_pairs = list(zip(norms, made.norms, strict=True))
        with torch.no_grad():
            for mine, theirs, turned in self.pairs:
                value = theirs[seed]
                mine.copy_(value.T if turned else value.reshape(mine.shape))
            for norm, both in self.norm_pairs:
                norm.weight.copy_(both[seed, 0])
                norm.bias.copy_(both[seed, 1])

    def log_prob(self, context: torch.Tensor, digits: list[int]) -> torch.Tensor:
        read = torch.cat(
            [self.prompt(context)[None], self.tokens(torch.tensor(digits[:-1], dtype=torch.long))]
        )
        hidden = (read + self.positions.weight)[None]
        hidden_from = nn.Transformer.generate_square_subsequent_mask(len(digits), dtype=torch.float64)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=hidden_from, is_causal=True)
        logp = self.head(self.norm(hidden))[0].log_softmax(-1)
        return logp[torch.arange(len(digits)), torch.tensor(digits)].sum()


def test_the_law_and_its_gradient_are_those_of_one_sequence_at_a_time():
    made, seed = policy(), 1
    oracle = Oracle(made, seed)
    contexts = torch.rand((2, 2, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = TREE.log_law(made(contexts))
    arms = [[a // 9, a // 3 % 3, a % 3] for a in range(27)]
    expected = torch.stack(
        [torch.stack([oracle.log_prob(context, arm) for arm in arms]) for context in contexts[seed]]
    )
    torch.testing.assert_close(found[seed], expected, rtol=1e-10, atol=1e-10)
    assert found[seed].std() > 0.5 and (found[0] - found[1]).abs().max() > 0.5
    assert found.exp().sum(-1).tolist() == [pytest.approx([1, 1], abs=1e-12)] * 2
    weight = torch.randn((2, 27), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found[seed] * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, theirs, turned in oracle.pairs:
        assert theirs.grad is not None and mine.grad is not None
        assert theirs.grad[1 - seed].abs().max() == 0  # the other seed's
        gradient = theirs.grad[seed].T if turned else theirs.grad[seed].reshape(mine.shape)
        torch.testing.assert_close(gradient, mine.grad, rtol=1e-9, atol=1e-10)
    for norm, both in oracle.norm_pairs:
        torch.testing.assert_close(
            both.grad[seed], torch.stack([norm.weight.grad, norm.bias.grad]), rtol=1e-9, atol=1e-10
        )


def test_arms_as_rows_and_digits():
    """Arm 73 of 100 is 7 after nothing (row 0), then 3 after a 7 (row 1 + 7)."""
    tree = Tree(base=10, length=2)
    assert tree.num_rows == 11
    assert tree.rows(torch.tensor([73, 5])).tolist() == [[0, 8], [0, 1]]
    assert tree.digits(torch.tensor([73, 5])).tolist() == [[7, 3], [0, 5]]
    assert TREE.rows(torch.tensor(26)).tolist() == [0, 3, 12] and TREE.num_rows == 13
    assert TREE.last_digits.tolist()[1:] == [0, 1, 2] * 4
    seen = {row: [other for other in range(13) if TREE.sees[row, other]] for row in (0, 2, 8)}
    assert seen == {0: [0], 2: [0, 2], 8: [0, 2, 8]}  # row 8 is the prefix 1, 1


def test_the_reference_as_conditional_laws():
    """0.1, 0.2, 0.3, 0.4 as two binary digits: 0.3 and 0.7, then 1/3 and 2/3, then 3/7 and 4/7."""
    found = Tree(base=2, length=2).conditionals(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    assert found.exp().flatten().tolist() == pytest.approx([0.3, 0.7, 1 / 3, 2 / 3, 3 / 7, 4 / 7])


def test_tokens_of_prompts_and_seeds():
    world = World(tiny("gpt"), (0, 1))
    completions = torch.tensor([[[5], [0], [8]], [[1], [2], [3]]])
    tokens = world.tokens(completions)
    assert tokens.lengths.tolist() == [2] * 6
    assert tokens.row.tolist() == [
        0,
        2,
        4,
        5,
        8,
        11,
        12,
        13,
        16,
        17,
        20,
        22,
    ]  # four rows for each prompt, three prompts
    assert tokens.target.tolist() == [1, 2, 0, 0, 2, 2, 0, 1, 0, 2, 1, 0]
    assert world.tokens(completions, shift=1).row.tolist()[:6] == [4, 6, 8, 9, 0, 3]


def test_samples_and_exact_measures_are_of_the_same_law():
    world = World(tiny("gpt"), (0,), torch.float64)
    made = world.policy()
    with torch.no_grad():
        made.head += torch.randn(
            made.head.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        logits = made(world.train_prompts)
        law = world.log_law(logits)[0].exp()
    drawn = world.sample(logits, 3, 6000)[0]
    for group in range(3):
        found = torch.bincount(drawn[group], minlength=9) / 6000
        assert (found - law[group]).abs().max() < 0.025
    measured = world.measure(made)
    held = world.log_law(made(world.held_out))[0]
    assert measured["entropy"].item() == pytest.approx(-(held.exp() * held).sum(-1).mean().item())
    assert measured["kl"].item() == pytest.approx(
        (held.exp() * (held - world.ref_logp)).sum(-1).mean().item()
    )
    assert measured["return"].item() == pytest.approx((held.exp() * world.reward).sum(-1).mean().item())


def test_it_starts_at_the_reference_or_says_that_it_does_not():
    found = World(load_problem("gpt_r1"), (0, 1)).measure(World(load_problem("gpt_r1"), (0, 1)).policy())
    assert found["kl"].max() < 1e-3 and found["kl_reverse"].max() < 1e-3
    assert (
        found["return"] == pytest.approx([0.0390, 0.0390], abs=2e-3)
        and abs(found["entropy"] - 4.117).max() < 0.02
    )
    assert found["entropy"].max() < math.log(100)
    parity = {
        "kind": "table",
        "table": [(0.999 if bin(arm).count("1") % 2 else 0.001) / 32 for arm in range(64)],
    }
    with pytest.raises(TrainingError, match=r"gpt did not reach the reference before training; got KL 2.7"):
        World(
            tiny(
                "gpt", size=64, length=6, reference=parity, reward={"kind": "bump", "centre": 1, "width": 9}
            ),
            (0,),
        ).policy()
    one_of_two = {"kind": "table", "table": [0.5, 0, 0, 0, 0.5, 0]}
    with pytest.raises(TrainingError, match=r"mlp did not reach the reference before training; got KL 0.693"):
        World(tiny("mlp", reference=one_of_two), (0,)).policy()
