"""Learning rates of an objective: the default, the range of the sources, and the sources."""

from dataclasses import dataclass

ADAPTER_FACTOR = 10.0
"""Adapters take learning rates that are so many times larger than all weights do: Schulman et al., "LoRA Without
Regret", Thinking Machines, 2025.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRates:
    """Peak learning rates for all weights.

    Args:
        default: the rate of a run that sets none.
        low: the lowest usual rate: of the sources, or of all objectives where there is no source.
        high: the highest usual rate.
        source: where the default and the range come from. "ours" marks a choice of this package, with its reason.
    """

    default: float
    low: float
    high: float
    source: str

    def default_for(self, lora_rank: int) -> float:
        """The default for all weights, or for adapters."""
        return float(f"{self.default * (ADAPTER_FACTOR if lora_rank else 1.0):.6g}")

    def range_for(self, lora_rank: int) -> tuple[float, float]:
        """The lowest and the highest rate of the sources, for all weights or for adapters."""
        scale = ADAPTER_FACTOR if lora_rank else 1.0
        return float(f"{scale * self.low:.6g}"), float(f"{scale * self.high:.6g}")


def rates_of(
    default: float, source: str, low: float | None = None, high: float | None = None
) -> LearningRates:
    """The default, with a range of its own where the sources use several rates."""
    return LearningRates(default=default, low=low or default, high=high or default, source=source)


def our_rate(default: float, reason: str) -> LearningRates:
    """A default without a source, and the range of all objectives."""
    return LearningRates(default=default, low=1e-7, high=2e-5, source=f"ours: {reason}")
