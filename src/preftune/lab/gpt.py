"""A small causal transformer that writes the number of an arm digit by digit, for many seeds at once.

An arm a of b^L is its L digits in base b, the most significant first. All prefixes of all arms form a tree:
row 0 is the empty prefix, and a prefix of l digits with value v is row (b^l - 1) / (b - 1) + v. The
transformer reads every row of the tree in one pass, each attending to its own ancestors and itself only, so
that a row's logits are those of the sequence of its prefix
alone: they are for the NEXT digit. The law over arms is then exact: log p(a | x) = sum_l log p(digit l | x,
digits before it).

S seeds, P prompts, D size of a context, T rows of the tree, b base, L digits, W width, A = b^L arms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from preftune.lab.policies import NORM_EPS

LAYERS, HEADS, HIDDEN_SIZE = (
    3,
    3,
    48,
)  # minGPT's gpt-nano, without dropout: ratios of probabilities need one law
# of all weights at the start; of what is added to the residual stream less, by sqrt(2 LAYERS)
DEVIATION = 0.02


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Which rows and tokens write an arm: `base` digits to choose from, `length` of them."""

    base: int
    length: int

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first row of each level, and the number of rows at the end."""
        return tuple(sum(self.base**below for below in range(level)) for level in range(self.length + 1))

    @property
    def num_rows(self) -> int:
        return self.starts[-1]

    def rows(self, arms: Int[Tensor, "..."]) -> Int[Tensor, "... L"]:
        """The row whose logits are for each digit of an arm: that of the digits before it."""
        return torch.stack(
            [self.starts[i] + arms // self.base ** (self.length - i) for i in range(self.length)], dim=-1
        )

    def digits(self, arms: Int[Tensor, "..."]) -> Int[Tensor, "... L"]:
        return torch.stack(
            [arms // self.base ** (self.length - 1 - i) % self.base for i in range(self.length)], dim=-1
        )

    @cached_property
    def levels(self) -> Int[Tensor, " T"]:
        """The number of digits of each row's prefix, which is the position of the token that is read there."""
        sizes = torch.tensor([self.base**level for level in range(self.length)])
        return torch.arange(self.length).repeat_interleave(sizes)

    @cached_property
    def last_digits(self) -> Int[Tensor, " T"]:
        """The token that is read at each row; of row 0, which reads the prompt, without meaning."""
        return (torch.arange(self.num_rows) - torch.tensor(self.starts)[self.levels]) % self.base

    @cached_property
    def sees(self) -> Bool[Tensor, "T T"]:
        """Whether a row (first axis) attends to another: to itself and to the rows of shorter prefixes of its
        own.
        """
        found = torch.eye(self.num_rows, dtype=torch.bool)
        for row in range(1, self.num_rows):
            level = int(self.levels[row])
            parent = self.starts[level - 1] + (row - self.starts[level]) // self.base
            found[row] |= found[parent]
        return found

    @cached_property
    def _places(self) -> Int[Tensor, " AL"]:
        arms = torch.arange(self.base**self.length)
        return (self.rows(arms) * self.base + self.digits(arms)).flatten()

    def log_law(self, logits: Float[Tensor, "S PT b"]) -> Float[Tensor, "S P A"]:
        """The exact log-probability of every arm."""
        logp = logits.log_softmax(-1).reshape(len(logits), -1, self.num_rows * self.base)
        return logp.index_select(2, self._places).unflatten(2, (-1, self.length)).sum(-1)

    def conditionals(self, law: Float[Tensor, " A"]) -> Float[Tensor, "T b"]:
        """Log-probabilities of the next digit at each row under a law over arms."""
        levels = [law.view(self.base**i, self.base, -1).sum(-1) for i in range(self.length)]
        masses = torch.cat(levels)
        return masses.log() - masses.sum(-1, keepdim=True).log()


class GPTPolicy(nn.Module):
    """Logits for the next digit at every row of the tree, after each context: layer norm before attention and
    before a hidden layer of four widths, as in GPT-2. A context is mapped linearly to the embedding of
    position 0.
    """

    def __init__(
        self, size: int, tree: Tree, generators: Sequence[torch.Generator], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.tree, self._generators, self._dtype = tree, generators, dtype
        into = DEVIATION / (2 * LAYERS) ** 0.5
        self.prompt = self._drawn(size, HIDDEN_SIZE)
        self.tokens, self.positions = (
            self._drawn(tree.base, HIDDEN_SIZE),
            self._drawn(tree.length, HIDDEN_SIZE),
        )
        self.norms = nn.ParameterList(self._norm() for _ in range(2 * LAYERS + 1))
        self.attends = nn.ParameterList(self._drawn(HIDDEN_SIZE, 3 * HIDDEN_SIZE) for _ in range(LAYERS))
        self.joins = nn.ParameterList(self._drawn(HIDDEN_SIZE, HIDDEN_SIZE, into) for _ in range(LAYERS))
        self.widens = nn.ParameterList(self._drawn(HIDDEN_SIZE, 4 * HIDDEN_SIZE) for _ in range(LAYERS))
        self.narrows = nn.ParameterList(
            self._drawn(4 * HIDDEN_SIZE, HIDDEN_SIZE, into) for _ in range(LAYERS)
        )
        widths = {
            "attend": 3 * HIDDEN_SIZE,
            "join": HIDDEN_SIZE,
            "widen": 4 * HIDDEN_SIZE,
            "narrow": HIDDEN_SIZE,
        }
        self.biases = nn.ParameterDict(
            {f"{name}{i}": self._zeros(width) for i in range(LAYERS) for name, width in widths.items()}
        )
        self.head = self._drawn(HIDDEN_SIZE, tree.base)

    def _drawn(self, rows: int, columns: int, deviation: float = DEVIATION) -> nn.Parameter:
        """Each seed's from its own generator."""
        drawn = [
            torch.randn((rows, columns), generator=g, dtype=torch.float64) * deviation
            for g in self._generators
        ]
        return nn.Parameter(torch.stack(drawn).to(self._dtype))

    def _zeros(self, width: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros((len(self._generators), 1, width), dtype=self._dtype))

    def _norm(self) -> nn.Parameter:
        """Scale and shift, [S, 2, W]."""
        ones = torch.ones((len(self._generators), 1, HIDDEN_SIZE), dtype=self._dtype)
        return nn.Parameter(torch.cat([ones, torch.zeros_like(ones)], dim=1))

    def forward(self, prompts: Float[Tensor, "S P D"]) -> Float[Tensor, "S PT b"]:
        """Prompts are contexts."""
        read = self.tokens[:, self.tree.last_digits[1:]] + self.positions[:, self.tree.levels[1:]]
        first = torch.bmm(prompts, self.prompt) + self.positions[:, :1]
        num_prompts = prompts.shape[1]
        hidden = torch.cat([first[:, :, None], read[:, None].expand(-1, num_prompts, -1, -1)], dim=2).flatten(
            1, 2
        )
        for i in range(LAYERS):
            hidden = hidden + self._attention(_normal(hidden, self.norms[2 * i]), i, num_prompts)
            wide = torch.baddbmm(
                self.biases[f"widen{i}"], _normal(hidden, self.norms[2 * i + 1]), self.widens[i]
            )
            wide = nn.functional.gelu(wide, approximate="tanh")
            hidden = hidden + torch.baddbmm(self.biases[f"narrow{i}"], wide, self.narrows[i])
        return torch.bmm(_normal(hidden, self.norms[-1]), self.head)

    def _attention(
        self, hidden: Float[Tensor, "S PT W"], layer: int, num_prompts: int
    ) -> Float[Tensor, "S PT W"]:
        mixed = torch.baddbmm(self.biases[f"attend{layer}"], hidden, self.attends[layer])
        parts = mixed.view(len(hidden) * num_prompts, self.tree.num_rows, 3, HEADS, HIDDEN_SIZE // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=self.tree.sees)
        found = found.transpose(1, 2).reshape(hidden.shape)
        return torch.baddbmm(self.biases[f"join{layer}"], found, self.joins[layer])


def _normal(hidden: Float[Tensor, "S PT W"], norm: Float[Tensor, "S 2 W"]) -> Float[Tensor, "S PT W"]:
    return nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPS) * norm[:, :1] + norm[:, 1:]
