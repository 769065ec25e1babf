"""A causal model loaded by its name, ready to be scored."""

from collections.abc import Callable

from transformers import PreTrainedModel

from preftune.model.layout import LayoutOptions
from preftune.model.load import load_on_device
from preftune.model.policy import Policy
from preftune.model.proof import choose_layout
from preftune.model.whole_model import LoadOptions


def make_scorer(
    model: PreTrainedModel,
    layout: LayoutOptions,
    precision: str,
    note: Callable[[str], None] = lambda text: None,
) -> Policy:
    """The model with the densest layout of rows that is proven exact for it; `note` gets the reason why it is
    not denser.
    """
    sharing, reason = choose_layout(model, layout, precision)
    if reason:
        note(f"rows are {sharing}: {reason}")
    return Policy(model=model, precision=precision, sharing=sharing, sharing_reason=reason)


def load_scorer(
    name: str, options: LoadOptions, layout: LayoutOptions, precision: str, device: str
) -> Policy:
    """A model of the hub, of a folder or the bundled one, with weights in `precision` ("fp32" or "bf16")."""
    return make_scorer(load_on_device(name, options, precision, device), layout, precision)
