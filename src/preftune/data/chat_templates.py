"""Chat templates from files, and those that come with preftune.

Each of those writes the same text for a turn whatever follows it, so that prompts are prefixes of answers and
trajectories can be trained on; the templates that the models come with leave out earlier reasoning.
"""

from importlib.resources import files
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from preftune.data.options import DataOptions
from preftune.errors import ConfigError, ModelError

_MOST_BYTES = 1 << 20  # of a template
SHIPPED: dict[str, tuple[str, ...]] = {
    "qwen3": ("<|im_start|>", "<|im_end|>"),
    "qwq": ("<|im_start|>", "<|im_end|>"),
    "r1-distill": ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "llama-3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
"""The templates of this package, and the tokens that a tokenizer must have for each."""


def shipped_template(name: str) -> str:
    """The text of a template of this package."""
    return files("preftune.data").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")


def apply_template(tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> None:
    """Give the tokenizer the template of the options, so that it is used, and saved with the model."""
    if options.chat_template is None:
        return
    name = options.chat_template
    if name not in SHIPPED:
        tokenizer.chat_template = _read(name)
        return
    missing = [token for token in SHIPPED[name] if token not in tokenizer.get_vocab()]
    if missing:
        raise ModelError(
            f"The chat template {name} is not for this tokenizer",
            got=f"no token {missing[0]}",
            expected="a tokenizer with " + " ".join(SHIPPED[name]),
            do="Use another template (--rows.chat_template)",
        )
    tokenizer.chat_template = shipped_template(name)


def _read(name: str) -> str:
    path, known = Path(name).expanduser(), ", ".join(SHIPPED)
    try:
        content = path.read_bytes()
        if len(content) > _MOST_BYTES:
            raise ConfigError(
                "The chat template is too large", got=f"{len(content)} bytes", expected="at most 1 MiB"
            )
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            "The chat template cannot be read",
            got=f"{name}: {error}",
            expected=f"a text file with a Jinja template, or one of {known}",
        ) from error
    if not text.strip():
        raise ConfigError(
            "The chat template is empty", got=name, expected=f"a Jinja template, or one of {known}"
        )
    return text
