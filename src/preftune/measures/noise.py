"""How consistent preferences are: what a quick reward model agrees with, and where the data contradict
themselves.

Pure, numpy only.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from preftune.errors import DataError
from preftune.measures.calibration import calibrate
from preftune.stats import Interval, cluster_means, share_interval

FOLDS = 5
INNER_FOLDS = 3  # to choose the ridge, inside the other folds
RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0)  # times the number of pairs; features have a mean square of 1 in all
MIN_PROMPTS = 20  # with fewer, a fold has less than 4 prompts and the agreement is a coin's
STRONG = 0.99
EXCHANGED = 0.3
_NEWTON_STEPS = 50
_SETTLED = 1e-9  # of the gradient's largest entry, per pair


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAgreement:
    """A quick reward model on pairs that it has not seen."""

    agreement: Interval  # Wilson's, over prompts
    nll: Interval  # nats per pair; 0.693 of a model that knows nothing
    num_pairs: int
    strong: Interval  # share of pairs whose fitted probability is above STRONG or below 1 - STRONG
    exchanged: Interval  # the agreement where EXCHANGED of the labels that it was fitted to were exchanged

    @property
    def noise(self) -> float:
        """An upper estimate of the share of exchanged pairs: what the model does not see counts as noise,
        too.
        """
        return 1 - self.agreement.mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradictions:
    """Pairs that cannot all be right."""

    num_repeated: int  # comparisons of a pair with another judgment of the same two completions
    disagreeing: float | None  # share of these comparisons; None if there are none
    exchanged: float | None  # share of exchanged pairs that explains it, if judgments err independently
    in_cycles: float  # share of pairs on a cycle of preferences, a pair in both orders included


def cross_validated(
    features: Sequence[Float[np.ndarray, "P ..."]], clusters: Sequence[int] | np.ndarray, *, seed: int = 0
) -> ModelAgreement | None:
    """Agreement of a Bradley-Terry model with pairs of prompts that it was not fitted to; None below
    MIN_PROMPTS prompts.

        minimize  sum_p log(1 + exp(-w . x_p)) + ridge * P / 2 * |w|^2,        x_p = features(chosen) -
        features(rejected)

    a logistic regression without intercept (Bradley and Terry, Biometrika 1952). Each block of features is
    scaled to a mean square of 1 in all, so that hidden states of many dimensions do not drown a length. All
    pairs of a prompt are in one fold; the ridge is chosen by the likelihood of inner folds. Pairs of equal
    features carry no information and take no part. A second fit sees EXCHANGED of its labels exchanged: how much of
    the agreement stays is noise invariance (Shen et al., 2024, arXiv 2409.09603).

    Args:
        features: blocks, each [P] or [P, its width], of differences.
        clusters: the prompt of each pair.
        seed: of the folds.
    """
    differ = np.any([np.asarray(block).reshape(len(clusters), -1).any(1) for block in features], axis=0)
    blocks = [np.asarray(block, float).reshape(len(clusters), -1)[differ] for block in features]
    _, prompt = np.unique(np.asarray(clusters)[differ], return_inverse=True)
    num_prompts = int(prompt.max(initial=-1)) + 1
    if num_prompts < MIN_PROMPTS:
        return None
    random = np.random.default_rng(seed)
    fold = random.permutation(num_prompts) % FOLDS
    signs = np.where(random.permutation(len(prompt)) < EXCHANGED * len(prompt), -1.0, 1.0)
    margins, noisy = np.zeros(len(prompt)), np.zeros(len(prompt))
    for held in range(FOLDS):
        test = fold[prompt] == held
        train_x, test_x = _scaled(blocks, ~test)
        for out, x in ((margins, train_x), (noisy, train_x * signs[~test, None])):
            out[test] = test_x @ fit_logistic(x, _best_ridge(x, prompt[~test], seed))
    found = calibrate(margins, prompt, seed=seed)
    strong = np.abs(margins) > math.log(STRONG / (1 - STRONG))
    return ModelAgreement(
        agreement=found.accuracy,
        nll=found.nll,
        num_pairs=len(prompt),
        strong=share_interval(cluster_means(strong.astype(float), prompt)),
        exchanged=calibrate(noisy, prompt, seed=seed).accuracy,
    )


def _scaled(
    features: Sequence[np.ndarray], train: np.ndarray
) -> tuple[Float[np.ndarray, "T F"], Float[np.ndarray, "U F"]]:
    """Training and held-out rows, scaled by the training rows, in the few directions that the training rows
    span.
    """
    blocks = []
    for block in features:
        root = np.sqrt((block[train] ** 2).mean(0))
        blocks.append(block / np.where(root > 0, root, np.inf) / math.sqrt(block.shape[1]))
    x = np.concatenate(blocks, axis=1)
    if x.shape[1] > train.sum():
        x = x @ np.linalg.svd(x[train], full_matrices=False)[2].T
    return x[train], x[~train]


def fit_logistic(x: Float[np.ndarray, "P F"], ridge: float) -> Float[np.ndarray, " F"]:
    """The minimum of sum_p log(1 + exp(-w . x_p)) + ridge * P / 2 * |w|^2, by Newton's method with halved
    steps.
    """
    w, strength = np.zeros(x.shape[1]), ridge * len(x)

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -x @ w).sum() + strength / 2 * w @ w)

    for _ in range(_NEWTON_STEPS):
        wrong = np.exp(-np.logaddexp(0, x @ w))
        gradient = -x.T @ wrong + strength * w
        if np.abs(gradient).max(initial=0) <= _SETTLED * len(x):
            break
        curvature = (x * (wrong * (1 - wrong))[:, None]).T @ x + strength * np.eye(len(w))
        step, size, before = np.linalg.solve(curvature, gradient), 1.0, loss(w)
        while loss(w - size * step) > before and size > 1e-6:
            size /= 2
        w = w - size * step
    return w


def _best_ridge(x: np.ndarray, prompt: np.ndarray, seed: int) -> float:
    """The ridge of the smallest held-out loss in inner folds by prompt; the strongest of equals."""
    _, prompt = np.unique(prompt, return_inverse=True)
    fold = np.random.default_rng(seed + 1).permutation(int(prompt.max()) + 1)[prompt] % INNER_FOLDS
    losses = {
        ridge: sum(
            np.logaddexp(0, -x[fold == k] @ fit_logistic(x[fold != k], ridge)).sum()
            for k in range(INNER_FOLDS)
        )
        for ridge in reversed(RIDGES)
    }
    return min(losses, key=lambda ridge: losses[ridge])


# --- contradictions ---


def contradictions(pairs: Sequence[tuple[Hashable, Hashable, Hashable]]) -> Contradictions:
    """Judgments (prompt, chosen, rejected) that disagree: keys of equal texts are equal, and no chosen is
    its rejected.

    Two judgments of the same two completions disagree with probability d = 2 e (1 - e) if each is exchanged
    with probability e; so e = (1 - sqrt(1 - 2 d)) / 2, and 1/2 from d = 1/2 on. Rows that were copied agree
    and hide noise.
    """
    if not pairs:
        raise DataError("There are no pairs to compare", got="0 pairs", expected="at least one")
    judged: dict[Hashable, Counter] = defaultdict(Counter)
    for prompt, chosen, rejected in pairs:
        judged[prompt, frozenset((chosen, rejected))][chosen] += 1
    repeated = disagreeing = 0
    for votes in judged.values():
        total = votes.total()
        repeated += math.comb(total, 2)
        disagreeing += math.comb(total, 2) - sum(math.comb(count, 2) for count in votes.values())
    share = disagreeing / repeated if repeated else None
    return Contradictions(
        num_repeated=repeated,
        disagreeing=share,
        in_cycles=_in_cycles(pairs) / len(pairs),
        exchanged=None if share is None else (1 - math.sqrt(max(0.0, 1 - 2 * share))) / 2,
    )


def _in_cycles(pairs: Sequence[tuple[Hashable, Hashable, Hashable]]) -> int:
    """Pairs whose rejected completion is, over others, preferred to their chosen one."""
    below: Mapping[tuple[Hashable, Hashable], set[Hashable]] = defaultdict(set)
    for prompt, chosen, rejected in pairs:
        below[prompt, chosen].add(rejected)
    reached: dict[tuple[Hashable, Hashable], set[Hashable]] = {}

    def reach(prompt: Hashable, start: Hashable) -> set[Hashable]:
        if (prompt, start) not in reached:
            found: set[Hashable] = set()
            queue = [start]
            while queue:
                new = below.get((prompt, queue.pop()), set()) - found
                found |= new
                queue += new
            reached[prompt, start] = found
        return reached[prompt, start]

    return sum(chosen in reach(prompt, rejected) for prompt, chosen, rejected in pairs)
