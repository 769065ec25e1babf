"""How far a model has moved from its reference on given completions: log-ratios, logit shifts and their
concentration. Pure.

The definitions are ours (docs/diagnosis.md): they follow what reviews of Mao et al., "As Simple as
Fine-tuning", ICLR 2025, say of the analysis there; its exact formulas were not read. Natural logarithms, so
nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from preftune.errors import DataError
from preftune.stats import Interval, cluster_means, mean_interval

QUANTITIES = {
    "log_ratio": "log-likelihood shift of a completion: the sum over its tokens of logp - ref_logp, in nats",
    "mean_log_ratio": "the same per token of the completion, in nats",
    "abs_mean_log_ratio": "its size, whichever the direction: |mean log-ratio|, in nats per token",
    "logit_shift": "sum over a completion's tokens of |z - z_ref|, z the logit of the token that stands there",
    "mean_logit_shift": "the same per token of the completion",
    "centred_logit_shift": "the logit shift of logits minus their mean over the vocabulary, summed",
    "mean_centred_logit_shift": "the same per token of the completion",
    "gini": "Gini coefficient of a completion's |z - z_ref| over its tokens: 0 all alike, towards 1 all on one token",
    "gini_centred": "the same of the centred logits",
    "mean_greedy_log_ratio": "log-ratio of the reference's most probable token at each place, in nats per token: "
    "what is squeezed into it",
}
"""What is measured of a completion, by name."""


@dataclass(frozen=True, kw_only=True)
class TokenShifts:
    """One completion under a model and its reference, a number per scored token."""

    logp: Float[np.ndarray, " T"]
    ref_logp: Float[np.ndarray, " T"]
    logit_shift: Float[np.ndarray, " T"]  # z_t[y_t] - z_ref,t[y_t], signed
    centred_logit_shift: Float[np.ndarray, " T"]  # of z_t[y_t] - mean_v z_t[v], signed
    greedy_log_ratio: Float[np.ndarray, " T"]  # logp - ref_logp of the reference's most probable token there

    def __post_init__(self) -> None:
        columns = (
            self.logp,
            self.ref_logp,
            self.logit_shift,
            self.centred_logit_shift,
            self.greedy_log_ratio,
        )
        if not all(np.isfinite(column).all() for column in columns):
            raise DataError(
                "A model gives scores that are not finite",
                got="nan or inf",
                do="Check the weights of the run: its training may have diverged",
            )

    @property
    def log_ratio(self) -> Float[np.ndarray, " T"]:
        """logp - ref_logp of each token, in nats."""
        return self.logp.astype(np.float64) - self.ref_logp


def gini(values: Float[np.ndarray, " n"]) -> float:
    """Gini coefficient of values >= 0: 0 if all are equal (or all 0), (n - 1) / n if one of them has
    everything.

    G = sum_i (2 i - n - 1) v_(i) / (n sum_i v_i),   v_(1) <= ... <= v_(n)
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) == 0 or ordered[0] < 0:
        raise DataError(
            "A Gini coefficient is of values of 0 or more",
            got=str(ordered[:1]),
            expected="at least one value",
        )
    total = ordered.sum()
    if total == 0:
        return 0.0
    count = len(ordered)
    return float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * total))


def completion_shifts(tokens: TokenShifts) -> dict[str, float]:
    """The QUANTITIES of one completion."""
    size, centred = (
        np.abs(tokens.logit_shift.astype(np.float64)),
        np.abs(tokens.centred_logit_shift.astype(np.float64)),
    )
    mean = float(tokens.log_ratio.mean())
    return {
        "log_ratio": float(tokens.log_ratio.sum()),
        "mean_log_ratio": mean,
        "abs_mean_log_ratio": abs(mean),
        "logit_shift": float(size.sum()),
        "mean_logit_shift": float(size.mean()),
        "centred_logit_shift": float(centred.sum()),
        "mean_centred_logit_shift": float(centred.mean()),
        "gini": gini(size),
        "gini_centred": gini(centred),
        "mean_greedy_log_ratio": float(tokens.greedy_log_ratio.mean()),
    }


def summarize(rows: Sequence[Mapping[str, float]], clusters: Sequence[int]) -> dict[str, Interval]:
    """Mean and t interval of each quantity; row i belongs to prompt `clusters[i]`, and a prompt's rows are
    averaged first.
    """
    if not rows:
        raise DataError("There are no completions to average", expected="at least one")
    return {name: mean_interval(cluster_means([row[name] for row in rows], clusters)) for name in rows[0]}


def pooled(completions: Sequence[TokenShifts]) -> dict[str, float | int]:
    """The mean log-ratio and the Gini coefficients over the tokens of all completions, every token weighing
    the same.
    """
    ratio = np.concatenate([one.log_ratio for one in completions])
    sizes = [
        np.abs(np.concatenate([getattr(one, name) for one in completions]))
        for name in ("logit_shift", "centred_logit_shift")
    ]
    return {
        "num_tokens": len(ratio),
        "mean_log_ratio": float(ratio.mean()),
        "gini": gini(sizes[0]),
        "gini_centred": gini(sizes[1]),
    }


def symmetric_edges(
    values: Float[np.ndarray, " n"], num_bins: int = 40, covered: float = 0.995
) -> Float[np.ndarray, " edges"]:
    """Edges of bins of equal width around 0 that hold this share of the values (1 nat each way if all are 0)."""
    reach = float(np.quantile(np.abs(values), covered)) or float(np.abs(values).max()) or 1.0
    return np.linspace(-reach, reach, num_bins + 1)


def histogram(
    values: Float[np.ndarray, " n"], edges: Float[np.ndarray, " edges"]
) -> Float[np.ndarray, " bins"]:
    """The share of values in each bin; what lies beyond the edges counts in the outermost bins."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)[0] / len(values)
