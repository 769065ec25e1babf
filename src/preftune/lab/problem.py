"""A problem as data: outcomes with a reward, the reference, how preference data are drawn, and the class of
the policy.

Outcomes are the arms of a bandit, the tokens at each position of a sequence, or the lengths of an answer. An
answer of `size` positions that never stops is one outcome more, the last. All laws are vectors of
probabilities over outcomes.
"""

from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preftune.errors import ConfigError
from preftune.lab.distributions import DATA_KINDS, LAW_KINDS, FromReference, Truncated
from preftune.lab.gpt import Tree
from preftune.lab.reward_functions import REWARD_KINDS, Near, Short
from preftune.objectives.checks import check_between, check_positive
from preftune.spec import build
from preftune.spec.strict_yaml import parse_yaml

PROBLEMS = resources.files("preftune") / "lab" / "problems"


@dataclass(frozen=True, kw_only=True)
class Data:
    """How preferences are drawn and read.

    Args:
        law: who writes the completions of a data set.
        completions: of each prompt.
        noise: probability that the two sides of a pair are exchanged, in [0, 0.5].
        ties: what becomes of a pair of equal rewards: left out, or kept with the first as chosen.
        min_gap: pairs whose rewards differ by less are left out.
    """

    law: Any = field(default_factory=FromReference)
    completions: int = 10
    noise: float = 0.0
    ties: Literal["drop", "keep"] = "drop"
    min_gap: float = 0.0

    def __post_init__(self) -> None:
        if self.completions < 1:
            raise ConfigError(
                "The data are empty",
                got=f"{self.completions} completions of each prompt",
                expected="1 or more",
            )
        check_between("data", "[0, 0.5]", noise=self.noise)
        check_between("data", "[0, inf)", min_gap=self.min_gap)
        if self.ties == "keep" and self.min_gap > 0:
            raise ConfigError(
                "Ties cannot be kept with a minimum gap", got=self.min_gap, do="Leave out ties or min_gap"
            )


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Prompts: `train` of them, and for a network `held_out` to evaluate on (default 100), each a
    point of [0, 1]^size (100) that carries no information about the reward. A table is evaluated on its training
    prompts.
    """

    train: int = 10
    held_out: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        for name in ("train", "held_out", "size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(
                    f"The data are empty: contexts, {name}", got=getattr(self, name), expected="1 or more"
                )


@dataclass(frozen=True, kw_only=True)
class LengthRewardModel:
    """A Bradley-Terry model fitted to pairs of the data, in the place of the true reward, linear in k/L,
    (k/L)^2 and the distance of k to the middle of the reference; its values are standardized over the data.
    """

    pairs: int = 2000
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("reward_model", pairs=float(self.pairs), ridge=self.ridge)


PolicyKind = Literal["tabular", "mlp", "gpt", "hazard", "positions"]
WITH_PROMPTS = ("tabular", "mlp", "gpt")
MOST_OUTCOMES, MOST_ROWS = 10_000, 2_000  # each attends to all rows of its prompt


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is learned, from what, by what.

    Args:
        name: what files and figures call it.
        about: a sentence for people.
        policy: "tabular" has logits for each training prompt, "mlp" a network on contexts, "gpt" a causal
            transformer on contexts that writes the arm digit by digit, "positions" logits for each position
            of a sequence, "hazard" a logit of stopping at each position.
        size: arms; tokens of the vocabulary; or positions at which an answer can stop.
        length: tokens of a sequence (positions), or digits of an arm (gpt): `size` is then a power with this
            exponent.
        reward: a number for each outcome; of a sequence the mean over its tokens.
        reference: the law that the policy starts from; of a sequence that of each token.
        data: how preference data are drawn.
        contexts: the prompts (tabular, mlp and gpt only; ten of them if it is not said).
        reward_model: the proxy of the reward in training (hazard only).
    """

    name: str
    policy: PolicyKind
    size: int
    reward: Any
    reference: Any
    about: str = ""
    length: int = 1
    data: Data = Data()
    contexts: Contexts | None = None
    reward_model: LengthRewardModel | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.size <= MOST_OUTCOMES:
            raise ConfigError(
                "A problem needs a choice", got=f"size {self.size}", expected=f"2 to {MOST_OUTCOMES}"
            )
        if (self.length > 1) != (self.policy in ("positions", "gpt")) or self.length < 1:
            raise ConfigError(
                f"length does not go with the policy {self.policy}",
                got=self.length,
                expected="2 or more for positions and gpt, 1 for others",
            )
        if self.tree.base**self.tree.length != self.num_outcomes:
            powers = " or ".join(str(base**self.length) for base in (self.tree.base, self.tree.base + 1))
            raise ConfigError(
                "The arms are no numbers of this many digits",
                got=f"size {self.size}, length {self.length}",
                expected=f"a power: {powers}",
            )
        if self.policy == "gpt" and self.tree.num_rows > MOST_ROWS:
            raise ConfigError(
                "The arms have too many prefixes to list",
                got=self.tree.num_rows,
                expected=f"at most {MOST_ROWS}",
                do="Lower length or size",
            )
        if self.reward_model is not None and self.policy != "hazard":
            raise ConfigError(
                "A reward model is offered for lengths only", got=self.policy, do="Leave reward_model out"
            )
        if isinstance(self.reward, Short | Near) and self.policy != "hazard":
            raise ConfigError(
                "A reward of the length needs answers that have one",
                got=f"policy {self.policy}",
                expected="policy hazard",
            )
        if isinstance(self.data.law, Truncated) and self.policy != "hazard":
            raise ConfigError(
                "Only answers with a length can be truncated",
                got=f"policy {self.policy}",
                expected="policy hazard",
            )
        if self.contexts is not None and self.policy not in WITH_PROMPTS:
            raise ConfigError(
                f"contexts has no effect on the policy {self.policy}", do="Leave it out: there are no prompts"
            )
        if self.policy == "tabular" and (self.prompts.held_out, self.prompts.size) != (None, None):
            raise ConfigError(
                "held_out and size have no effect on the policy tabular", do="Leave them out of contexts"
            )
        for law in (self.reward_values(), self.reference_law(), self.data_law()):
            assert len(law) == self.num_outcomes

    @property
    def num_outcomes(self) -> int:
        return self.size + (self.policy == "hazard")

    @property
    def tree(self) -> Tree:
        """How an outcome is written: as a single token, except for gpt."""
        if self.policy != "gpt":
            return Tree(base=self.num_outcomes, length=1)
        base = 2
        while (base + 1) ** self.length <= self.size:
            base += 1
        return Tree(base=base, length=self.length)

    @property
    def prompts(self) -> Contexts:
        """Where there are none, the number of groups of completions."""
        return self.contexts or Contexts()

    def reward_values(self) -> np.ndarray:
        return self.reward.values(self.num_outcomes)

    def reference_law(self) -> np.ndarray:
        """Never zero: a policy must be able to start there."""
        law = np.maximum(self.reference.probabilities(self.num_outcomes), 1e-12)
        return law / law.sum()

    def data_law(self) -> np.ndarray:
        return self.data.law.law(self.reference_law(), self.reward_values())

    def with_train(self, count: int) -> "Problem":
        """The same with another number of training prompts."""
        return replace(self, contexts=replace(self.prompts, train=count))


def shipped_problems() -> list[str]:
    """The names of the problems that come with the package."""
    return sorted(
        path.name.removesuffix(".yaml") for path in PROBLEMS.iterdir() if path.name.endswith(".yaml")
    )


def load_problem(name: str) -> Problem:
    """A problem that is shipped, by its name, or one in a YAML file."""
    path = PROBLEMS / f"{name}.yaml" if name in shipped_problems() else Path(name)
    if isinstance(path, Path) and not path.is_file():
        raise ConfigError(
            "There is no such problem",
            got=name,
            expected=f"a YAML file, or one of {', '.join(shipped_problems())}",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the problem {name}", got=str(error)) from error
    return problem_from(parse_yaml(text, name), where=name)


def problem_from(content: object, where: str) -> Problem:
    """A problem from a mapping; every mistake is one sentence that names the place."""
    if isinstance(content, dict) and isinstance(content.get("data"), dict):
        data = dict(content["data"])
        content = {**content, "data": build(Data, data, f"{where}, data", {"law": DATA_KINDS})}
    return build(Problem, content, where, {"reward": REWARD_KINDS, "reference": LAW_KINDS})
