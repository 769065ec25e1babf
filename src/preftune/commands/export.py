"""The command `export`: a trained model in the form that another program reads."""

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune import __version__
from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError, ModelError, ServerError, StorageError
from preftune.model.adapter_files import is_adapter
from preftune.model.load import load_model, load_tokenizer, resolve_model
from preftune.model.whole_model import LoadOptions, quiet_transformers
from preftune.report.read import read_run
from preftune.report.summary import Tile, changes, tiles
from preftune.sampling.http_client import check_url
from preftune.spec.strict_yaml import parse_yaml
from preftune.storage import new_folder
from preftune.terminal import clean_terminal
from preftune.train.runlog import RunFolder, check_output

Target = Literal["merged", "adapter", "gguf", "ollama", "hub"]
_TOLERANCE = {"f32": 1e-3, "f16": 0.05, "bf16": 0.5}  # nats, of the largest difference of a log-probability
_TRIALS = {
    "merged": "preftune chat {0}",
    "adapter": "preftune chat {0}",
    "gguf": "llama-cli -m {0}/model.gguf",
    "ollama": "ollama create NAME -f {0}/Modelfile",
}
"""Target -> the command that uses what was written."""
_GGUF = ("gguf", "ollama")
_PROBE = "The capital of France is"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A trained model for other programs.

    Args:
        run: a run folder or a model folder.
        to: "merged" is a model folder with adapters merged, "adapter" the adapter alone, "gguf" one file for
            llama.cpp, "ollama" a GGUF file with a Modelfile, "hub" an upload to a model hub.
        output: a new folder; for "hub" the repository (owner/name).
        dtype: type of the weights; float32 when not given.
        endpoint: address of the hub, when it is not huggingface.co.
        private: make the hub's repository private.
        license: of the model card, such as apache-2.0.
        json: print JSON.
        loading: security settings for loading models.
    """

    run: str
    to: Target
    output: str
    dtype: Literal["f32", "f16", "bf16"] = "f32"
    endpoint: str | None = None
    private: bool = False
    license: str | None = None
    json: bool = False
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        if self.to == "adapter" and self.dtype != "f32":
            raise ConfigError("dtype has no effect on an adapter", got=self.dtype, do="Leave it out")
        if self.to != "hub" and (self.endpoint or self.private or self.license):
            raise ConfigError(
                "endpoint, private and license have no effect",
                got=f"--to {self.to}",
                do="Leave them out, or use --to hub",
            )
        if self.to != "hub" and Path(self.output).suffix == ".gguf":
            raise ConfigError(
                "output is a folder, not a file",
                got=self.output,
                expected="a new folder" + ("; model.gguf is written into it" if self.to in _GGUF else ""),
                do=f"Use --output {shlex.quote(str(Path(self.output).with_suffix('')))}",
            )
        if self.to == "hub" and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.output):
            raise ConfigError("output is no repository of a hub", got=self.output, expected="owner/name")
        if self.endpoint is not None:
            check_url("endpoint", self.endpoint, do="Log in with `hf auth login`")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written, and how far it is from the model."""

    to: str
    output: str
    files: tuple[str, ...]
    largest_difference: float | None = None  # of a log-probability, in nats; None where nothing was converted
    same_text: bool | None = None  # greedy continuation of a short prompt


def export(settings: ExportConfig) -> ExportResult:
    """Write the files, whole or not at all; a converted model is loaded and compared."""
    source = resolve_model(settings.run)
    if settings.to == "hub":
        return _upload(settings, source)
    check_output(settings.output)
    output, checked = Path(settings.output), dict[str, Any]()

    def write(folder: Path) -> None:
        checked.update(_write(settings, source, folder))

    with new_folder(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        RunFolder(path=output.parent).install_folder(output.name, write)
    files = tuple(sorted(path.name for path in output.iterdir()))
    return ExportResult(to=settings.to, output=settings.output, files=files, **checked)


def _write(settings: ExportConfig, source: str, folder: Path) -> dict[str, Any]:
    if settings.to == "adapter":
        _copy_adapter(source, folder)
        return {}
    model, tokenizer = load_model(source, settings.loading), load_tokenizer(source, settings.loading)
    if settings.to == "merged":
        _save_whole(model, tokenizer, folder, settings.dtype)
        return {}
    from preftune.model.gguf_export import write_gguf

    path = folder / "model.gguf"
    write_gguf(model, tokenizer, path, settings.dtype)
    if settings.to == "ollama":
        (folder / "Modelfile").write_text(modelfile(model, tokenizer), encoding="utf-8")
    return _compare(model, tokenizer, path, settings)


def _copy_adapter(source: str, folder: Path) -> None:
    if not is_adapter(source):
        raise ModelError(
            f"{source} is no adapter",
            got="a whole model",
            expected="a run that trained LoRA",
            do="Use --to merged",
        )
    for path in Path(source).iterdir():
        if path.is_file() and path.name != "value_head.safetensors":
            shutil.copy2(path, folder / path.name)


@torch.no_grad()
def _compare(model: PreTrainedModel, tokenizer: Any, path: Path, settings: ExportConfig) -> dict[str, Any]:
    """The file as transformers reads it against the model: log-probabilities and a greedy continuation."""
    again: Any = load_model(str(path), settings.loading)
    ids = torch.tensor([tokenizer(_PROBE)["input_ids"]])
    apart = float(
        (model(input_ids=ids).logits.log_softmax(-1) - again(input_ids=ids).logits.log_softmax(-1))
        .abs()
        .max()
    )
    if not apart <= _TOLERANCE[settings.dtype]:
        raise ModelError(
            "The GGUF file is another model",
            got=f"log-probabilities that differ by {apart:.3g} nats",
            expected=f"at most {_TOLERANCE[settings.dtype]:g} for {settings.dtype}",
            do="Use --dtype f32, or please report the architecture",
        )
    texts = [_greedy(one, ids) for one in (model, again)]
    return {"largest_difference": apart, "same_text": texts[0] == texts[1]}


def _greedy(model: Any, ids: torch.Tensor, count: int = 16) -> list[int]:
    for _ in range(count):
        following = model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, following], dim=1)
    return ids[0].tolist()


def modelfile(model: PreTrainedModel, tokenizer: Any) -> str:
    """Ollama's Modelfile: the file, the template of a turn in Ollama's language, and the stop tokens."""
    lines = ["FROM ./model.gguf"]
    template = _ollama_template(tokenizer)
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    named: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    texts = dict.fromkeys(tokenizer.convert_ids_to_tokens(end) for end in ends if end is not None)
    lines += [f'PARAMETER stop "{text}"' for text in texts]
    return "\n".join(lines) + "\n"


def _ollama_template(tokenizer: Any) -> str:
    """The chat template in Ollama's language, from how it writes a system turn, questions and an answer."""
    if not tokenizer.chat_template:
        return "{{ .Prompt }}"
    names = {"system": "\x01S\x01", "user": "\x01U\x01", "assistant": "\x01A\x01", "again": "\x01V\x01"}
    messages = [
        {"role": role if role != "again" else "user", "content": text} for role, text in names.items()
    ]
    try:
        whole = str(tokenizer.apply_chat_template(messages[:3], tokenize=False))
        longer = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program and may raise anything
        raise _no_template(" ".join(str(error).split())[:160]) from error
    if [longer.count(text) for text in names.values()] != [1] * 4:
        raise _no_template("a template that leaves turns out or repeats them")
    before, middle, answer, between, opened = re.split("|".join(names.values()), longer)
    after = whole.rpartition(names["assistant"])[2]
    user = between.removeprefix(after)
    if not between.startswith(after) or not middle.endswith(user) or answer != opened:
        raise _no_template("a template that changes with its turns")
    ids = tokenizer("a")["input_ids"]
    if ids and ids[0] == tokenizer.bos_token_id:  # llama.cpp writes it
        before = before.removeprefix(tokenizer.bos_token)
    system = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{middle.removesuffix(user)}{{{{ end }}}}"
    return f"{system}{user}{{{{ .Prompt }}}}{answer}{{{{ .Response }}}}{after.rstrip()}"


def _no_template(got: str) -> ModelError:
    return ModelError(
        "The chat template cannot be written for Ollama",
        got=got,
        do="Export with --to gguf, which carries the template as it is",
    )


def model_card(source: str, settings: ExportConfig) -> str:
    """A card that states objective, data, hyperparameters, metrics with intervals and versions, as far as the run
    folder knows.
    """
    folder = Path(source).parent
    config, metrics = _read(folder / "config.yaml"), _last_metrics(folder / "metrics.jsonl")
    base = str(config.get("model") or "")
    head: dict[str, Any] = {
        "library_name": "peft" if is_adapter(source) else "transformers",
        "tags": ["preftune"],
    }
    if settings.license:
        head["license"] = settings.license
    if base.count("/") == 1 and not Path(base).exists() and not base.startswith((".", "/", "~")):
        head["base_model"] = base
    objective = config.get("objective") or {}
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {settings.output}", ""]
    lines += [f"Trained with [preftune](https://pypi.org/project/preftune/) {__version__}.", ""]
    rows = {
        "objective": objective.get("name") if isinstance(objective, dict) else objective,
        "data": Path(str(config["data"])).name if config.get("data") else None,
        "batch size": config.get("batch_size"),
        "epochs": config.get("epochs"),
        "learning rate": (config.get("optim") or {}).get("learning_rate"),
        "LoRA rank": (config.get("lora") or {}).get("rank"),
        "precision": config.get("precision"),
        "seed": config.get("seed"),
        "versions": _versions(config.get("environment")),
    }
    lines += ["| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    if measured := _measured(folder):
        lines += ["", "| measured | value | interval |", "|---|---|---|"]
        lines += [f"| {one.title} | {one.value} | {one.detail} |" for one in measured]
    if metrics:
        lines += ["", "| last evaluation on held-out data | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in sorted(metrics.items())]
    return "\n".join(lines) + "\n"


def _measured(folder: Path) -> tuple[Tile, ...]:
    """The numbers at the top of the run's report, with their 95% intervals; none where it cannot be read."""
    try:
        run = read_run(folder)
    except (ConfigError, StorageError):
        return ()
    return tiles(run, changes(run.samples))


def _versions(environment: Any) -> str | None:
    """The packages that trained the model, as the run folder states them."""
    known = environment if isinstance(environment, dict) else {}
    names = ("python", "torch", "transformers", "peft")
    return ", ".join(f"{name} {known[name]}" for name in names if known.get(name)) or None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, ConfigError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_metrics(path: Path) -> dict[str, float]:
    """The numbers of the last evaluation in a run's log."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        return {}
    for row in reversed(rows):
        found = {
            str(k): float(v)
            for k, v in row.items()
            if str(k).startswith("eval_") and isinstance(v, int | float)
        }
        if found:
            return found
    return {}


def _upload(settings: ExportConfig, source: str) -> ExportResult:
    """The folder as it is, in the chosen type if it is a whole model, with a model card."""
    from tempfile import TemporaryDirectory

    from httpx2 import HTTPError  # no connection, and what the hub refuses
    from huggingface_hub import HfApi

    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if is_adapter(source):
            _copy_adapter(source, folder)
        else:
            model, tokenizer = load_model(source, settings.loading), load_tokenizer(source, settings.loading)
            _save_whole(model, tokenizer, folder, settings.dtype)
        (folder / "README.md").write_text(model_card(source, settings), encoding="utf-8")
        files = tuple(sorted(path.name for path in folder.iterdir()))
        api = HfApi(endpoint=settings.endpoint)
        try:
            api.create_repo(settings.output, private=settings.private, exist_ok=True)
            api.upload_folder(
                repo_id=settings.output, folder_path=folder, commit_message="Model trained with preftune"
            )
        except (HTTPError, ValueError) as error:
            raise ServerError(
                f"The hub did not take {settings.output}",
                got=" ".join(str(error).split())[:200],
                do="Check the network and the name, and log in with `hf auth login`",
            ) from error
        except OSError as error:
            raise StorageError(
                f"Cannot upload to {settings.output}", got=" ".join(str(error).split())[:200]
            ) from error
    return ExportResult(to="hub", output=settings.output, files=files)


def _save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: str) -> None:
    kinds = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    model.to(kinds[dtype]).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(
        ExportConfig,
        arguments,
        prog="preftune export",
        description="A trained model for other programs: preftune export RUN --to gguf --output FOLDER",
        positional="run",
    )
    result = export(settings)
    if settings.json:
        print_json(asdict(result))
        return 0
    lines = [f"{result.to}  {result.output}", f"files  {', '.join(result.files)}"]
    if result.largest_difference is not None:
        same = "the same" if result.same_text else "another"
        lines.append(
            f"check  log-probabilities differ by at most {result.largest_difference:.2g} nats; {same} greedy text"
        )
    if settings.to in _TRIALS:
        lines.append(f"try it  {_TRIALS[settings.to].format(shlex.quote(result.output))}")
    print(clean_terminal("\n".join(lines)))
    return 0
