"""A problem made concrete for some seeds: prompts, the policy at its start, samples, scores and exact
measures.

The randomness of each seed comes from separate generators, so that a run does not depend on which seeds run
beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from preftune.errors import TrainingError
from preftune.lab.gpt import GPTPolicy, Tree
from preftune.lab.length_reward import fitted_reward
from preftune.lab.policies import (
    HazardPolicy,
    MLPPolicy,
    PositionPolicy,
    TabularPolicy,
    hazard_log_odds,
    stopping_law,
)
from preftune.lab.problem import Problem

FIT_CONTEXTS = 10
FIT = {
    "mlp": (100, 0.01),
    "gpt": (200, 0.003),
}  # steps and rate of a network's way to the reference; mlp as the authors have it
# nats of KL(pi || reference) that may be left on held-out prompts: r1 and gpt_r1 leave below 0.001
FIT_LIMIT = 0.02
HELD_OUT, CONTEXT_SIZE = 100, 100  # prompts, and numbers of each
PURPOSES = ("network", "contexts", "held_out", "samples", "order", "reward_model", "noise")


@dataclass(frozen=True, kw_only=True)
class CompletionTokens:
    """Which token each completion has at which row of the policy's logits [R, V]; completions one after
    another.
    """

    row: Int[Tensor, " N"]
    target: Int[Tensor, " N"]
    lengths: Int[Tensor, " C"]


class World:
    """A problem for several seeds at once. `dtype` is that of the policy."""

    def __init__(self, problem: Problem, seeds: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self.problem, self.seeds, self.dtype = problem, tuple(seeds), dtype
        self.reward = torch.tensor(problem.reward_values(), dtype=dtype)
        law = torch.tensor(problem.reference_law())
        self.ref_logp, self.ref_law, self.data_law = (
            law.log().to(dtype),
            law,
            torch.tensor(problem.data_law()),
        )
        self._generators = {
            purpose: [_generator(seed, i) for seed in self.seeds] for i, purpose in enumerate(PURPOSES)
        }
        self.context_size = problem.prompts.size or CONTEXT_SIZE
        self.tree = problem.tree
        self.train_prompts = self._contexts("contexts", problem.prompts.train)
        self.held_out = self._contexts("held_out", problem.prompts.held_out or HELD_OUT)
        if problem.policy == "tabular":
            index = torch.arange(problem.prompts.train).repeat(len(self.seeds), 1)
            self.train_prompts, self.held_out = index, index
        self.trained_reward = self._trained_reward()
        self.ref_rows = self._ref_rows()  # [rows of one seed or of one prompt, V]

    @property
    def num_seeds(self) -> int:
        return len(self.seeds)

    @property
    def has_prompts(self) -> bool:
        return self.problem.policy == "tabular" or self.has_contexts

    @property
    def has_contexts(self) -> bool:
        return self.problem.policy in ("mlp", "gpt")

    def policy(self) -> nn.Module:
        """The policy at its start: the reference, or a network fitted to it."""
        kind = self.problem.policy
        if kind == "tabular":
            return TabularPolicy(self.ref_logp, self.num_seeds, self.problem.prompts.train)
        if kind == "hazard":
            return HazardPolicy(self.ref_law, self.num_seeds).to(self.dtype)
        if kind == "positions":
            return PositionPolicy(self.ref_logp, self.num_seeds, self.problem.length)
        policy = _network(kind, self.context_size, self.tree, self._generators["network"], self.dtype)
        law = tuple(self.ref_law.tolist())
        policy.load_state_dict(_fitted(kind, law, self.seeds, self.context_size, self.tree, self.dtype))
        self._check_start(policy)
        return policy

    def _check_start(self, policy: nn.Module) -> None:
        """A network that does not reach the reference would be compared with what it never was."""
        left = self.measure(policy)["kl"].max().item()
        if not left <= FIT_LIMIT:
            raise TrainingError(
                f"The {self.problem.policy} did not reach the reference before training",
                got=f"KL {left:.3g} nats on held-out prompts",
                expected=f"at most {FIT_LIMIT}",
                do="Choose a reference that is easier to learn, or the policy tabular",
            )

    def fresh_prompts(self, count: int) -> Tensor:
        """New contexts for each seed; training prompts where the problem has a table of them."""
        if self.has_contexts:
            return self._contexts("contexts", count)
        draws = self.uniform("contexts", (count,))
        return (draws * self.problem.prompts.train).long()

    def uniform(self, purpose: str, shape: tuple[int, ...]) -> Float[Tensor, "S ..."]:
        """Numbers in [0, 1), drawn for each seed from its own generator."""
        return torch.stack(
            [torch.rand(shape, generator=g, dtype=torch.float64) for g in self._generators[purpose]]
        )

    def orders(self, count: int) -> Int[Tensor, "S count"]:
        """A random order for each seed."""
        return torch.stack([torch.randperm(count, generator=g) for g in self._generators["order"]])

    # --- sampling: outcomes [S, G, C], of sequences [S, G, C, L] ---

    def sample(self, logits: Tensor, num_groups: int, size: int) -> Tensor:
        """Completions drawn from the policy with these logits [S, rows, V]."""
        law = self.log_law(logits.detach().double()).exp()
        return self._drawn(law[:, None] if self.problem.policy == "positions" else law, num_groups, size)

    def log_law(self, logits: Tensor) -> Tensor:
        """Exact log-probabilities of all outcomes, [S, prompts or 1, outcomes]; of sequences those of each
        token, [S, L, V].
        """
        if self.problem.policy == "hazard":
            return stopping_law(logits)[:, None]
        return self.tree.log_law(logits) if self.problem.policy == "gpt" else logits.log_softmax(-1)

    def sample_data(self, num_groups: int, size: int) -> Tensor:
        """Completions drawn from the law of the data."""
        law = self.data_law.expand(self.num_seeds, 1, -1)
        if self.problem.policy == "positions":
            law = law[:, :, None].expand(-1, -1, self.problem.length, -1)
        return self._drawn(law, num_groups, size)

    def _drawn(self, law: Tensor, num_groups: int, size: int) -> Tensor:
        """From laws [S, G or 1, V], or [S, 1, L, V] for sequences, by inverting their sums."""
        below = law.cumsum(-1)
        below = below / below[..., -1:]
        if self.problem.policy == "positions":
            count, length = num_groups * size, self.problem.length
            draws = self.uniform("samples", (length, count))  # of each position, for all sequences
            found = torch.searchsorted(below[:, 0].contiguous(), draws, right=True)
            found = found.clamp(max=law.shape[-1] - 1)
            return found.transpose(1, 2).reshape(self.num_seeds, num_groups, size, length)
        draws = self.uniform("samples", (num_groups, size))
        if law.shape[1] == 1:
            draws = draws.flatten(1)[:, None]
        found = torch.searchsorted(below.contiguous(), draws.contiguous(), right=True).clamp(
            max=law.shape[-1] - 1
        )
        return found.reshape(self.num_seeds, num_groups, size)

    # --- rewards and scores ---

    def rewards(self, completions: Tensor, *, true: bool = False) -> Float[Tensor, "S G C"]:
        """Of each completion: the trained reward model's where there is one, unless the true rewards are requested
        for.
        """
        table = self.reward.expand(self.num_seeds, -1) if true else self.trained_reward
        flat = completions.flatten(1)
        found = table.gather(1, flat).view(completions.shape)
        return found.mean(-1) if completions.ndim == 4 else found

    def tokens(self, completions: Tensor, *, shift: int = 0) -> CompletionTokens:
        """Rows of the flattened logits [S * rows, V]. `shift` reads each completion under another group's
        prompt.
        """
        num_seeds, num_groups = completions.shape[:2]
        if self.problem.policy == "hazard":
            return self._answer_tokens(completions)
        if self.problem.policy == "positions":
            length = self.problem.length
            row = (torch.arange(num_seeds)[:, None] * length + torch.arange(length))[:, None, None].expand_as(
                completions
            )
            lengths = torch.full((completions[..., 0].numel(),), length)
            return CompletionTokens(row=row.reshape(-1), target=completions.flatten(), lengths=lengths)
        group = (torch.arange(num_groups) + shift) % num_groups
        prompt = (torch.arange(num_seeds)[:, None] * num_groups + group)[..., None, None]
        row = prompt * self.tree.num_rows + self.tree.rows(completions)
        lengths = torch.full((completions.numel(),), self.tree.length)
        return CompletionTokens(
            row=row.flatten(), target=self.tree.digits(completions).flatten(), lengths=lengths
        )

    def _answer_tokens(self, completions: Tensor) -> CompletionTokens:
        """An answer that stops at position k has k tokens that continue and one that stops; one that never
        stops has no end.
        """
        positions = self.problem.size
        seed = torch.arange(len(completions))[:, None, None].expand_as(completions).reshape(-1)
        outcome = completions.flatten()
        lengths = (outcome + 1).clamp(max=positions)
        start = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        place = torch.arange(len(start)) - start
        target = (place == torch.repeat_interleave(outcome, lengths)).long()
        return CompletionTokens(
            row=torch.repeat_interleave(seed * positions, lengths) + place, target=target, lengths=lengths
        )

    def _ref_rows(self) -> Tensor:
        if self.problem.policy == "hazard":
            log_odds = hazard_log_odds(self.ref_law)
            return torch.stack([torch.zeros_like(log_odds), log_odds], dim=-1).log_softmax(-1).to(self.dtype)
        return (
            self.tree.conditionals(self.ref_law).to(self.dtype)
            if self.problem.policy == "gpt"
            else self.ref_logp[None]
        )

    def ref_of(self, logits: Tensor) -> Tensor:
        """The reference's log-probabilities, in the shape of the policy's logits [S, rows, V]."""
        if self.problem.policy == "gpt":
            return self.ref_rows.repeat(logits.shape[1] // self.tree.num_rows, 1).expand(logits.shape)
        return self.ref_rows.expand(logits.shape)

    # --- exact measures ---

    @torch.no_grad()
    def measure(self, policy: nn.Module) -> dict[str, Float[Tensor, " S"]]:
        """Means over held-out prompts: `return`, `kl` (pi || ref), `kl_reverse` (ref || pi), `entropy`; of
        answers also their expected `length` and `distance` to the middle of the reference.
        """
        logp = self.log_law(policy(self.held_out))
        p, ref = logp.exp(), self.ref_logp
        found = {
            "return": (p * self.reward).sum(-1),
            "kl": (p * (logp - ref)).sum(-1),
            "kl_reverse": (ref.exp() * (ref - logp)).sum(-1),
            "entropy": -(p * logp).sum(-1),
        }
        if self.problem.policy == "positions":  # divergences and entropies of independent tokens add up
            found = {
                name: value * (1 if name == "return" else self.problem.length)
                for name, value in found.items()
            }
        if self.problem.policy == "hazard":
            length = torch.arange(1, self.problem.size + 2).clamp(max=self.problem.size).to(p.dtype)
            found["length"] = (p * length).sum(-1)
            found["distance"] = (p * (length - self.middle).abs()).sum(-1)
        return {name: value.mean(1) for name, value in found.items()}

    @property
    def middle(self) -> int:
        """The most frequent length of the reference."""
        return int(self.ref_law.argmax()) + 1

    # --- what is drawn once ---

    def _contexts(self, purpose: str, count: int) -> Tensor:
        if not self.has_contexts:
            return torch.zeros((self.num_seeds, 0))
        return self.uniform(purpose, (count, self.context_size)).to(self.dtype)

    def _trained_reward(self) -> Float[Tensor, "S V"]:
        model = self.problem.reward_model
        if model is None:
            return self.reward.expand(self.num_seeds, -1)
        num = self.problem.num_outcomes
        below = self.data_law.cumsum(0)
        draws = self.uniform("reward_model", (model.pairs, 2)) * below[-1]
        pairs = torch.searchsorted(below, draws, right=True).clamp(max=num - 1)
        return fitted_reward(pairs, self.reward.double(), self.middle, model.ridge).to(self.dtype)


def _generator(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + purpose)


def _network(
    kind: str, size: int, tree: Tree, generators: Sequence[torch.Generator], dtype: torch.dtype
) -> nn.Module:
    if kind == "gpt":
        return GPTPolicy(size, tree, generators, dtype)
    return MLPPolicy(size, tree.base, generators, dtype)


@lru_cache(maxsize=8)
def _fitted(
    kind: str, law: tuple[float, ...], seeds: tuple[int, ...], size: int, tree: Tree, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Networks fitted to a law by KL(pi || law) on contexts: the same start for all runs of these seeds."""
    generators = [_generator(seed, PURPOSES.index("network")) for seed in seeds]
    policy = _network(kind, size, tree, generators, dtype)
    contexts = torch.stack(
        [torch.rand((FIT_CONTEXTS, size), generator=g, dtype=torch.float64) for g in generators]
    ).to(dtype)
    target = torch.tensor(law, dtype=torch.float64).log().to(dtype)
    steps, rate = FIT[kind]
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    for _ in range(steps):
        logp = tree.log_law(policy(contexts)) if kind == "gpt" else policy(contexts).log_softmax(-1)
        loss = (logp.exp() * (logp - target)).sum(-1).mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in policy.state_dict().items()}
