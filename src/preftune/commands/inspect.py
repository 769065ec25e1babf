"""The command `inspect`: what is in a data file, as the tokenizer of a model reads it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from preftune.cli.output import make_console, print_json, print_line
from preftune.cli.settings import parse_settings
from preftune.data.inspect import inspect_data
from preftune.data.options import DataOptions
from preftune.errors import DataError, check_range, refuse_idle
from preftune.model.load import load_tokenizer, resolve_model
from preftune.model.whole_model import LoadOptions, quiet_transformers


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is in a data file, as a model's tokenizer sees it.

    Args:
        data: preference data: a file, a folder or a hub id.
        model: whose tokenizer and template to use.
        examples: rows to show.
        json: print JSON.
        rows: how data files become groups of tokens.
        loading: security settings for loading models.
    """

    data: str
    model: str = "smollm2-135m-instruct"
    examples: int = 3
    json: bool = False
    rows: DataOptions = field(default_factory=DataOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        check_range(self, "[0, inf)", "examples", expected="0 or more")
        if self.json:
            refuse_idle(self, "with json", "examples", do="Leave one out")


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(InspectConfig, arguments, "preftune inspect", positional="data")
    tokenizer = load_tokenizer(resolve_model(settings.model), settings.loading)
    found = inspect_data(settings.data, tokenizer, settings.rows)
    if settings.json:
        print_json(found.as_dict())
        _stop(found.stop)
        return 0
    console = make_console()
    for line in found.lines():
        print_line(console, line)
    for text in found.samples(settings.examples):
        console.print()
        console.print(text, soft_wrap=True)
    _stop(found.stop)
    return 0


def _stop(reason: str) -> None:
    """What would stop training comes last, and as an error."""
    if reason:
        raise DataError(reason)
