"""The tensors in a model's safetensors files: names and shapes, without their content."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from preftune.errors import ModelError


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a file; SafetensorError or OSError if it is damaged."""
    with safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def check_sizes(config: Any, source: str) -> None:
    """The configuration states no size far above that of the weights: the library would take the time and memory of
    a model of that size before it compares. Files that cannot be read are left to the library.
    """
    try:
        shapes = [shape for file in Path(source).glob("*.safetensors") for shape in shapes_in(file).values()]
    except (SafetensorError, OSError):
        return
    text = config.get_text_config()
    widest = max((max(shape, default=1) for shape in shapes), default=0)
    for name, most in (("num_hidden_layers", len(shapes)), ("hidden_size", widest), ("vocab_size", widest)):
        stated = getattr(text, name, None)
        if shapes and isinstance(stated, int) and stated > most:
            raise ModelError(
                f"The weights of {source} do not fit its configuration",
                got=f"{name} {stated:,}",
                expected=f"at most {most:,}",
                do="Correct config.json, or fetch or save the model again",
            )
