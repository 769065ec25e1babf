"""The command `curves`: derivative of each loss with respect to a token, as a figure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from preftune.catalogue.curves import Quantity, derivative_curves
from preftune.catalogue.curves_figure import write_figure
from preftune.catalogue.entries import check_names
from preftune.cli.checks import name_bare_words
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError, check_range
from preftune.objectives import OBJECTIVES
from preftune.storage import new_file
from preftune.terminal import clean_terminal
from preftune.text import plural


@dataclass(frozen=True, kw_only=True)
class CurvesConfig:
    """How hard an objective pushes a token up or down, as a function of the token's probability: one figure.

    Args:
        objectives: which objectives; all when none is given.
        output: the figure, *.png, *.svg or *.pdf.
        overwrite: replace the output if it exists.
        quantity: the derivative with respect to the token's "logit" or to its "logp" (log-probability).
        ref_prob: probability of the token under the reference, between 0 and 1.
        json: print the curves as JSON.
    """

    objectives: list[str] = field(default_factory=list)
    output: str = "derivative-curves.png"
    overwrite: bool = False
    quantity: Quantity = "logit"
    ref_prob: float = 0.3
    json: bool = False

    def __post_init__(self) -> None:
        check_names(self.objectives)
        twice = [name for name in self.objectives if self.objectives.count(name) > 1]
        if twice:
            raise ConfigError("An objective is given twice", got=twice[0], do="Name each once")
        check_range(self, "[0.001, 0.999]", "ref_prob", expected="a number between 0.001 and 0.999")
        if Path(self.output).suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ConfigError(
                "The kind of the figure is unknown", got=self.output, expected="a name in .png, .svg or .pdf"
            )
        if Path(self.output).is_dir():
            raise ConfigError(
                "output is the figure's file", got=f"a folder, {self.output}", do="Name a file in it"
            )


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(CurvesConfig, name_bare_words(arguments, "objectives"), "preftune curves")
    found = derivative_curves(settings.objectives or list(OBJECTIVES), settings.quantity, settings.ref_prob)
    if not found.curves:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.not_drawn.items())
        raise ConfigError("None of these objectives has a curve", got=reasons)
    with new_file(settings.output, settings.overwrite) as output:
        figure = write_figure(found, output)
    if settings.json:
        print_json(asdict(found) | {"figure": str(figure)})
        return 0
    for name, reason in found.not_drawn.items():
        print(f"{name} is not drawn: {reason}")
    print(clean_terminal(f"{plural(len(found.curves), 'objective')} in {figure}"))
    return 0
