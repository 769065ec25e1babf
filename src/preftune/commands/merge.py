"""The verb `merge`: one model out of several, or out of an adapter and its base."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers import PreTrainedModel

from preftune.cli.checks import name_bare_words
from preftune.cli.model_settings import Precision
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError, ModelError, check_range, refuse_idle
from preftune.model.load import check_same_tokenizer, load_model, load_tokenizer, resolve_model, weights_dtype
from preftune.model.merge import MergeMethod, Weights, merge_weights
from preftune.model.whole_model import LoadOptions, quiet_transformers
from preftune.storage import new_folder
from preftune.terminal import clean_terminal
from preftune.text import plural
from preftune.train.runlog import RunFolder, check_output, check_room

# --- the maths ---


# --- the verb ---


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """One model out of several of one architecture, or out of an adapter and its base.

    Args:
        models: what to merge; a single one is an adapter (merged into its base), or a model for `share` to
            draw to `base`.
        output: a new folder for the merged model.
        method: "linear" mixes the weights; "slerp" turns the differences from `base` on an arc, each weight
            tensor by itself.
        base: the model that the others were tuned from.
        weights: of linear: one per model, with a sum of 1; equal when not given.
        share: how far to go from `base` to what was merged: 1 is all the way, WARP takes 0.3.
        precision: of the saved weights; merging is done in fp64.
        json: print JSON.
        loading: security settings for loading models.
    """

    models: list[str]
    output: str
    method: MergeMethod = "linear"
    base: str | None = None
    weights: list[float] = field(default_factory=list)
    share: float = 1.0
    precision: Precision = "fp32"
    json: bool = False
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("There is nothing to merge", got="no models", expected="at least one")
        if self.method == "slerp" and (len(self.models) < 2 or self.base is None):
            raise ConfigError(
                "slerp turns the differences of several models from their base",
                got=f"{plural(len(self.models), 'model')}, base {self.base}",
                expected="two or more models, and --base MODEL",
            )
        if self.method == "slerp":
            refuse_idle(
                self,
                "on slerp, which merges with equal shares",
                "weights",
                do="Leave it out, or use --method linear",
            )
        if self.weights and (len(self.weights) != len(self.models) or not abs(sum(self.weights) - 1) < 1e-6):
            raise ConfigError(
                "weights do not fit", got=self.weights, expected=f"{len(self.models)} numbers with a sum of 1"
            )
        check_range(self, "(0, 1]", "share", expected="above 0, at most 1")
        if self.base is None:
            refuse_idle(self, "without a base", "share", do="Set --base MODEL")
        if self.method == "linear" and self.share == 1:
            refuse_idle(self, "on linear merging", "base", do="Set --share, or leave base out")
        if len(self.models) == 1 and self.share == 1 and not _is_adapter(self.models[0]):
            raise ConfigError(
                "A single model that is no adapter has nothing to be merged with",
                got=self.models[0],
                expected="an adapter folder, or several models, or --base and --share",
            )


def _is_adapter(name: str) -> bool:
    return (Path(name).expanduser() / "adapter_config.json").is_file()


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """What was merged, and how far the models had moved from their base."""

    output: str
    models: tuple[str, ...]
    method: str
    base: str | None
    weights: tuple[float, ...]  # empty for slerp
    share: float
    num_parameters: int
    angle: (
        float | None
    )  # between the first two task vectors as wholes, in degrees; None without a base and two models


def merge_models(settings: MergeConfig) -> MergeResult:
    """Load, check that the models fit each other, merge, save with the first one's tokenizer; whole or not at
    all.
    """
    output = Path(settings.output)
    check_output(settings.output)
    with new_folder(output):
        return _merge(settings)


def _merge(settings: MergeConfig) -> MergeResult:
    others = [*settings.models[1:], *([settings.base] if settings.base is not None else [])]
    for other in others:
        check_same_tokenizer(settings.models[0], other, settings.loading)
    tokenizer = load_tokenizer(resolve_model(settings.models[0]), settings.loading)
    first = load_model(resolve_model(settings.models[0]), settings.loading)
    count = sum(p.numel() for p in first.parameters())
    check_room(settings.output, count * (2 if settings.precision == "bf16" else 4))
    loaded = [first, *(load_model(resolve_model(name), settings.loading) for name in settings.models[1:])]
    base = None if settings.base is None else load_model(resolve_model(settings.base), settings.loading)
    compared: list[PreTrainedModel] = [*loaded[1:], *([] if base is None else [base])]
    for name, model in zip(others, compared, strict=True):
        _check_fits(settings.models[0], first, name, model)
    weights = settings.weights or [1 / len(loaded)] * len(loaded)
    states = [model.state_dict() for model in loaded]
    start = None if base is None else base.state_dict()
    turned = _whole_angle(states, start, [name for name, _ in first.named_parameters()])
    first.load_state_dict(merge_weights(states, start, settings.method, weights, settings.share))
    result = MergeResult(
        output=settings.output,
        models=tuple(settings.models),
        method=settings.method,
        base=settings.base,
        share=settings.share,
        weights=() if settings.method == "slerp" else tuple(weights),
        num_parameters=count,
        angle=turned,
    )
    output = Path(settings.output)
    output.parent.mkdir(parents=True, exist_ok=True)

    def write(folder: Path) -> None:
        first.to(weights_dtype(settings.precision)).save_pretrained(folder)  # type: ignore[arg-type]
        tokenizer.save_pretrained(folder)
        (folder / "merge.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")

    RunFolder(path=output.parent).install_folder(output.name, write)
    return result


def _check_fits(name: str, first: PreTrainedModel, other_name: str, other: PreTrainedModel) -> None:
    """Both are of one class and have the same tensors of the same shapes."""
    if type(first) is not type(other):
        raise ModelError(
            "Models of different architectures cannot be merged",
            got=f"{type(first).__name__} ({name}) and {type(other).__name__} ({other_name})",
            expected="models tuned from one start",
        )
    shapes = [
        {key: tuple(value.shape) for key, value in model.state_dict().items()} for model in (first, other)
    ]
    for key in sorted(shapes[0].keys() | shapes[1].keys()):
        if shapes[0].get(key) != shapes[1].get(key):
            raise ModelError(
                "Models of different shapes cannot be merged",
                got=f"{key}: {shapes[0].get(key)} in {name}, {shapes[1].get(key)} in {other_name}",
                expected="models tuned from one start",
            )


def _whole_angle(states: Sequence[Weights], base: Weights | None, names: Sequence[str]) -> float | None:
    """Between the first two task vectors, all parameters together (tied weights once), in degrees."""
    if base is None or len(states) < 2:
        return None
    dot, squares = 0.0, [0.0, 0.0]
    for name in names:
        one, two = (state[name].double() - base[name].double() for state in states[:2])
        dot += float((one * two).sum())
        squares = [squares[0] + float(one.square().sum()), squares[1] + float(two.square().sum())]
    if 0.0 in squares:
        return None
    return math.degrees(math.acos(max(-1.0, min(1.0, dot / math.sqrt(squares[0] * squares[1])))))


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(MergeConfig, name_bare_words(arguments, "models"), "preftune merge")
    result = merge_models(settings)
    if settings.json:
        print_json(asdict(result))
        return 0
    apart = (
        ""
        if result.angle is None
        else f"; the first two point {result.angle:.0f} degrees apart from the base"
    )
    print(
        clean_terminal(
            f"{plural(len(result.models), 'model')} merged ({result.method}){apart}\nmodel   {result.output}"
        )
    )
    return 0
