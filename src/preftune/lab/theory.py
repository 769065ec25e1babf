"""Closed forms: how the two directions of a KL divergence move a softmax policy, and when a negative gradient
helps.

p is the policy, q the target, z the policy's logits; all one vector of probabilities each. Numpy only, in
fp64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Vector = np.ndarray


def softmax(logits: Vector) -> Vector:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def kl(p: Vector, q: Vector) -> float:
    """KL(p || q) = sum p log(p / q), in nats."""
    return float((p * np.log(p / q)).sum())


def forward_direction(p: Vector, q: Vector) -> Vector:
    """-d KL(q || p) / dz = q - p: what likelihood of samples of the target does."""
    return q - p


def reverse_direction(p: Vector, q: Vector) -> Vector:
    """-d KL(p || q) / dz_i = p_i (log(q_i / p_i) + KL(p || q)): what a policy gradient does."""
    return p * (np.log(q / p) + kl(p, q))


def mass_change(p: Vector, direction: Vector) -> Vector:
    """d p_i / d eta = p_i (g_i - sum_j p_j g_j), of a step z + eta g."""
    return p * (direction - (p * direction).sum())


def logarithmic_mean(a: float | Vector, b: float | Vector) -> Vector:
    """(a - b) / (log a - log b), for a != b: between the geometric and the arithmetic mean."""
    return np.asarray((np.asarray(a) - b) / (np.log(a) - np.log(b)))


def descended(
    p: Vector, q: Vector, direction: Callable[[Vector, Vector], Vector], rate: float, steps: int
) -> Vector:
    """The policy after some steps of plain gradient descent on its logits."""
    logits = np.log(p)
    for _ in range(steps):
        now = softmax(logits)
        logits = logits + rate * direction(now, q)
    return softmax(logits)


# --- a family that cannot fit its target ---

BINS = np.arange(50)


def binned_normal(mean: float | Vector, deviation: float | Vector) -> Vector:
    """Normal densities at 0 .. 49, normalized; [..., 50]."""
    distance = (BINS - np.asarray(mean)[..., None]) / np.asarray(deviation)[..., None]
    weights = np.exp(-(distance**2) / 2)
    return weights / weights.sum(-1, keepdims=True)


def two_modes() -> Vector:
    """0.6 N(12, 3) + 0.4 N(38, 3) + 1e-6 in each bin, normalized."""
    law = 0.6 * binned_normal(12.0, 3.0) + 0.4 * binned_normal(38.0, 3.0) + 1e-6
    return law / law.sum()


@dataclass(frozen=True, kw_only=True)
class Fit:
    mean: float
    deviation: float
    divergence: float


def best_fits(target: Vector) -> tuple[Fit, Fit]:
    """The binned normal nearest to the target by KL(target || fit), and by KL(fit || target), on a grid."""
    means, deviations = np.arange(0, 49.01, 0.1), np.arange(1.0, 26.01, 0.25)
    found = []
    laws = binned_normal(means[:, None], deviations[None, :]) + 1e-300
    log_laws = np.log(laws)
    for divergences in (
        (target * np.log(target)).sum() - log_laws @ target,
        (laws * log_laws).sum(-1) - laws @ np.log(target),
    ):
        i, j = np.unravel_index(int(divergences.argmin()), divergences.shape)
        found.append(
            Fit(mean=float(means[i]), deviation=float(deviations[j]), divergence=float(divergences[i, j]))
        )
    return found[0], found[1]


# --- negative gradients ---


def gradient_product(p: Vector, chosen: int, rejected: int) -> float:
    """grad log p_w . grad log p_l over the logits of a softmax: sum_k p_k^2 - p_w - p_l. Where it is
    positive, pushing the rejected outcome down pushes the chosen one down too.
    """
    return float((p**2).sum() - p[chosen] - p[rejected])


def after_pair_step(
    p: Vector, chosen: int, rejected: int, rate: float, negative: float
) -> tuple[float, float]:
    """(change of log p_w, change of log p_l) in a step along grad log p_w - negative * grad log p_l."""
    direction = -(1 - negative) * p
    direction[chosen] += 1
    direction[rejected] -= negative
    new = softmax(np.log(p) + rate * direction)
    return float(np.log(new[chosen] / p[chosen])), float(np.log(new[rejected] / p[rejected]))


# --- BNF ---


def held_down(ref_logp: float, times: Vector, *, feedback: bool, substeps: int = 200) -> Vector:
    """log p of a dispreferred token at some times of gradient flow on its logit, the other logits being
    fixed; p starts at q.

        likelihood   dz/dt = -(1 - p)           log p falls without end, in the long run by 1 per unit of time
        BNF          dz/dt = -w (1 - p),        w = odds(p) / odds(q) = exp(z - z_0)

    With x = exp(z_0 - z) BNF's flow is dx/dt = 1 - p, hence for a rare token x = 1 + t: log p falls as log(1
    + t).
    """
    start = np.log(np.exp(ref_logp) / -np.expm1(ref_logp))
    log_odds, now, found = start, 0.0, []
    for time in times:
        step = (time - now) / substeps
        for _ in range(substeps):

            def slope(z: float) -> float:
                return -(np.exp(z - start) if feedback else 1.0) / (1 + np.exp(z))

            middle = log_odds + step / 2 * slope(log_odds)
            log_odds = log_odds + step * slope(middle)
        now = time
        found.append(log_odds - np.logaddexp(0.0, log_odds))
    return np.asarray(found)


# --- the numbers of section 4.2 as a table ---


@dataclass(frozen=True, kw_only=True)
class Check:
    """A number from the closed forms and its expected value."""

    text: str
    found: float
    expected: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return abs(self.found - self.expected) <= self.tolerance


def checks() -> list[Check]:
    """The closed forms against manually computed values."""
    return [*_direction_checks(), *_pair_step_checks()]


def _compared(
    text: str, numbers: Vector | float, expected: float | list[float], tolerance: float = 1e-4
) -> list[Check]:
    """A check for each number."""
    return [
        Check(text=text, found=float(number), expected=float(wanted), tolerance=tolerance)
        for number, wanted in zip(np.atleast_1d(numbers), np.atleast_1d(expected), strict=True)
    ]


def _direction_checks() -> list[Check]:
    """Forward and reverse KL divergence."""
    checked: list[Check] = []
    checked += _compared(
        "logarithmic mean: cases with a wrong prediction of the faster direction",
        float(_violations()),
        0.0,
        0.0,
    )
    p, q = np.array([0.05, 0.45, 0.25, 0.25]), np.array([0.4, 0.4, 0.1, 0.1])
    checked += _compared(
        "equal targets: forward makes the outcomes more equal",
        forward_direction(p, q),
        [0.35, -0.05, -0.15, -0.15],
    )
    checked += _compared(
        "equal targets: reverse raises the likelier more",
        reverse_direction(p, q),
        [0.12433, 0.13023, -0.12728, -0.12728],
    )
    p, q = np.array([0.6, 0.1, 0.15, 0.15]), np.array([0.05, 0.5, 0.225, 0.225])
    checked += _compared(
        "overestimated outcome: forward", forward_direction(p, q), [-0.55, 0.4, 0.075, 0.075]
    )
    checked += _compared(
        "overestimated outcome: reverse lowers it faster and fills the gap more slowly",
        reverse_direction(p, q),
        [-0.76593, 0.28178, 0.24207, 0.24207],
    )
    p, q = PAGE_TOY
    checked += _compared("toy of the project page: forward", forward_direction(p, q), [-0.1, -0.2, 0.5, -0.2])
    checked += _compared(
        "toy of the project page: reverse", reverse_direction(p, q), [0.05885, -0.14909, 0.23934, -0.14909]
    )
    checked += _compared("toy: KL(p || q), KL(q || p)", np.array([kl(p, q), kl(q, p)]), [0.60163, 0.77424])
    forward, reverse = best_fits(two_modes())
    checked += _compared("two modes: forward covers both, its divergence", forward.divergence, 0.6930, 1e-3)
    checked += _compared(
        "two modes: reverse covers the larger", np.array([reverse.mean, reverse.deviation]), [12.0, 3.0], 1e-3
    )
    checked += _compared(
        "two modes: reverse divergence, -log 0.6", reverse.divergence, -float(np.log(0.6)), 1e-3
    )
    return checked


def _pair_step_checks() -> list[Check]:
    """Steps on a pair with and without the negative gradient."""
    checked: list[Check] = []
    p, both = np.array([0.1, 0.2, 0.3, 0.4]), (0.0, 1.0)  # without and with the negative gradient
    checked += _compared(
        "negative gradient that helps: product of gradients", gradient_product(p, 0, 3), -0.2
    )
    checked += _compared(
        "negative gradient that helps: chosen, without and with",
        np.array([after_pair_step(p, 0, 3, 0.1, c)[0] for c in both]),
        [0.1093, 0.1279],
    )
    p = np.array([0.01, 0.01, 0.97, 0.01])
    checked += _compared(
        "negative gradient that hurts: product of gradients", gradient_product(p, 0, 3), 0.9212
    )
    checked += _compared(
        "negative gradient that hurts: chosen, without and with",
        np.array([after_pair_step(p, 0, 3, 0.1, c)[0] for c in both]),
        [0.1918, 0.0999],
    )
    checked += _compared(
        "the same, rejecting the peak: product of gradients", gradient_product(p, 0, 2), -0.0388
    )
    checked += _compared(
        "the same, rejecting the peak: chosen", after_pair_step(p, 0, 2, 0.1, 1.0)[0], 0.1957
    )
    return checked


PAGE_TOY = (np.array([0.3, 0.3, 0.1, 0.3]), np.array([0.2, 0.1, 0.6, 0.1]))


def _violations(draws: int = 100_000) -> int:
    """Random cases of equal mass p_1 = p_2 = m in which reverse KL changes p_1 / p_2 faster while m <=
    LM(q_1, q_2), or slower while m is larger.
    """
    random = np.random.default_rng(0)
    q, rest = random.dirichlet(np.ones(4), draws), random.dirichlet(np.ones(3), draws)
    mass = rest[:, 0] / 2  # of each of the two
    p = np.stack([mass, mass, rest[:, 1], rest[:, 2]], axis=1)
    forward = q[:, 0] - q[:, 1]
    reverse = mass * (np.log(q[:, 0] / p[:, 0]) - np.log(q[:, 1] / p[:, 1]))
    faster = np.abs(reverse) > np.abs(forward)
    return int((faster != (mass > logarithmic_mean(q[:, 0], q[:, 1]))).sum())
