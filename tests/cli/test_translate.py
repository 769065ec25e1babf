"""Configurations of other tools: every key is accounted for, and the settings are ones that train takes."""

import json

import pytest
import yaml

from preftune.cli.main import main
from preftune.cli.settings import parse_settings
from preftune.cli.translate import detect_tool, nested, translate
from preftune.cli.words import prepared
from preftune.commands.train_reward_model import RewardModelConfig
from preftune.errors import ConfigError
from preftune.train.options import TrainConfig

TRL_DPO = """
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
dataset_name: trl-lib/ultrafeedback_binarized
dataset_train_split: train
output_dir: runs/trl
loss_type: sigmoid
beta: 0.2
learning_rate: 5.0e-6
num_train_epochs: 1
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
max_length: 1024
bf16: true
gradient_checkpointing: true
logging_steps: 25
eval_strategy: steps
eval_steps: 50
use_peft: true
lora_r: 32
lora_alpha: 16
report_to: none
"""
TRL_MIXTURE = """
model_name_or_path: m
dataset_name: pairs.jsonl
output_dir: o
loss_type: [sigmoid, bco_pair, sft]
loss_weights: [0.8, 0.2, 1.0]
max_prompt_length: 512
padding_free: true
warmup_steps: 20
"""
TRL_KTO = """
trainer: kto
model_name_or_path: m
dataset_name: labels.jsonl
output_dir: o
desirable_weight: 1.0
undesirable_weight: 1.33
per_device_train_batch_size: 16
"""
TRL_GRPO = """
trainer: grpo
model_name_or_path: m
dataset_name: prompts.jsonl
output_dir: o
reward_funcs: [my_rewards.short]
num_generations: 8
max_completion_length: 256
temperature: 0.9
beta: 0.04
use_vllm: true
log_completions: true
"""
FACTORY_DPO = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.1
pref_loss: sigmoid
dataset: dpo_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/llama3-8b/lora/dpo
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
val_size: 0.1
eval_strategy: steps
eval_steps: 500
"""
FACTORY_KTO = """
model_name_or_path: m
stage: kto
finetuning_type: full
dataset: kto.jsonl
cutoff_len: 1024
output_dir: o
deepspeed: ds_z3.json
quantization_bit: 4
"""
FACTORY_RM = """
model_name_or_path: m
stage: rm
finetuning_type: lora
dataset: pairs.jsonl
cutoff_len: 1024
output_dir: o
per_device_train_batch_size: 4
learning_rate: 1.0e-4
"""
AXOLOTL_DPO = """
base_model: NousResearch/Meta-Llama-3-8B-Instruct
model_type: LlamaForCausalLM
tokenizer_type: AutoTokenizer
load_in_8bit: false
load_in_4bit: false
rl: dpo
datasets:
  - path: fozziethebeat/alpaca_messages_2k_dpo_test
    type: chat_template.default
    field_messages: conversation
    split: train
dataset_prepared_path:
val_set_size: 0.05
output_dir: ./outputs/dpo-out
sequence_len: 4096
sample_packing: false
pad_to_sequence_len: false
adapter: lora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
logging_steps: 1
flash_attention: true
warmup_ratio: 0.1
weight_decay: 0.0
special_tokens:
"""
AXOLOTL_ORPO = """
base_model: m
rl: orpo
datasets: [{path: pairs.jsonl, type: chat_template.argilla}]
sequence_len: 2048
adapter: qlora
load_in_4bit: true
lora_r: 16
micro_batch_size: 1
output_dir: o
"""
AXOLOTL_SEVERAL = """
base_model: m
rl: ipo
datasets: [{path: a.jsonl, type: chatml.intel}, {path: b.jsonl, type: chatml.intel}]
sequence_len: 2048
output_dir: o
evals_per_epoch: 4
"""
SWIFT_DPO = """
rlhf_type: dpo
model: Qwen/Qwen2.5-7B-Instruct
train_type: lora
dataset: hjh0119/shareAI-Llama3-DPO-zh-en-emoji
torch_dtype: bfloat16
num_train_epochs: 1
per_device_train_batch_size: 1
learning_rate: 1e-4
lora_rank: 8
lora_alpha: 32
target_modules: all-linear
gradient_accumulation_steps: 16
eval_steps: 50
save_steps: 50
save_total_limit: 2
logging_steps: 5
max_length: 2048
output_dir: output
warmup_ratio: 0.05
dataloader_num_workers: 4
split_dataset_ratio: 0.01
"""
SWIFT_GRPO = """
rlhf_type: grpo
model: m
train_type: full
dataset: prompts.jsonl
reward_funcs: [accuracy, format]
num_generations: 8
max_completion_length: 1024
output_dir: o
"""

# name: (text, tool, settings that must come out, keys that must be refused)
HANDBOOK_QLORA = """
model_name_or_path: owner/sft
torch_dtype: bfloat16
use_peft: true
load_in_4bit: true
lora_r: 16
dataset_mixer: {owner/pairs: 1.0}
dataset_splits: [train_prefs, test_prefs]
output_dir: o
beta: 0.01
log_level: info
optim: paged_adamw_32bit
hub_strategy: every_save
save_steps: 100
"""
HANDBOOK_MIXTURE = """
model_name_or_path: owner/sft
model_revision: second
dataset_mixture:
  datasets:
    - {id: owner/pairs, config: Preference, split: plain, weight: 0.5}
    - {id: owner/pairs, config: Preference, split: thinking, weight: 0.25}
output_dir: o
loss_type: apo_zero
beta: 0.05
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
save_steps: 0.5
use_flash_attention_2: true
"""
HANDBOOK_ONE = """
trainer: orpo
model_name_or_path: owner/base
dataset_mixture: {datasets: [{id: owner/pairs, config: clean, split: train_prefs}]}
output_dir: o
beta: 0.05
"""
AXOLOTL_WEIGHTS = """
base_model: owner/base
rl: kto
rl_beta: 0.5
kto_desirable_weight: 0.2
datasets: [{path: owner/labels, type: llama3.ultra, split: train}]
output_dir: o
val_set_size: 0.0
micro_batch_size: 2
eval_max_new_tokens: 128
saves_per_epoch: 1
"""
AXOLOTL_ALPHA = """
base_model: owner/base
rl: orpo
orpo_alpha: 0.2
datasets: [{path: owner/pairs, type: orpo.chat_template}]
output_dir: o
sequence_len: 4096
loss_watchdog_threshold: 5.0
"""

CONFIGS = {
    "handbook qlora": (
        HANDBOOK_QLORA,
        "trl",
        {"objective": "dpo", "data": "owner/pairs", "rows.split": "train_prefs", "objective.beta": 0.01},
        set(),
    ),
    "handbook mixture": (
        HANDBOOK_MIXTURE,
        "trl",
        {"objective": "apo-zero", "objective.beta": 0.05, "save_every": None},
        {"model_revision", "dataset_mixture", "lr_scheduler_type", "lr_scheduler_kwargs", "save_steps"},
    ),
    "handbook orpo": (
        HANDBOOK_ONE,
        "trl",
        {"data": "owner/pairs:clean", "rows.split": "train_prefs", "objective.odds_weight": 0.05},
        set(),
    ),
    "axolotl kto": (
        AXOLOTL_WEIGHTS,
        "axolotl",
        {"objective.beta": 0.5, "objective.desirable_weight": 0.2},
        {"saves_per_epoch"},
    ),
    "axolotl orpo weight": (AXOLOTL_ALPHA, "axolotl", {"objective.odds_weight": 0.2}, set()),
    "trl dpo": (
        TRL_DPO,
        "trl",
        {"objective": "dpo", "objective.beta": 0.2, "batch_size": 16, "precision": "bf16", "lora.rank": 32},
        set(),
    ),
    "trl mixture": (
        TRL_MIXTURE,
        "trl",
        {"objective.terms": "0.8*dpo+0.2*bco-pair+1*sft", "epochs": 3.0, "optim.warmup_steps": 20},
        {"max_prompt_length"},
    ),
    "trl kto": (
        TRL_KTO,
        "trl",
        {"objective": "kto", "batch_size": 16, "objective.undesirable_weight": 1.33},
        set(),
    ),
    "trl grpo": (
        TRL_GRPO,
        "trl",
        {
            "objective": "grpo",
            "source": "on-policy",
            "reward": "my_rewards:short",
            "sampling.num_completions": 8,
        },
        set(),
    ),
    "llama-factory dpo": (
        FACTORY_DPO,
        "llama-factory",
        {"objective": "dpo", "batch_size": 8, "lora.target_modules": "all-linear", "eval_fraction": 0.1},
        set(),
    ),
    "llama-factory kto": (
        FACTORY_KTO,
        "llama-factory",
        {"objective": "kto", "optim.learning_rate": 5e-5},
        {"deepspeed", "quantization_bit"},
    ),
    "llama-factory rm": (FACTORY_RM, "llama-factory", {"batch_size": 4, "lora.rank": 8}, set()),
    "axolotl dpo": (
        AXOLOTL_DPO,
        "axolotl",
        {
            "batch_size": 8,
            "epochs": 4,
            "lora.dropout": 0.05,
            "optim.schedule": "cosine",
            "rows.split": "train",
        },
        set(),
    ),
    "axolotl orpo": (AXOLOTL_ORPO, "axolotl", {"objective": "orpo", "lora.quantization": "nf4"}, set()),
    "axolotl several": (AXOLOTL_SEVERAL, "axolotl", {"objective": "ipo"}, {"datasets", "evals_per_epoch"}),
    "ms-swift dpo": (
        SWIFT_DPO,
        "ms-swift",
        {
            "objective": "dpo",
            "batch_size": 16,
            "lora.alpha": 32,
            "eval_fraction": 0.01,
            "keep_checkpoints": 2,
        },
        set(),
    ),
    "ms-swift grpo": (SWIFT_GRPO, "ms-swift", {"objective": "grpo"}, {"reward_funcs"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_accounted_for(name):
    text, tool, wanted, refused = CONFIGS[name]
    config = yaml.safe_load(text)
    assert detect_tool(config) == tool
    found = translate(config, tool)
    accounts = {one.key: one for one in found.accounts}
    assert set(config) <= set(accounts) and all(one.says for one in found.accounts)
    assert {name: found.settings.get(name) for name in wanted} == wanted
    assert {key for key, one in accounts.items() if one.outcome == "refused"} == refused


@pytest.mark.parametrize("name", CONFIGS)
def test_the_settings_are_taken(name, tmp_path, monkeypatch):
    """After what was refused is supplied by hand."""
    text, tool, _, refused = CONFIGS[name]
    found = translate(yaml.safe_load(text), tool)
    settings = dict(found.settings)
    settings |= {"data": "pairs.jsonl"} if refused & {"datasets", "dataset_mixture"} else {}
    settings |= {"reward": "brief"} if "reward_funcs" in refused else {}
    if settings.get("optim.name") == "adamw_8bit":
        settings["optim.name"] = "adamw"  # torchao is not a dependency
    (tmp_path / "my_rewards.py").write_text("def short(prompts, completions, **columns): return []\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(nested(settings)))
    kind = TrainConfig if found.command == "train" else RewardModelConfig
    config = parse_settings(kind, prepared(found.command, ["--config", str(file)]), prog="preftune")
    assert config.output == settings["output"]


def test_what_the_tool_does_without_a_key_is_written_out():
    found = translate({"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}, "trl")
    assert found.settings["epochs"] == 3.0 and found.settings["eval_fraction"] == 0.0
    assert any(one.key == "(epochs)" and "default of trl" in one.says for one in found.accounts)


def test_a_key_that_is_off_is_not_needed():
    found = translate({"base_model": "m", "load_in_4bit": False, "neftune_noise_alpha": None}, "axolotl")
    outcomes = {one.key: one.outcome for one in found.accounts}
    assert outcomes["load_in_4bit"] == outcomes["neftune_noise_alpha"] == "not needed"


def test_the_command_writes_settings_and_says_what_is_left(tmp_path, capsys):
    file, output = tmp_path / "axolotl.yml", tmp_path / "run.yaml"
    file.write_text(AXOLOTL_ORPO + "neftune_noise_alpha: 5\nhello: 1\n")
    assert main(["import-config", str(file), "--output", str(output)]) == 2
    told = capsys.readouterr().err
    assert "refused (2):" in told and "noise on embeddings" in told
    text = output.read_text()
    assert text.startswith("# from axolotl; use it with: preftune train --config FILE\n# ")
    assert yaml.safe_load(text)["objective"] == {"name": "orpo"}
    file.write_text(TRL_DPO)
    assert main(["import-config", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tool"] == "trl"


def test_a_file_of_no_known_tool_is_refused():
    with pytest.raises(ConfigError, match="--tool trl"):
        detect_tool({"hello": 1})


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("learning_rate", -1e-5, "optim.learning_rate is out of range; got -1e-05"),
        ("warmup_ratio", 1.5, "optim.warmup_ratio is out of range; got 1.5"),
        ("num_train_epochs", "many", "epochs"),
    ],
)
def test_a_value_that_training_would_refuse_is_refused_here(key, value, told):
    found = translate({"loss_type": "sigmoid", key: value}, "trl")
    account = next(one for one in found.accounts if one.key == key)
    assert account.outcome == "refused" and told in account.says
    assert value not in found.settings.values()


def test_a_number_of_steps_that_is_off_leaves_the_epochs():
    found = translate({"max_steps": -1, "optim": "adamw_torch_fused"}, "trl")
    assert found.settings["epochs"] == 3.0 and "max_steps" not in found.settings
    assert found.settings["optim.name"] == "adamw_torch_fused"


@pytest.mark.parametrize("value", [True, 0, -2, 1.5, "many"])
def test_a_batch_size_that_is_none_is_refused(value):
    found = translate({"loss_type": "sigmoid", "per_device_train_batch_size": value}, "trl")
    account = next(one for one in found.accounts if one.key == "per_device_train_batch_size")
    assert account.outcome == "refused" and "at least 1" in account.says
