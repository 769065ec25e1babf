"""A configuration of another tool as settings of `preftune train`, with an account of every key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from preftune.cli.early import check_value
from preftune.cli.foreign_keys import (
    DEFAULTS,
    DRAWN_METHODS,
    LOSSES,
    MIXED_KEYS,
    NOT_NEEDED,
    REFUSED,
    SETTINGS,
    SIGNS,
    Tool,
)
from preftune.cli.outline import objective_outlines, outline_of
from preftune.errors import ConfigError, shown

KeyOutcome = Literal["translated", "not needed", "refused"]
BATCH_KEYS = ("per_device_train_batch_size", "micro_batch_size", "gradient_accumulation_steps")
METHOD_KEYS = ("loss_type", "loss_weights", "rl", "stage", "pref_loss", "rlhf_type", "trainer", "trl")
DATA_KEYS = (
    "dataset_name",
    "dataset",
    "datasets",
    "data_files",
    "val_dataset",
    "eval_dataset",
    "test_datasets",
)
ADAPTER_KEYS = ("use_peft", "adapter", "finetuning_type", "train_type", "tuner_type", "lora_target_linear")
REWARD_KEYS = (
    "reward_funcs",
    "reward_model",
    "reward_model_path",
    "reward_model_name_or_path",
    "reward_weights",
)
QUANTIZED_KEYS = ("load_in_4bit", "load_in_8bit", "quantization_bit", "quant_bits")
TYPE_KEYS = ("bf16", "dtype", "torch_dtype")


@dataclass(frozen=True, kw_only=True)
class KeyAccount:
    """What became of one key of the other tool's configuration."""

    key: str
    outcome: KeyOutcome
    says: str


@dataclass(frozen=True, kw_only=True)
class Translation:
    """The settings, and what became of every key."""

    tool: Tool
    command: str  # "train" or "train-reward-model"
    settings: Mapping[str, Any]  # full name -> value
    accounts: tuple[KeyAccount, ...]


def detect_tool(config: Mapping[str, Any]) -> Tool:
    """The tool whose keys the configuration has most of."""
    counts: dict[Tool, int] = {tool: len(SIGNS[tool] & set(config)) for tool in get_args(Tool)}
    best = max(counts, key=lambda tool: counts[tool])
    if not counts[best]:
        raise ConfigError(
            "The tool of this configuration is not recognized",
            got=", ".join(list(map(str, config))[:6]),
            expected="keys of TRL, LLaMA-Factory, axolotl or ms-swift",
            do=f"Name it: --tool {'|'.join(get_args(Tool))}",
        )
    return best


class _Translator:
    """Collects settings and accounts; each group of keys that belong together has a method."""

    def __init__(self, config: Mapping[str, Any], tool: Tool):
        self.config = config
        self.tool: Tool = tool
        self.settings: dict[str, Any] = {}
        self.accounts: dict[str, KeyAccount] = {}

    def account(self, key: str, outcome: KeyOutcome, says: str) -> None:
        self.accounts[key] = KeyAccount(key=key, outcome=outcome, says=says)

    def put(self, key: str, setting: str, value: Any) -> None:
        fault = _fault(setting, value, str(self.settings.get("objective", "")))
        if fault is not None:
            self.account(key, "refused", fault)
            return
        self.settings[setting] = value
        self.account(key, "translated", f"{setting}: {value}")

    def given(self, *keys: str) -> dict[str, Any]:
        return {key: self.config[key] for key in keys if not _is_off(self.config.get(key))}

    def method(self) -> tuple[str, str]:
        """(the command, the objective)"""
        known = self.given(*METHOD_KEYS)
        name = next((known[key] for key in ("pref_loss", "loss_type") if key in known), None)
        stage = next((known[key] for key in ("rl", "stage", "rlhf_type", "trainer") if key in known), None)
        if isinstance(known.get("trl"), Mapping):
            self.account("trl", "refused", "write its keys at the top: " + ", ".join(known.pop("trl")))
        if isinstance(stage, str) and stage.lower() in ("rm", "reward"):
            for key in known:
                self.account(key, "translated", "command: preftune train-reward-model")
            return "train-reward-model", ""
        if isinstance(stage, str) and stage.lower() not in ("dpo", "rlhf"):
            name = stage
        names = name if isinstance(name, list) else [name or stage or "sigmoid"]
        unknown = [one for one in names if str(one).lower() not in LOSSES]
        if unknown:
            for key in known:
                self.account(
                    key, "refused", f"{shown(unknown[0])} has no counterpart; see: preftune objectives"
                )
            return "train", ""
        objectives = [LOSSES[str(one).lower()] for one in names]
        weights = self.config.get("loss_weights") or [1.0] * len(objectives)
        text = objectives[0]
        if len(objectives) > 1:
            text = "+".join(f"{weight:g}*{one}" for weight, one in zip(weights, objectives, strict=False))
        for key in known:
            self.account(key, "translated", f"objective: {text}")
        if not known:
            says = f"objective: {text}, since no key names the method; --objective NAME chooses another"
            self.account("(objective)", "translated", says)
        self.settings |= (
            {"objective": text} if len(objectives) == 1 else {"objective": "mixture", "objective.terms": text}
        )
        return "train", text

    def batch(self) -> None:
        known, size = self.given(*BATCH_KEYS), 1
        for key, value in list(known.items()):
            if isinstance(value, bool) or not re.fullmatch(r"0*[1-9]\d*", str(value)):
                self.account(key, "refused", f"it is a whole number of at least 1; got {shown(str(value))}")
                del known[key]
            else:
                size *= int(value)
        if "per_device_train_batch_size" in known or "micro_batch_size" in known:
            self.settings["batch_size"] = size
        elif known:  # only the accumulation is given
            self.settings["batch_size"] = size * int(str(DEFAULTS[self.tool]["batch_size"]))
        for key in known:
            self.account(
                key,
                "translated",
                f"batch_size: {self.settings['batch_size']} on one device; multiply by the devices",
            )

    def data(self) -> None:
        for key, value in self.given(*DATA_KEYS).items():
            setting = "eval_data" if key in ("val_dataset", "eval_dataset", "test_datasets") else "data"
            many = value if isinstance(value, list) else [value]
            if len(many) > 1:
                self.account(
                    key, "refused", "several data sets: put them into one folder and name the folder"
                )
                continue
            one = many[0]
            path = one.get("path") if isinstance(one, Mapping) else one
            files = one.get("data_files") if isinstance(one, Mapping) else None
            chosen = files[0] if isinstance(files, list) else files or path
            if not isinstance(chosen, str):
                self.account(key, "refused", "no path in it: name the file with data")
                continue
            if isinstance(one, Mapping) and one.get("split"):
                self.settings["rows.split"] = one["split"]
            self.put(key, setting, chosen)
            if isinstance(one, Mapping) and set(one) - {"path", "data_files", "split", "ds_type"}:
                left = ", ".join(sorted(set(one) - {"path", "data_files", "split", "ds_type"}))
                says = f"{setting}: {chosen}; the layout is detected in place of {left}"
                self.account(key, "translated", says)

    def mixed_data(self) -> None:
        """One data set of a mixture, with its split; more than one are refused."""
        for key, value in self.given(*MIXED_KEYS).items():
            if key == "dataset_splits":
                splits = value if isinstance(value, list) else [value]
                self.settings["rows.split"] = splits[0]
                others = "".join(f"; name {one} with eval_data" for one in splits[1:])
                self.account(key, "translated", f"rows.split: {splits[0]}{others}")
                continue
            sets = value.get("datasets", value) if isinstance(value, Mapping) else value
            names = [one.get("id") if isinstance(one, Mapping) else one for one in sets]
            if len(names) != 1 or not isinstance(names[0], str):
                says = "several data sets: save them into one folder and name the folder with data"
                self.account(key, "refused", says)
                continue
            one = sets[0] if isinstance(sets, list) else {}
            config = one.get("config") if isinstance(one, Mapping) else None
            if isinstance(one, Mapping) and one.get("split"):
                self.settings["rows.split"] = one["split"]
            self.put(key, "data", names[0] + (f":{config}" if config not in (None, "default") else ""))

    def adapter(self) -> None:
        known = self.given(*ADAPTER_KEYS)
        kind = next(
            (known[k] for k in ("adapter", "finetuning_type", "train_type", "tuner_type") if k in known), None
        )
        is_lora = kind in ("lora", "qlora") or bool(known.get("use_peft"))
        for key, value in known.items():
            if value == "qlora":
                self.put(key, "lora.quantization", "nf4")
            elif key == "lora_target_linear":
                self.put(key, "lora.target_modules", "all-linear")
            elif value in ("lora", "full", True):
                self.account(key, "translated", f"lora.rank: {'set' if is_lora else 'not set'}")
            else:
                self.account(key, "refused", f"{shown(value)} is not supported; LoRA and full training are")
        names = [key for key in self.config if SETTINGS.get(key, "").startswith("lora.")]
        if not is_lora and kind is not None:
            for key in names:
                self.account(key, "not needed", "all weights train")
        elif is_lora and not self.given("lora_r", "lora_rank"):
            self.settings["lora.rank"] = 8 if self.tool in ("llama-factory", "ms-swift") else 16
        target = next((self.config[k] for k in ("lora_target", "target_modules") if k in self.config), None)
        if target in ("all", "all-linear"):
            key = "lora_target" if "lora_target" in self.config else "target_modules"
            if key not in self.accounts:
                self.put(key, "lora.target_modules", "all-linear")

        for key, value in self.given(*QUANTIZED_KEYS).items():
            bits = 4 if key == "load_in_4bit" else 8 if key == "load_in_8bit" else value
            if bits in (4, 8) and is_lora:
                self.put(key, "lora.quantization", "nf4" if bits == 4 else "bnb-int8")
            else:
                self.account(key, "refused", "quantized weights are frozen: they need LoRA, with 4 or 8 bits")

    def precision(self) -> None:
        for key, value in self.given(*TYPE_KEYS).items():
            if value is True or str(value) in ("auto", "bfloat16", "bf16"):
                self.put(key, "precision", "bf16")
            elif str(value) in ("float32", "fp32"):
                self.put(key, "precision", "fp32")
            else:
                self.account(key, "refused", "fp16 is not supported; use precision bf16 or fp32")

    def on_policy(self, objective: str) -> None:
        if objective in DRAWN_METHODS:
            self.settings["source"] = "on-policy"
        for key, value in self.given(*REWARD_KEYS).items():
            first = value[0] if isinstance(value, list) else value
            if objective not in DRAWN_METHODS:
                self.account(key, "not needed", "the data hold the preferences")
            elif key == "reward_weights" or (isinstance(value, list) and len(value) > 1):
                self.account(
                    key, "refused", "write a weighted sum: reward: '0.7*file.py:first + 0.3*length.min'"
                )
            elif key != "reward_funcs":
                self.put(key, "reward", f"model:{first}")
            elif "." in str(first) and not str(first).endswith(".py"):
                module, _, name = str(first).rpartition(".")
                self.put(key, "reward", f"{module}:{name}")
            else:
                self.account(key, "refused", f"name the function as file.py:NAME in place of {shown(first)}")

    def others(self, objective: str) -> None:
        hyper = {one.leaf for one in objective_outlines().get(objective, ())}
        for key, value in self.config.items():
            if key in self.accounts:
                continue
            name = SETTINGS.get(key, "")
            if name == "objective.beta" and objective == "orpo":
                name = "objective.odds_weight"  # the weight that ORPO's paper calls lambda
            if key in NOT_NEEDED:
                self.account(key, "not needed", NOT_NEEDED[key])
            elif _is_off(value):
                self.account(key, "not needed", "off or empty")
            elif key in REFUSED:
                self.account(key, "refused", REFUSED[key])
            elif name.startswith("objective.") and name.rpartition(".")[2] not in hyper:
                self.account(
                    key, "refused", f"objective {objective or 'none'} has no {name.rpartition('.')[2]}"
                )
            elif name.startswith("sampling.") and objective not in DRAWN_METHODS:
                self.account(key, "not needed", "completions come from the data")
            elif key == "report_to":
                many = value if isinstance(value, list) else [value]
                self.put(key, name, [str(one) for one in many])
            elif name == "max_steps" and value == -1:
                self.account(key, "not needed", "off: the epochs decide")
            elif name == "optim.schedule" and str(value) not in ("linear", "cosine", "constant"):
                self.account(key, "refused", "schedules are linear, cosine and constant")
            elif name in ("eval_every", "save_every") and isinstance(value, float) and value < 1:
                self.account(key, "refused", f"a share of the run: set {name} to a number of steps")
            elif key == "warmup_steps" and isinstance(value, float) and value < 1:
                self.put(key, "optim.warmup_ratio", value)
            elif name:
                self.put(key, name, value)
            else:
                self.account(key, "refused", "this key is not known to preftune")

    def defaults(self) -> None:
        """What the tool would have done without a key, where preftune does something else."""
        for name, value in DEFAULTS[self.tool].items():
            is_moot = (name == "epochs" and "max_steps" in self.settings) or (
                name == "optim.warmup_ratio" and "optim.warmup_steps" in self.settings
            )
            if name not in self.settings and not is_moot:
                self.settings[name] = value
                self.account(f"({name})", "translated", f"{name}: {value}, the default of {self.tool}")
        if not {"eval_fraction", "eval_data"} & set(self.settings):
            self.settings["eval_fraction"] = 0.0
            self.account("(eval_fraction)", "translated", f"eval_fraction: 0.0, the default of {self.tool}")


def translate(config: Mapping[str, Any], tool: Tool) -> Translation:
    """Settings of preftune, and what became of every key."""
    work = _Translator({str(key): value for key, value in config.items()}, tool)
    command, objective = work.method()
    work.batch()
    work.data()
    work.mixed_data()
    work.adapter()
    work.precision()
    work.on_policy(objective)
    work.others(objective)
    work.defaults()
    settings = work.settings
    if settings.get("eval_fraction") == 0.0:
        settings.pop("eval_every", None)
    if not settings.get("save_every"):
        settings.pop("keep_checkpoints", None)
    return Translation(tool=tool, command=command, settings=settings, accounts=tuple(work.accounts.values()))


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Full names as the sections of a YAML file."""
    tree: dict[str, Any] = {}
    objective = settings.get("objective")
    for name, value in settings.items():
        section, _, leaf = name.rpartition(".")
        if name == "objective":
            tree.setdefault("objective", {})["name"] = objective
        elif section:
            tree.setdefault(section, {})[leaf] = value
        else:
            tree[name] = value
    return tree


def _fault(setting: str, value: Any, objective: str) -> str | None:
    """Why `preftune train` would refuse the value; None if it takes it."""
    outline = outline_of("train")
    assert outline is not None, "train has one set of settings"
    known = {one.name: one for one in (*outline.settings, *objective_outlines().get(objective, ()))}
    try:
        if setting in known and isinstance(value, str | int | float):
            check_value(known[setting], str(value))
    except ConfigError as error:
        return str(error)
    return None


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("", "none", "no", [], {})
