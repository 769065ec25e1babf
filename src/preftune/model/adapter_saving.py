"""An adapter that trained, saved so that plain peft and transformers load the function that trained."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from preftune.model.adapter_files import CONFIG, WEIGHTS, Lora, composed
from preftune.model.policy import Policy
from preftune.model.quantize import note_quantization


def save_adapter(policy: Policy, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """The adapter in peft's layout, over a base that loaders find; `weights` are those of a model in shards.

    If the policy began as an adapter over a base, the two are composed into one adapter over that base. If
    they cannot be (the first one is not plain LoRA), the whole model is saved, with everything merged.
    """
    below = list(getattr(policy.model, "merged_adapters", []))
    start: dict[str, Tensor] | None = getattr(policy.peft_model, "start_weights", None)
    policy.peft_model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
    if below or start is not None:
        parts = _parts(below, folder, start)
        if parts is None:
            _save_merged(policy, folder)
            return
        whole = composed(parts)
        save_file(dict(whole.weights), folder / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(dict(whole.config), indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    _keep_local_paths_out(folder)
    if policy.quantization != "none":
        note_quantization(folder, policy.quantization)


def _parts(below: list[str], folder: Path, start: Mapping[str, Tensor] | None) -> list[Lora] | None:
    """The adapters whose sum was trained, or None if they are not all plain LoRA."""
    if not all((Path(source) / WEIGHTS).is_file() for source in below):
        return None
    trained = Lora.read(str(folder))
    parts = [*(Lora.read(source) for source in below), trained]
    if start is not None:  # the frozen weights were changed by as much
        taken = {
            name.replace(".default", ""): -value if ".lora_B" in name or "embedding_B" in name else value
            for name, value in start.items()
        }
        parts.insert(0, Lora(config=trained.config, weights={name: taken[name].cpu() for name in taken}))
    return parts if all(part.is_plain for part in parts) else None


def _save_merged(policy: Policy, folder: Path) -> None:
    for path in (CONFIG, WEIGHTS, "README.md"):
        (folder / path).unlink(missing_ok=True)
    merged = copy.deepcopy(policy.peft_model).merge_and_unload()
    merged.save_pretrained(folder)


def _keep_local_paths_out(folder: Path) -> None:
    """A model card may not name a folder of this machine as its base: the hub refuses it."""
    card = folder / "README.md"
    base = str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])
    if not card.is_file() or not (Path(base).exists() or base.startswith(("/", "."))):
        return
    lines = card.read_text(encoding="utf-8").splitlines()
    kept = [
        line for line in lines if not (line.startswith(("base_model:", "- base_model:")) and base in line)
    ]
    card.write_text("\n".join(kept) + "\n", encoding="utf-8")
