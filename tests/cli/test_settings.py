"""Settings: flags and YAML are the same thing, every key is known, every value checked, and every setting is
felt.
"""

import contextlib
import io
import json
import textwrap
from dataclasses import dataclass, field, fields, is_dataclass

import pytest
import yaml

from preftune.cli import main as cli_main
from preftune.cli.names import ALIASES, ELSEWHERE
from preftune.cli.outline import objective_outlines, outline_of
from preftune.cli.settings import parse_settings
from preftune.commands.demo import DemoConfig
from preftune.commands.eval_options import EvalConfig
from preftune.commands.inspect import InspectConfig
from preftune.commands.report import ReportConfig
from preftune.commands.sample import SampleConfig
from preftune.data.options import DataOptions
from preftune.errors import ConfigError, PreftuneError
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.mixture import Mixture
from preftune.objectives.sft import SFT
from preftune.sampling.client import ServerOptions
from preftune.train.loop import train
from preftune.train.options import TrainConfig
from preftune.train.runlog import to_plain
from tests.folders import PAIRS, metric_rows, timeless, weights_of, write_rows

BASE = ["--data", "d", "--output", "o"]


def parsed(*words: str, kind=TrainConfig, positional=None):
    return parse_settings(kind, words, prog="preftune train", description="", positional=positional)


def refused(*words: str, kind=TrainConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(*words, kind=kind)
    told = str(caught.value)
    assert "\n" not in told and told.endswith((".", "?")) and ".." not in told.replace("...", "")
    assert not any(
        word in told for word in ("jsonargparse", "<class", "functools", "Literal", "Union", "Traceback")
    )
    return told


def test_names_of_every_kind_mean_the_same():
    wanted = parsed(
        *BASE,
        "--optim.learning_rate",
        "0.5",
        "--objective.name",
        "dpo",
        "--objective.beta",
        "0.3",
        "--rows.max_rows",
        "7",
    )
    assert (wanted.optim.learning_rate, wanted.objective, wanted.rows.max_rows) == (0.5, DPO(beta=0.3), 7)
    assert parsed(*BASE, "--learning_rate=0.5", "--objective=dpo", "--beta=0.3", "--max_rows=7") == wanted
    assert (
        parsed(
            *BASE,
            "--learning-rate",
            "0.5",
            "--objective",
            "dpo",
            "--objective.beta",
            ".3",
            "--rows.max-rows",
            "7",
        )
        == wanted
    )
    assert parsed(
        "--dataset_name", "d", "--output_dir", "o", "--lora_r", "4", "--num_train_epochs", "2"
    ) == parsed(*BASE, "--lora.rank", "4", "--epochs", "2")
    assert parsed(*BASE, "--columns", '{"chosen": "winner"}').rows.columns == {"chosen": "winner"}
    assert parsed(*BASE, "--target_modules", "[q_proj]", "--lora.rank", "2").lora.target_modules == ["q_proj"]
    assert parsed("DATA", "--model", "m", kind=InspectConfig, positional="data").data == "DATA"
    assert parsed("--json", "--data", "d", "--model", "m", kind=InspectConfig).json is True
    assert parsed("--data", "d", "--json", "false", kind=InspectConfig).json is False


def test_a_mixture_on_the_command_line(tmp_path):
    found = parsed(*BASE, "--objective", "mixture", "--objective.terms", "dpo + 0.1*sft")
    assert found.objective == Mixture(terms="dpo + 0.1*sft")
    (tmp_path / "c.yaml").write_text("objective: {name: mixture, terms: dpo + 0.1*sft}\n")
    assert parsed(*BASE, "--config", str(tmp_path / "c.yaml")) == found


def test_every_alias_names_a_setting():
    known = {"objective.name"} | {one.name for many in objective_outlines().values() for one in many}
    for verb in cli_main.VERBS:
        outline = outline_of(verb.replace("-", "_"))
        known |= {one.name for one in outline.settings} if outline is not None else set()
    assert set(ALIASES.values()) <= known
    assert not set(ALIASES) & set(ELSEWHERE)


@pytest.mark.parametrize("name", [name for name in ELSEWHERE if name != "format"])  # a setting of train's
def test_names_without_an_equal_say_where_to_look(name, tmp_path):
    assert ELSEWHERE[name] in refused(*BASE, f"--{name}", "1")
    (tmp_path / "c.yaml").write_text(f"{name}: 1\n")
    assert ELSEWHERE[name] in refused(*BASE, "--config", str(tmp_path / "c.yaml"))


YAMLS = {
    "full names": """
        optim: {learning_rate: 0.5, schedule: cosine}
        objective: {name: dpo, beta: 0.3}
        rows: {columns: {chosen: win}}
        """,
    "dotted": """
        optim.learning_rate: 0.5
        optim.schedule: cosine
        objective.name: dpo
        objective.beta: 0.3
        rows.columns: {chosen: win}
        """,
    "short": """
        learning_rate: 0.5
        lr_scheduler_type: cosine
        objective: dpo
        beta: 0.3
        columns: {chosen: win}
        """,
    "hyphens and numbers as text": """
        learning-rate: 5e-1
        schedule: cosine
        objective: dpo
        objective.beta: 3e-1
        rows: {columns: {chosen: win}}
        """,
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_yaml_is_flags(text, tmp_path):
    (tmp_path / "c.yaml").write_text(textwrap.dedent(text) + "data: d\n")
    flags = parsed(
        *BASE,
        "--learning_rate",
        "0.5",
        "--schedule",
        "cosine",
        "--objective",
        "dpo",
        "--beta",
        "0.3",
        "--columns",
        '{"chosen": "win"}',
    )
    assert parsed("--config", str(tmp_path / "c.yaml"), "--output", "o") == flags
    assert parsed("--output", "o", "--config", str(tmp_path / "c.yaml")) == flags


def test_flags_win_over_yaml_and_later_files_over_earlier_ones(tmp_path):
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text("learning_rate: 0.5\nseed: 1\nobjective: {name: dpo, beta: 0.3}\n")
    two.write_text("seed: 2\n")
    found = parsed(*BASE, "--config", str(one), "--config", str(two), "--beta", "0.7")
    assert (found.optim.learning_rate, found.seed, found.objective) == (0.5, 2, DPO(beta=0.7))
    assert parsed(*BASE, "--config", str(one), "--seed", "3").seed == 3


BAD_YAMLS = {
    "learning_rte: 1": "Unknown setting learning_rte. Did you mean learning_rate?",
    "optim: {learning_rte: 1}": "Unknown setting optim.learning_rte. Did you mean optim.learning_rate?",
    "optim: 3": "Invalid value for optim.name; got 3; expected text",  # text is the optimizer's name
    "rows: 3": "rows is a section of settings; got 3",
    "lora: null": "lora is a section of settings; got None",
    "optim: {learning_rate: abc}": "Invalid value for optim.learning_rate; got abc; expected a number",
    "optim: {adam: {beta1: 3}}": "Unknown setting optim.adam",
    "objective: dppo": "There is no such objective; got dppo; expected agro, ",
    "objective: [a]": "There is no such objective",
    "objective: null": "There is no such objective",
    "objective: {name: dpo, betaa: 1}": "Unknown setting objective.betaa",
    "objective: {beta: 0.2}": "Unknown setting objective.beta",  # BNF has none
    "learning_rate: 1\noptim: {learning_rate: 2}": "optim.learning_rate is given twice; got 1 and 2",
    "[1, 2]": "holds no settings; got list",
    "": "holds no settings",
    "1: 2": "holds no settings",
    "a: [": "is not valid YAML",
    "!!python/object/apply:os.system ['false']": "is not valid YAML",
    "batch_size: true": "Invalid value for batch_size; got True; expected a whole number",
    "eval_data: 3": "Invalid value for eval_data; got 3; expected text or null",
    "data: 3": "Invalid value for data; got 3; expected text",
    "data: [{prompt: p, chosen: c, rejected: r}]": "Invalid value for data; got ",
    "rows: {truncation: maybe}": "got maybe; expected error, drop, cut_prompt, cut_completion",
    "config: other.yaml": "Unknown setting config",
}


@pytest.mark.parametrize("text", BAD_YAMLS)
def test_bad_yaml_is_told(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text + "\n")
    assert BAD_YAMLS[text] in refused(*BASE, "--config", str(tmp_path / "c.yaml"))


BAD_FLAGS = {
    "--learning_rte 1": "Unknown option --learning_rte. Did you mean --learning_rate?",
    "--learn 1": "Unknown option --learn",  # no abbreviations
    "--learning_rate abc": "Invalid value for optim.learning_rate; got abc; expected a number",
    "--learning_rate nan": "learning_rate",
    "--learning_rate -1": "learning_rate is out of range; got -1.0; expected a number in [0, inf)",
    "--learning_rate": "optim.learning_rate has no value",
    "--batch_size 0": "batch_size is out of range; got 0; expected at least 1",
    "--batch_size 1.5": "Invalid value for batch_size; got 1.5; expected a whole number",
    "--max_steps many": "got many; expected a whole number or null",
    "--schedule linaer": "got linaer; expected linear, cosine, constant",
    "--precision fp16": "got fp16; expected fp32, bf16",
    "--objective dpoo": "Did you mean dpo?",
    "--objective": "has no value",
    "--objective dpo --beta 0": "dpo: beta is out of range; got 0.0",
    "--objective mixture --objective.terms dpo+nca": "mixture: terms learn from signals that do not go together",
    "--objective mpo --objective.sft_weight 0": "mpo: sft_weight is out of range; got 0.0",
    "--objective bnf --beta 1": "Unknown option --objective.beta",
    "--epochs inf": "epochs",
    "--eval_fraction 1": "eval_fraction is out of range",
    "--seed -1": "seed is out of range",
    "--seed 1180591620717411303424": "seed is out of range",
    "--micro_batch_tokens 0": "micro_batch_tokens is out of range; got 0",
    "--lora_alpha 4": "lora.alpha and lora.target_modules have no effect; got lora.rank 0",
    "--reference.mode adapter": "no adapter to switch off",
    "--objective sft --reference.mode live": "reference has no effect",
    "--lora_r 2 --reference.mode adapter --reference.model m": "reference.model has no effect with reference.mode adapter",
    "--reference.update_every -1": "reference.update_every is out of range",
    "--reference.update_every 1 --reference.update_rate 0": "reference.update_rate is out of range",
    "--reference.update_rate 0.5": "reference.update_rate has no effect on a frozen reference",
    "--reference.update_every 1 --reference.mode cache": "cannot be cached or share the policy's weights",
    "--reference.update_every 1 --reference.model m": "A reference that moves starts as the policy",
    "--reference.contrast_positive m": "A contrast is between two models",
    "--reference.contrast_positive m --reference.contrast_negative n": "reference.contrast_positive has no effect on bnf",
    "--objective sft --reference.update_every 1": "reference has no effect",
    "--eval_data e --eval_fraction 0.5": "eval_fraction has no effect with eval_data",
    "--eval_fraction 0 --eval_every 2": "eval_every has no effect without held-out data",
    "--keep_checkpoints 2": "keep_checkpoints has no effect without save_every",
    "--columns {chosn:x}": "rows.columns",
    "stray": "Unexpected argument 'stray'",
    "--config /nowhere.yaml": "Cannot read the settings in /nowhere.yaml",
    "--warmup_ratio 1.5": "warmup_ratio is out of range",
    "--adam_epsilon 0": "adam_epsilon is out of range",
    "--max_length 1": "max_length is too small",
}


@pytest.mark.parametrize("words", BAD_FLAGS)
def test_bad_flags_are_told(words):
    assert BAD_FLAGS[words] in refused(*BASE, *words.split())


BAD_OTHERS = {
    "both": (SampleConfig, "--prompt p --prompts f", "exclude each other"),
    "output of a prompt": (SampleConfig, "--prompt p --output f", "output has no effect without prompts"),
    "json chat": (SampleConfig, "--json", "json has no effect in a chat"),
    "many answers in a chat": (
        SampleConfig,
        "--num_completions 2",
        "num_completions has no effect in a chat",
    ),
    "length of prompts": (
        SampleConfig,
        "--prompts f --max_length 9",
        "rows.max_length has no effect on prompts",
    ),
    "rows of a prompt": (
        SampleConfig,
        "--prompt p --max_rows 9",
        "rows.max_rows has no effect on a prompt that is typed",
    ),
    "greedy many": (
        SampleConfig,
        "--prompt p --temperature 0 --num_completions 2",
        "have no effect at temperature 0",
    ),
    "seed": (SampleConfig, "--prompt p --seed -1", "seed is out of range"),
    "nothing": (EvalConfig, "--model m", "eval wants one of preference data, prompts and tasks; got none"),
    "everything": (EvalConfig, "--model m --data d --prompts p", "got data and prompts"),
    "no reward": (EvalConfig, "--model m --prompts p", "scored by a reward or compared by a judge"),
    "reward of pairs": (
        EvalConfig,
        "--model m --data d --reward brief",
        "reward has no effect on preference data",
    ),
    "draw of pairs": (
        EvalConfig,
        "--model m --data d --max_new_tokens 3",
        "sampling has no effect on preference data",
    ),
    "seed of pairs": (EvalConfig, "--model m --data d --seed 3", "seed has no effect on preference data"),
    "beta of prompts": (EvalConfig, "--model m --prompts p --reward brief --beta 1", "no effect on prompts"),
    "negative beta": (EvalConfig, "--model m --data d --beta -1", "beta is out of range"),
    "gap of prompts": (
        EvalConfig,
        "--model m --prompts p --reward brief --min_gap 1",
        "rows.min_gap has no effect",
    ),
    "idle examples": (InspectConfig, "--data d --examples 5 --json", "examples has no effect with json"),
    "examples": (InspectConfig, "--data d --examples -1", "examples is out of range"),
    "no data": (InspectConfig, "--model m", "A setting is missing"),
    "no run": (ReportConfig, "", "A setting is missing"),
    "one page": (ReportConfig, "--runs [a,b]", "Several runs need a separate page"),
    "one run": (ReportConfig, "--runs [a] --output p.html", "output has no effect for one run"),
    "one completion": (DemoConfig, "--num_completions 1", "num_completions is too small for a preference"),
    "no steps": (DemoConfig, "--steps 0", "steps is out of range"),
}


@pytest.mark.parametrize("case", BAD_OTHERS)
def test_bad_settings_of_other_verbs_are_told(case):
    kind, words, wanted = BAD_OTHERS[case]
    assert wanted in refused(*words.split(), kind=kind)


VERBS = {
    "train": (
        TrainConfig,
        [*BASE, "--objective", "dpo", "--beta", "0.3", "--columns", '{"chosen": "w"}', "--max_steps", "3"],
    ),
    "train with a mixture": (
        TrainConfig,
        [*BASE, "--objective", "mixture", "--objective.terms", "dpo(beta=0.3) + 1e-1*sft + -2.5*bco-pair"],
    ),
    "train with bnf": (TrainConfig, [*BASE, "--objective.reduction", "pair_min", "--lora_r", "3"]),
    "inspect": (InspectConfig, ["--data", "d", "--json"]),
    "sample": (SampleConfig, ["--prompts", "p", "--temperature", "0.5", "--output", "o"]),
    "eval": (EvalConfig, ["--model", "m", "--data", "d", "--beta", "0.25"]),
    "report": (ReportConfig, ["--runs", '["a", "b"]', "--output", "p.html"]),
    "demo": (DemoConfig, ["--steps", "12", "--overwrite"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_print_config_prints_is_a_config(verb, tmp_path):
    kind, words = VERBS[verb]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        parsed(*words, "--print_config", kind=kind)
    assert ended.value.code in (0, None)
    (tmp_path / "c.yaml").write_text(printed.getvalue())
    assert parsed("--config", str(tmp_path / "c.yaml"), kind=kind) == parsed(*words, kind=kind)


def test_what_a_run_writes_is_a_config(tmp_path):
    for objective in (
        BNF(reduction="pair_min"),
        DPO(beta=0.3, label_smoothing=0.1),
        SFT(reduction="sequence_mean"),
    ):
        config = TrainConfig(
            data="d", output="o", objective=objective, rows=DataOptions(columns={"chosen": "w"})
        )
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({**to_plain(config), "environment": {"torch": "x"}}))
        assert parsed("--config", str(tmp_path / "c.yaml")) == config


# --- no silent no-op: every field of the training settings is felt in a tiny run, or refused ---

REWARDED = [
    {
        "prompt": row["prompt"],
        "completions": [row["chosen"], row["rejected"], "Perhaps."],
        "rewards": [1.0, 0.0, 0.8 if k < 4 else 0.4],
    }
    for k, row in enumerate(PAIRS)
]
ON = "--source on-policy --reward taste.py:taste --sampling.max_new_tokens 6 --epochs 2"
MASKED = "--collect.correction mask"
TASTE = """
import time
def taste(prompts, completions, **columns):
    return [float(sum(map(c.count, "aeiou"))) for c in completions]
def sour(prompts, completions, **columns):
    return [-reward for reward in taste(prompts, completions)]
def half(prompts, completions, **columns):
    return [reward * (len(p) % 2) for p, reward in zip(prompts, taste(prompts, completions))]
def slow(prompts, completions, **columns):
    time.sleep(0.2)
    return taste(prompts, completions)
"""
FELT = {
    # field: (settings of both runs, the setting that only the second one has)
    "data": ("", "--data rewarded.jsonl"),
    "output": None,
    "model": ("", "--model other"),
    "objective": ("", "--objective sft"),
    "source": ("", ON),
    "reward": (ON, "--reward taste.py:sour"),
    "sampling.num_completions": (ON, "--sampling.num_completions 3"),
    "sampling.max_new_tokens": (ON, "--sampling.max_new_tokens 7"),
    "sampling.temperature": (ON, "--sampling.temperature 0.5"),
    "sampling.top_p": (ON, "--sampling.top_p 0.5"),
    "sampling.top_k": (ON, "--sampling.top_k 5"),
    "sampling.min_p": (ON, "--sampling.min_p 0.5"),
    "sampling.stop": (ON, '--sampling.stop ["e","a","i"]'),
    "sampling.sample_batch": None,
    "router_aux_loss_coef": None,
    "lora.quantization": None,
    "collect.prompts": (ON, "--collect.prompts 2"),
    "collect.epochs": (ON, "--collect.epochs 2"),
    "collect.replay": (ON, "--collect.replay 1"),
    "collect.lag": (ON, "--collect.lag 1"),
    "collect.opponent": (f"{ON} --objective nash-md", "--collect.opponent reference"),
    "collect.opponent_share": (
        f"{ON} --objective nash-md --collect.opponent mixture",
        "--collect.opponent_share 0.9",
    ),
    "collect.data_share": (ON, "--collect.data_share 0.5"),
    "collect.selection": (ON, "--collect.selection all-pairs"),
    "collect.selection_settings": (
        f"{ON} --collect.selection best-vs-worst",
        '--collect.selection_settings {"min_gap":2}',
    ),
    "collect.fill": (f"{ON} --reward taste.py:half", "--collect.fill true"),
    "collect.eval_completions": (ON, "--collect.eval_completions 2"),
    "rollout.environment": None,
    "rollout.max_turns": None,
    "rollout.total_tokens": None,
    "rollout.turn_tokens": None,
    "rollout.step_timeout_s": None,
    "rollout.parallel": None,
    "rollout.process": None,
    "collect.sampler_gap": (ON, "--collect.sampler_gap 1e-12"),
    "collect.reward_timeout_s": (f"{ON} --reward taste.py:slow", "--collect.reward_timeout_s 0.05"),
    "filter": ("", "--filter ches<0.5"),
    "eval_data": ("--eval_fraction 0.1", "--eval_data rewarded.jsonl"),
    "eval_fraction": ("", "--eval_fraction 0.5"),
    "batch_size": ("", "--batch_size 3"),
    "epochs": ("", "--epochs 2"),
    "max_steps": ("", "--max_steps 1"),
    "max_samples": (ON, "--max_samples 16"),
    "max_minutes": ("", "--max_minutes 1e-6"),
    "eval_every": ("", "--eval_every 2"),
    "save_every": ("", "--save_every 1"),
    "keep_checkpoints": ("--save_every 1 --epochs 2", "--keep_checkpoints 2"),
    "precision": ("", "--precision bf16"),
    "gradient_checkpointing": None,
    "device": ("", "--device nothing"),
    "process_minutes": ("", "--process_minutes 5"),
    "shard.mode": ("", "--shard.mode full"),
    "shard.reshard": None,
    "shard.offload": None,
    "seed": ("", "--seed 5"),
    "rows.split": ("--data folder", "--split test"),
    "rows.format": ("", "--format labels"),
    "rows.columns": ("", '--columns {"chosen":"rejected","rejected":"chosen"}'),
    "rows.ignore": None,
    "rows.streaming": None,
    "rows.bad_rows": ("--data bad.jsonl", "--bad_rows skip"),
    "rows.pairing": ("--data rewarded.jsonl", "--pairing best_worst"),
    "rows.min_gap": ("--data rewarded.jsonl", "--min_gap 0.5"),
    "rows.soft_label_temperature": None,
    "rows.template": ("", "--template plain"),
    "rows.truncation": ("--max_length 40", "--truncation cut_completion"),
    "rows.max_length": ("", "--max_length 40"),
    "rows.max_rows": ("", "--max_rows 6"),
    "layout.share_prompts": ("", "--share_prompts false"),
    "layout.attention": ("", "--layout.attention eager"),
    "layout.micro_batch_tokens": ("--data rewarded.jsonl", "--micro_batch_tokens 100"),
    "optim.learning_rate": ("", "--learning_rate 1e-3"),
    "optim.schedule": ("", "--schedule linear"),
    "optim.warmup_ratio": ("--epochs 2", "--warmup_ratio 0.9"),
    "optim.weight_decay": ("", "--weight_decay 0.5"),
    "optim.adam_beta1": ("", "--adam_beta1 0.5"),
    "optim.adam_beta2": ("", "--adam_beta2 0.5"),
    "optim.adam_epsilon": ("", "--adam_epsilon 1e-2"),
    "optim.max_grad_norm": ("--adam_epsilon 1e-2", "--max_grad_norm 0.01"),
    "optim.weights": ("--precision bf16", "--optim.weights bf16"),
    "optim.extragradient": (ON, "--optim.extragradient true"),
    "lora.rank": ("--lora_r 2", "--lora_r 3"),
    "lora.alpha": ("--lora_r 2", "--lora_alpha 16"),
    "lora.target_modules": ("--lora_r 2", "--target_modules [q_proj]"),
    "keep_best": ("--eval_fraction 0.3 --eval_every 1", "--keep_best max:loss"),
    "early_stopping_patience": (
        "--eval_fraction 0.3 --eval_every 1 --keep_best max:loss",
        "--early_stopping_patience 1",
    ),
    "save_dtype": ("", "--save_dtype bf16"),
    "rows.chat_template": ("", "--rows.chat_template qwen3"),
    "report_to": None,
    "rows.chat_template_kwargs": None,
    "optim.name": ("", "--optim adafactor"),
    "optim.warmup_steps": None,
    "critic": None,
    "collect.correction": (f"{ON} --objective grpo", "--collect.correction truncate"),
    "collect.correction_level": (f"{ON} --objective grpo {MASKED}", "--collect.correction_level sequence"),
    "collect.correction_min": (f"{ON} --objective grpo {MASKED}", "--collect.correction_min 0.99999999"),
    "collect.correction_max": (f"{ON} --objective grpo {MASKED}", "--collect.correction_max 1.00000001"),
    "collect.restart_s": None,
    "prefix.column": (f"{ON} --rows.format prompts", "--prefix.column chosen"),
    "prefix.share": (f"{ON} --rows.format prompts --prefix.column chosen", "--prefix.share 0.5"),
    "prefix.cut": (
        f"{ON} --rows.format prompts --prefix.column chosen --prefix.share 0.5",
        "--prefix.cut step",
    ),
    "optim.value_learning_rate": (f"{ON} --objective ppo", "--optim.value_learning_rate 0.1"),
    "lora.dropout": ("--lora_r 2", "--lora.dropout 0.5"),
    "lora.rslora": ("--lora_r 2", "--lora.rslora true"),
    "lora.dora": ("--lora_r 2", "--lora.dora true"),
    "lora.start": ("--lora_r 2", "--lora.start gaussian"),
    "lora.modules_to_save": None,
    "lora.target_parameters": None,
    "lora.trainable_tokens": None,
    "collect.reward_process": None,
    "reference.mode": None,
    "reference.model": ("", "--reference.model other"),
    "reference.update_every": ("", "--reference.update_every 1"),
    "reference.update_rate": ("--reference.update_every 1", "--reference.update_rate 0.5"),
    "reference.contrast_positive": None,
    "reference.contrast_negative": None,
    **{f"server.{field.name}": None for field in fields(ServerOptions)},
    "loading.trust_remote_code": None,
    "loading.allow_pickle": None,
}
SERVED = "tests/train/test_follower.py and tests/sampling/test_server.py"
ELSEWHERE_TESTED = {
    "output": "every run",
    "gradient_checkpointing": "tests/train/test_runs.py",
    "rows.ignore": "tests/data/test_columns.py",
    "rows.streaming": "tests/data/test_sources.py",
    "rows.chat_template_kwargs": "tests/data/test_rendering_faults.py",
    "optim.warmup_steps": "tests/train/test_schedule_and_source.py",
    "lora.modules_to_save": "tests/model/test_adapters.py",
    "lora.quantization": "tests/model/test_quantize.py",
    "router_aux_loss_coef": "tests/train/test_router_loss.py",
    "report_to": "tests/train/test_trackers.py",
    "lora.target_parameters": "tests/model/test_adapters.py",
    "lora.trainable_tokens": "tests/model/test_adapters.py",
    "critic": "tests/train/test_critic.py",
    "collect.restart_s": "tests/train/test_follower.py and tests/vllm/test_vllm.py",
    "rollout.environment": "tests/environments",
    "rollout.max_turns": "tests/environments",
    "rollout.total_tokens": "tests/environments",
    "rollout.turn_tokens": "tests/environments",
    "rollout.step_timeout_s": "tests/environments",
    "rollout.process": "tests/environments",
    "rollout.parallel": "tests/environments, where it changes nothing but the number of threads",
    "collect.reward_process": "tests/rewards/test_reward_sums.py, where it changes nothing but the process",
    "reference.mode": "tests/model/test_reference.py",
    "reference.contrast_positive": "tests/train/test_anchors.py",
    "reference.contrast_negative": "tests/train/test_anchors.py",
    "rows.soft_label_temperature": "tests/data/test_prepare.py",
    "sampling.sample_batch": "tests/sampling/test_engine.py, where it changes nothing but the memory",
    **{f"server.{field.name}": SERVED for field in fields(ServerOptions)},
    "shard.reshard": "tests/train/test_shards.py",
    "shard.offload": "no GPU was at hand; refused without one",
    "loading.trust_remote_code": "tests/model/test_load.py",
    "loading.allow_pickle": "tests/model/test_load.py",
}


def leaves(config) -> set[str]:
    found = set()
    for each in fields(config):
        value = getattr(config, each.name)
        inner = is_dataclass(value) and each.name != "objective"
        found |= {f"{each.name}.{f.name}" for f in fields(value)} if inner else {each.name}
    return found


def test_the_list_of_settings_is_complete():
    assert set(FELT) == leaves(TrainConfig(data="d", output="o"))
    assert {name for name, case in FELT.items() if case is None} == set(ELSEWHERE_TESTED)


@pytest.fixture(scope="module")
def playground(tmp_path_factory, tiny_folder):
    """A folder with everything that the settings below name."""
    from tests.folders import save_tiny_model

    folder = tmp_path_factory.mktemp("felt")
    save_tiny_model(folder / "other", seed=1)
    write_rows(folder / "pairs.jsonl", PAIRS)
    write_rows(folder / "rewarded.jsonl", REWARDED)
    write_rows(folder / "bad.jsonl", [*PAIRS, {"prompt": "p", "chosen": "c", "rejected": 3}])
    (folder / "taste.py").write_text(TASTE)
    (folder / "folder").mkdir()
    write_rows(folder / "folder" / "train.jsonl", PAIRS)
    write_rows(folder / "folder" / "test.jsonl", PAIRS[:6])
    return folder


_seen: dict[tuple, object] = {}


def outcome(words: tuple[str, ...], model, output) -> object:
    """What a run came to: metrics, weights, files, or the error."""
    if words not in _seen:
        base = (
            "--data pairs.jsonl --objective dpo --batch_size 4 --learning_rate 3e-3 --schedule constant --warmup_ratio 0 "
            f"--eval_fraction 0.25 --model {model} --output {output}"
        ).split()
        try:
            result = train(parsed(*base, *words), quiet=True)
        except PreftuneError as error:
            _seen[words] = str(error)
        else:
            rows = timeless(metric_rows(result.folder))
            files = sorted(
                path.name for path in (*result.folder.glob("checkpoints/*"), *result.folder.glob("bad_rows*"))
            )
            shapes = {name: tuple(tensor.shape) for name, tensor in weights_of(result.final).items()}
            shapes["sum"] = tuple(
                round(float(t.double().sum()), 7) for t in weights_of(result.final).values()
            )
            _seen[words] = json.dumps([rows, files, sorted(shapes.items())])
    return _seen[words]


@pytest.mark.xdist_group("settings")  # in one worker: they share runs
@pytest.mark.parametrize("name", [name for name, case in FELT.items() if case])
def test_every_setting_is_felt_or_refused(name, playground, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(playground)
    shared, changed = FELT[name]
    without = outcome(tuple(shared.split()), tiny_folder, tmp_path / "without")
    within = outcome(tuple([*shared.split(), *changed.split()]), tiny_folder, tmp_path / "within")
    assert within != without
    refused = {
        "device",
        "rows.format",
        "collect.sampler_gap",
        "collect.reward_timeout_s",
        "process_minutes",
        "shard.mode",
    }
    expected_error = name in refused  # the last two by a run of one process
    assert str(within).startswith("[") != expected_error


@dataclass(frozen=True, kw_only=True)
class _Inner:
    thresholds: list[float] | None = None
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Lists:
    """Settings that are lists."""

    rates: list[float] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    inner: _Inner = field(default_factory=_Inner)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--rates", "1e-6,1e-5"], "rates", [1e-6, 1e-5]),
        (["--rates=1e-6, 1e-5"], "rates", [1e-6, 1e-5]),
        (["--rates", "0.5"], "rates", [0.5]),
        (["--rates", "[0.5, 1]"], "rates", [0.5, 1.0]),
        (["--places", "3,4"], "places", [3, 4]),
        (["--inner.thresholds", "0.1,0.2"], "inner.thresholds", [0.1, 0.2]),
        (["--names", "END"], "inner.names", ["END"]),
        (["--names", '["a, b", "c"]'], "inner.names", ["a, b", "c"]),
    ],
)
def test_lists_without_brackets(words, name, value):
    settings = parse_settings(_Lists, words, "preftune x")
    for part in name.split("."):
        settings = getattr(settings, part)
    assert settings == value


def test_a_text_with_a_comma_may_be_one_or_two():
    with pytest.raises(ConfigError, match=r"names.*a list: \[a, b\]"):
        parse_settings(_Lists, ["--names", "a,b"], "preftune x")
