"""Settings that lie far outside what an objective's page recommends."""

from dataclasses import fields

from preftune.objectives import Objective, objective_name
from preftune.train.optim import OptimOptions

_FAR = 10.001
"""Times beyond the range of the recommended values: more than ten, whatever the rounding."""


def unusual_settings(objective: Objective, optim: OptimOptions, lora_rank: int) -> list[str]:
    """A sentence for each, for a person; nothing for a learning rate of 0, which is a test."""
    low, high = objective.learning_rates.range_for(lora_rank)
    page = f"see: preftune objectives {objective_name(objective)}"
    found = []
    if optim.learning_rate and not low / _FAR <= optim.learning_rate <= high * _FAR:
        what = "adapters" if lora_rank else "all weights"
        size = "above" if optim.learning_rate > high else "below"
        usual = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        found.append(
            f"learning rate {optim.learning_rate:g} is far {size} the usual {usual} for {what}; {page}"
        )
    beta = next((option.default for option in fields(objective) if option.name == "beta"), None)  # type: ignore[arg-type]
    given = getattr(objective, "beta", None)
    if isinstance(beta, float) and beta > 0 and given and not beta / _FAR <= given <= beta * _FAR:
        size = "above" if given > beta else "below"
        found.append(f"beta {given:g} is far {size} the recommended {beta:g}; {page}")
    return found
