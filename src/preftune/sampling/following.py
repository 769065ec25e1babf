"""Whether a server follows a policy that trains: does it give fixed tokens new log-probabilities when the policy
does? Pure.

Comparing the server with the policy decides nothing in low precision, where rounding exceeds the change of many
steps. Comparing changes can: what rounding and kernels add to both versions cancels.
"""

from dataclasses import dataclass

import numpy as np

_LEAST_CHANGE = 3e-4  # nats per token (root mean square): below it, equal numbers of the server may be honest
_SIGNAL = 3.0  # times the noise that a change must have: beyond it noise moves the share by a tenth


@dataclass(frozen=True, kw_only=True)
class Following:
    """How a server's log-probabilities of fixed tokens changed with the policy's between two versions."""

    share: float  # of the policy's change that the server shows: 1 follows, 0 does not
    change: float  # of the policy, root mean square over tokens, in nats
    noise: float  # difference of server and policy at the first version, root mean square
    repeats: bool  # the server gave the same numbers, to the last bit

    @property
    def conclusive(self) -> bool:
        """Whether the policy has changed enough for a verdict."""
        return self.stale or self.change > _SIGNAL * self.noise

    @property
    def stale(self) -> bool:
        """Whether the server still has the earlier weights.

        A server that computes the same tokens with the same weights repeats itself; new weights change some
        bit even where rounding hides the size of the change.
        """
        if self.repeats and self.change > _LEAST_CHANGE:
            return True
        return self.change > _SIGNAL * self.noise and self.share < 0.5


def compare_changes(
    policy_before: np.ndarray, policy_now: np.ndarray, server_before: np.ndarray, server_now: np.ndarray
) -> Following:
    """Compare the changes of log-probabilities of the same tokens; `share` is the slope of a regression through
    0 of the server's change on the policy's.
    """
    policy = np.asarray(policy_now, np.float64) - policy_before
    server = np.asarray(server_now, np.float64) - server_before
    square = float(policy @ policy)
    return Following(
        share=float(server @ policy) / square if square > 0 else 1.0,
        change=_rms(policy),
        noise=_rms(np.asarray(server_before, np.float64) - policy_before),
        repeats=not server.any(),
    )


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
