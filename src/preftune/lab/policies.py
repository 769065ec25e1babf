"""Policies with a leading axis of seeds: many independent runs in one tensor.

Nothing mixes seeds: matrix products are batched over them, Adam works entry by entry, and a loss is the sum
of each seed's own. `forward` gives logits [S, rows, V], a row being a prompt or a position.

S seeds, P prompts, D size of a context, L positions, L1 = L + 1 outcomes, V tokens of the vocabulary.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

MLP_HIDDEN = (50, 256, 256)  # of Tajwar et al., ICML 2024
XAVIER_GAIN = 0.01
NORM_EPS = 1e-5  # torch's


class TabularPolicy(nn.Module):
    """A logit for each outcome of each training prompt."""

    def __init__(self, ref_logp: Float[Tensor, " V"], num_seeds: int, num_prompts: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(ref_logp.repeat(num_seeds, num_prompts, 1))

    def forward(self, prompts: Tensor) -> Tensor:
        """Prompts are indices [S, P]."""
        return self.logits.gather(1, prompts[..., None].expand(-1, -1, self.logits.shape[2]))


class MLPPolicy(nn.Module):
    """Linear, layer norm, ReLU, then two hidden layers: the network of the authors' bandits."""

    def __init__(
        self, size: int, num_outcomes: int, generators: Sequence[torch.Generator], dtype: torch.dtype
    ) -> None:
        super().__init__()
        widths = (size, *MLP_HIDDEN, num_outcomes)
        count = len(generators)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in itertools.pairwise(widths):
            bound = XAVIER_GAIN * (6 / (before + after)) ** 0.5
            drawn = [
                (torch.rand((before, after), generator=g, dtype=torch.float64) * 2 - 1) * bound
                for g in generators
            ]
            self.weights.append(nn.Parameter(torch.stack(drawn).to(dtype)))
            self.biases.append(nn.Parameter(torch.zeros((count, 1, after), dtype=dtype)))
        self.scale = nn.Parameter(torch.ones((count, 1, MLP_HIDDEN[0]), dtype=dtype))
        self.shift = nn.Parameter(torch.zeros((count, 1, MLP_HIDDEN[0]), dtype=dtype))

    def forward(self, prompts: Tensor) -> Tensor:
        """Prompts are contexts [S, P, D]."""
        hidden = torch.baddbmm(self.biases[0], prompts, self.weights[0])
        normal = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPS)
        hidden = torch.relu(normal * self.scale + self.shift)
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            hidden = torch.relu(torch.baddbmm(bias, hidden, weight))
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1])


class HazardPolicy(nn.Module):
    """At each position, the log-odds of stopping: a vocabulary of two, 0 to continue and 1 to stop."""

    def __init__(self, law: Float[Tensor, " L1"], num_seeds: int) -> None:
        super().__init__()
        self.log_odds = nn.Parameter(hazard_log_odds(law).repeat(num_seeds, 1))

    def forward(self, prompts: Tensor) -> Tensor:
        """There are no prompts."""
        return torch.stack([torch.zeros_like(self.log_odds), self.log_odds], dim=-1)


class PositionPolicy(nn.Module):
    """Logits for the token at each position, whatever the tokens before."""

    def __init__(self, ref_logp: Float[Tensor, " V"], num_seeds: int, length: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(ref_logp.repeat(num_seeds, length, 1))

    def forward(self, prompts: Tensor) -> Tensor:
        """There are no prompts."""
        return self.logits


def hazard_log_odds(law: Float[Tensor, " L1"]) -> Float[Tensor, " L"]:
    """log( P(stop here) / P(stop later or never) ), given that the answer got here."""
    later = law.flip(0).cumsum(0).flip(0)[1:]
    return law[:-1].log() - later.log()


def stopping_law(logits: Float[Tensor, "S L 2"]) -> Float[Tensor, "S L1"]:
    """The exact log-probability of stopping at each position, and of never stopping."""
    logp = logits.log_softmax(-1)
    going_on = logp[..., 0].cumsum(-1)
    before = torch.cat([torch.zeros_like(going_on[:, :1]), going_on], dim=1)
    return before + torch.cat([logp[..., 1], torch.zeros_like(going_on[:, :1])], dim=1)
