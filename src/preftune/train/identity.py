"""The identity of a run: digests of everything that determines its result, kept in manifest.json, so that a
resumed run is the same run or is refused.
"""

import hashlib
import json
import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from preftune.errors import ConfigError, PreftuneError, StorageError, shown
from preftune.model.load import resolve_model
from preftune.model.reference import ReferenceOptions
from preftune.objectives import Objective, source_file
from preftune.spec import parse_sum
from preftune.storage import digest_of, sealed, unsealed
from preftune.train.groups import ReadData
from preftune.train.models import Models
from preftune.train.processes import Processes
from preftune.train.runlog import RunFolder
from preftune.types import Group, Record

MANIFEST = "manifest.json"

_IN_INPUTS = ("data", "eval_data", "model", "reference.model", "reference.contrast_positive")
_IN_INPUTS += ("reference.contrast_negative", "reward", "critic")
"""Settings that name an input: its content is compared, not its name."""

_WITHOUT_EFFECT = ("output", "save_every", "keep_checkpoints", "process_minutes", "loading.")
_WITHOUT_EFFECT += ("collect.reward_timeout_s", "server.")
"""Settings that no number of a run depends on. A prefix ends with a dot."""

_ROUNDING_ONLY = ("device", "gradient_checkpointing", "layout.", "shard.", "sampling.sample_batch")
"""Settings that change the order of sums, and so the last bits at most."""

_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "safetensors", "numpy")
_WEIGHTS = (".safetensors", ".bin", ".json", ".gguf", ".model", ".jinja", ".py", ".pt")
"""Files of a model folder that its numbers depend on."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run is made of. `settings` have full names; `environment` changes the last bits at most."""

    inputs: Mapping[str, str]  # data, tokenizer, ... -> digest
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        content = {
            "inputs": dict(self.inputs),
            "settings": dict(self.settings),
            "environment": dict(self.environment),
        }
        return json.loads(json.dumps(content, default=str))


# --- digests ---


def groups_digest(groups: Iterable[Group]) -> str:
    """Tokens and signal of groups in their order. Where they were read from has no part in it."""
    digest = hashlib.blake2b(digest_size=16)
    for group in groups:
        lengths = [len(ids) for ids in group.completions]
        signal = (group.pairs, group.probabilities, group.labels, group.rewards, group.sources)
        digest.update(repr((len(group.prompt), lengths, len(group.scored), *signal)).encode())
        for ids in (group.prompt, *group.completions, *group.scored):
            digest.update(ids.tobytes())
    return digest.hexdigest()


def records_digest(records: Iterable[Record]) -> str:
    """The columns of prompts, which a reward may read."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(json.dumps(dict(record.columns), sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def tokenizer_digests(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Digest of the tokenizer and its chat template."""
    engine = (
        tokenizer.backend_tokenizer.to_str()
        if isinstance(tokenizer, PreTrainedTokenizerFast)
        else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    )
    specials = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return {
        "tokenizer": _text_digest(engine + specials),
        "template": _text_digest(repr(tokenizer.chat_template)),
    }


def model_digest(name: str) -> str:
    """The files of a model on this disk; of one that is not here yet, its name."""
    try:
        path = Path(resolve_model(name)).expanduser()
    except PreftuneError:
        return _text_digest(name)
    return _path_digest(path) if path.exists() else _text_digest(str(name))


def reward_digest(text: str) -> str:
    """The reward's text and digests of the files it names: user code, model folders."""
    parts = [text]
    for term in parse_sum(text, "reward"):
        names = [term.name, term.name.partition(":")[0], term.name.partition(":")[2], *term.settings.values()]
        for path in (Path(str(name)).expanduser() for name in names if name):
            parts += [_path_digest(path)] if path.exists() else []
    return _text_digest("\n".join(parts))


def _path_digest(path: Path) -> str:
    if path.is_file():
        return digest_of(path)
    files = sorted(file for file in path.rglob("*") if file.suffix in _WEIGHTS and file.is_file())
    return _text_digest("\n".join(f"{file.relative_to(path)} {digest_of(file)}" for file in files))


def _text_digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def compared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of config.yaml that are compared, by their full names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in value.items()}
        else:
            flat[name] = value
    skipped = (*_IN_INPUTS, *_WITHOUT_EFFECT)
    kept = {name: value for name, value in flat.items() if not _listed(name, skipped)}
    return json.loads(json.dumps(kept, default=str))


def _listed(name: str, names: Sequence[str]) -> bool:
    return any(name.startswith(one) if one.endswith(".") else name == one for one in names)


def surroundings(device: str, processes: int) -> dict[str, Any]:
    """Versions, threads and processor."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("preftune", *_LIBRARIES)},
        "code": _code_digest(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "processes": processes,
    }


def _code_digest() -> str:
    root = Path(__file__).parents[1]
    content = b"".join(file.read_bytes() for file in sorted(root.rglob("*.py")))
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@dataclass(frozen=True, kw_only=True)
class IdentityPlan:
    """The settings that the identity of a run is made of."""

    settings: Mapping[str, Any]  # `compared_settings`
    splits: bool  # whether evaluation data are held out of the training data
    reference: ReferenceOptions
    reward: str | None
    critic: str | None
    objective: Objective


def identify(
    plan: IdentityPlan, tokenizer: PreTrainedTokenizerBase, data: ReadData, models: Models, processes: int
) -> Identity:
    """The identity of a run whose data and initial model are loaded."""
    inputs = {
        "data": groups_digest(data.train),
        "eval_data": groups_digest(data.held),
        "model": models.start_digest,
    }
    if plan.splits:
        inputs["data"] = _text_digest(f"{inputs['data']} {inputs.pop('eval_data')}")
    inputs |= tokenizer_digests(tokenizer)
    for name in ("model", "contrast_positive", "contrast_negative"):
        if (other := getattr(plan.reference, name)) is not None:
            inputs["reference" if name == "model" else name] = model_digest(other)
    if plan.reward is not None:
        inputs["data"] = _text_digest(f"{inputs['data']} {records_digest(data.prepared.records)}")
        inputs["reward"] = reward_digest(plan.reward)
    if plan.critic is not None:
        inputs["critic"] = model_digest(plan.critic)
    environment = surroundings(str(models.policy.device), processes)
    if own := source_file(plan.objective):
        inputs["objective"] = _path_digest(own)
    return Identity(inputs=inputs, settings=plan.settings, environment=environment)


def check_same_inputs(identity: Identity, processes: Processes) -> None:
    """All processes must have the same data, model and reward: on several hosts each reads its own files."""
    first, *others = processes.gather(dict(identity.inputs))
    for rank, inputs in enumerate(others, 1):
        if names := list(changed_entries(first, inputs)):
            raise ConfigError(
                f"Process {rank} has other {', '.join(names)} than process 0",
                got=f"other content of {names[0]}",
                expected="the same files on every host",
                do="Copy the files of the first host to the others",
            )


# --- the manifest ---


def write_manifest(run: RunFolder, identity: Identity, resumed: Sequence[Mapping[str, Any]] = ()) -> None:
    """`resumed` has an entry for each time the run was resumed with something changed."""
    run.write_text(MANIFEST, sealed({**identity.plain(), "resumed": list(resumed)}))


def read_manifest(run: RunFolder) -> dict[str, Any] | None:
    """None for a run of a version that wrote none."""
    path = run.path / MANIFEST
    if not path.exists():
        return None
    try:
        content = unsealed(path.read_bytes())
        _check_manifest(content)
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"{path} is damaged",
            got=str(error),
            do="Put it back, or delete it to resume without comparing the inputs of the run",
        ) from error
    return content


def _check_manifest(content: Any) -> None:
    kinds = {"inputs": dict, "settings": dict, "environment": dict, "resumed": list}
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError("no inputs and settings")
    if not all(isinstance(digest, str) for digest in content["inputs"].values()):
        raise ValueError("an input without a digest")
    if not all(isinstance(entry, dict) for entry in content["resumed"]):
        raise ValueError("a resumption without its changes")


def changed_entries(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (before, now) of what differs; None where there is none."""
    names = [*before, *(name for name in now if name not in before)]
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that only one of two versions has are left out: at their default they change nothing."""
    return changed_entries(
        *({name: one[name] for name in before.keys() & now.keys()} for one in (before, now))
    )


def check_settings(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str]
) -> None:
    """Before anything is loaded: settings that change results are as they were, or are allowed to differ."""
    changed = _changed_settings(before["settings"], now)
    _refuse(folder, {}, {name: both for name, both in changed.items() if not _rounds(name)}, allowed)


def check_identity(
    folder: Path, before: Mapping[str, Any], identity: Identity, allowed: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """(what to record of a run that is resumed with something changed, sentences for the user). Refuses a
    change of results that is not allowed, and an allowance that nothing needs.
    """
    now = identity.plain()
    settings = _changed_settings(before["settings"], now["settings"])
    rounding = {name: both for name, both in settings.items() if _rounds(name)}
    settings = {name: both for name, both in settings.items() if not _rounds(name)}
    inputs = changed_entries(before["inputs"], now["inputs"])
    _refuse(folder, inputs, settings, allowed)
    names = {*inputs, *settings, "log", *(["settings"] if settings else [])}
    if idle := sorted(set(allowed) - names):
        raise ConfigError(
            f"--allow-changed {idle[0]} has no effect",
            got=f"changed: {', '.join([*inputs, *settings]) or 'nothing'}",
            do="Leave it out",
        )
    rounding |= changed_entries(before["environment"], now["environment"])
    notes = [f"{name} has changed, as --allow-changed permits" for name in [*inputs, *settings]]
    if rounding:
        parts = [
            name if name == "code" else f"{name} {_value(new)} instead of {_value(old)}"
            for name, (old, new) in rounding.items()
        ]
        notes.append("the last bits may differ from the earlier part of the run: " + ", ".join(parts))
    if not notes:
        return {}, []
    was = {name: old for name, (old, _) in (inputs | settings | rounding).items()}
    return {"allowed": sorted({*inputs, *settings}), "was": was}, notes


def _rounds(name: str) -> bool:
    return _listed(name, _ROUNDING_ONLY)


def _refuse(
    folder: Path,
    inputs: Mapping[str, tuple[Any, Any]],
    settings: Mapping[str, tuple[Any, Any]],
    allowed: Collection[str],
) -> None:
    refused = [name for name in inputs if name not in allowed]
    refused += [name for name in settings if name not in allowed and "settings" not in allowed]
    if not refused:
        return
    first = refused[0]
    old, new = {**inputs, **settings}[first]
    raise ConfigError(
        f"The run {folder} was started with other {', '.join(refused)}",
        got=f"other content of {first}" if first in inputs else f"{first} {_value(new)}",
        expected="the content that it was started with" if first in inputs else f"{first} {_value(old)}",
        do=f"Put it back, or insist, which the run records: preftune train --resume {folder} "
        f"--allow-changed {','.join([*refused, *sorted(allowed)])}",
    )


def _value(value: Any) -> str:
    return "none" if value is None else shown(value) if isinstance(value, str) else str(value)[:80]
