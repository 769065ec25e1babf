"""Names of settings: those of the ecosystem that mean the same thing here, and what to use instead of others."""

import difflib
from collections.abc import Iterable, Mapping

from preftune.errors import ConfigError

ALIASES = {
    "patience": "early_stopping_patience",
    "temp": "sampling.temperature",
    "model_name_or_path": "model",
    "base_model": "model",
    "dataset_name": "data",
    "dataset": "data",
    "train_file": "data",
    "output_dir": "output",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "dataset_train_split": "rows.split",
    "eval_dataset": "eval_data",
    "validation_file": "eval_data",
    "val_split": "eval_fraction",
    "val_set_size": "eval_fraction",
    "val_size": "eval_fraction",
    "test_size": "eval_fraction",
    "eval_split": "eval_fraction",
    "eval_steps": "eval_every",
    "save_steps": "save_every",
    "save_total_limit": "keep_checkpoints",
    "lr": "optim.learning_rate",
    "lr_scheduler_type": "optim.schedule",
    "lr_scheduler": "optim.schedule",
    "scheduler": "optim.schedule",
    "optim": "optim.name",
    "optimizer": "optim.name",
    "lora_rank": "lora.rank",
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "lora_target_parameters": "lora.target_parameters",
    "init_lora_weights": "lora.start",
    "lora_target": "lora.target_modules",
    "lora_modules_to_save": "lora.modules_to_save",
    "use_rslora": "lora.rslora",
    "use_dora": "lora.dora",
    "beta": "objective.beta",
    "label_smoothing": "objective.label_smoothing",
    "method": "objective.name",
    "loss": "objective.name",
    "loss_type": "objective.name",
    "algorithm": "objective.name",
    "rl": "objective.name",
    "pref_loss": "objective.name",
    "rlhf_type": "objective.name",
    "stage": "objective.name",
    "pref_beta": "objective.beta",
    "dpo_beta": "objective.beta",
    "gradient_clipping": "optim.max_grad_norm",
    "max_gradient_norm": "optim.max_grad_norm",
    "time": "minutes",
    "simpo_gamma": "objective.gamma",
    "max_steps": "budget.steps",  # where runs are compared
    "max_samples": "budget.samples",
    "max_minutes": "budget.minutes",
    "steps": "budget.steps",
    "max_completion_length": "sampling.max_new_tokens",
    "max_new_token": "sampling.max_new_tokens",
    "num_generations": "sampling.num_completions",
    "cutoff_len": "rows.max_length",
    "max_seq_length": "rows.max_length",
    "max_seq_len": "rows.max_length",
    "sequence_len": "rows.max_length",
    "warmup": "optim.warmup_ratio",
    "load_best_model_at_end": "keep_best",
    "metric_for_best_model": "keep_best",
    "reward_funcs": "reward",
    "reward_function": "reward",
    "reward_fn": "reward",
    "benchmark": "tasks",
    "benchmarks": "tasks",
    "task": "tasks",
    "tracker": "report_to",
    "trackers": "report_to",
    "max_tokens": "sampling.max_new_tokens",
    "methods": "objectives",
    "file": "data",
    "train_batch_size": "batch_size",
    "reference_model": "reference.model",
    "dataset_split": "rows.split",
    "dtype": "precision",
    "torch_dtype": "precision",
}
"""Names of other tools, and short names, for settings that mean the same thing here."""

ELSEWHERE = {
    "num_gpus": "Start with torchrun --nproc_per_node 2 -m preftune train ...; docs/scaling.md shows how",
    "logging_dir": "Trackers write into the run folder; name them with --report_to tensorboard",
    "hub_model_id": "Upload after training: preftune export RUN --to hub --output OWNER/NAME",
    "token": "Log in with: hf auth login",
    "format": "Use --to gguf, or another target of preftune export --help",
    "per_device_train_batch_size": "Use --batch_size, the number of groups per step over all devices; "
    "micro-batches follow from --layout.micro_batch_tokens",
    "micro_batch_size": "Use --batch_size, the number of groups per step; micro-batches follow from "
    "--layout.micro_batch_tokens",
    "gradient_accumulation_steps": "Use --batch_size, the number of groups per step; micro-batches follow from "
    "--layout.micro_batch_tokens and never change the result",
    "bf16": "Use --precision bf16",
    "fp16": "Use --precision bf16 or fp32; fp16 is not supported",
    "fp32": "Use --precision fp32, the default",
    "use_peft": "Use --lora, or --lora.rank N",
    "use_lora": "Use --lora, or --lora.rank N",
    "adapter": "Use --lora.rank 16, or --model ADAPTER to start from one",
    "finetuning_type": "Use --lora.rank 16 for LoRA; without it all weights train",
    "precompute_ref_log_probs": "Use --reference.mode cache (the default for most objectives) or live",
    "ref_model": "Use --reference.model FOLDER",
    "truncation_mode": "Use --rows.truncation",
    "wandb": "Use --report_to wandb",
    "tensorboard": "Use --report_to tensorboard",
    "use_wandb": "Use --report_to wandb",
    "logging_steps": "Leave it out: every step is logged",
    "push_to_hub": "Train first, then run: preftune export RUN --to hub",
    "resume_from_checkpoint": "Use: preftune train --resume RUN",
    "overwrite_output_dir": "Name a new --output, or delete the old run folder",
    "deepspeed": "Use torchrun with --shard.mode full; docs/scaling.md shows how",
    "fsdp": "Use torchrun with --shard.mode full; docs/scaling.md shows how",
    "mask_truncated_completions": "Truncated completions count as they are; `--reward brief` scores those that end",
    "packing": "Leave it out: sequences always share rows without padding",
    "padding_free": "Leave it out: there is no padding",
    "flash_attention": "Leave it out: the fastest exact attention is chosen at start-up",
    "attn_implementation": "Use --layout.attention; the default is the fastest that is proven exact",
    "greater_is_better": "Use --keep_best max:METRIC or min:METRIC; the direction of usual metrics is known",
    "use_vllm": "Use --server.url http://HOST:PORT of a running vLLM",
    "seed_everything": "Use --seed",
    "flash_attn": "Leave it out: the fastest exact attention is chosen at start-up",
    "use_flash_attention_2": "Leave it out: the fastest exact attention is chosen at start-up",
    "flash_attention_2": "Leave it out: the fastest exact attention is chosen at start-up",
    "use_unsloth": "Leave it out: sequences share rows without padding, and prompts are computed once",
    "use_liger_kernel": "Leave it out: logits are computed in chunks already",
    "torch_compile": "Leave it out: nothing is compiled but attention on a GPU",
    "per_device_eval_batch_size": "Leave it out: micro-batches follow from --layout.micro_batch_tokens",
    "eval_batch_size": "Leave it out: micro-batches follow from --layout.micro_batch_tokens",
    "gpu": "Use --device cuda, or --device cuda:1 for the second GPU",
    "gpus": "Start with torchrun --nproc_per_node 2 -m preftune train ...; docs/scaling.md shows how",
    "cpu": "Use --device cpu",
    "cuda": "Use --device cuda",
    "no_cuda": "Use --device cpu",
    "use_cpu": "Use --device cpu",
    "peft": "Use --lora, or --lora.rank N",
    "peft_config": "Use --lora, or --lora.rank N; preftune train --help lora lists the settings",
    "full_finetune": "Leave it out: all weights train without --lora",
    "train_type": "Use --lora.rank 16 for LoRA; without it all weights train",
    "tuner_type": "Use --lora.rank 16 for LoRA; without it all weights train",
    "r": "Use --lora.rank N, or --reward NAME",
    "quantization_bit": "Use --lora.quantization nf4 (bitsandbytes) or int4 (torchao)",
    "sample_packing": "Leave it out: sequences always share rows without padding",
    "reference_free": "Use an objective without a reference, such as simpo or orpo; preftune objectives lists them",
    "sft_coef": "Write the sum of two losses: --objective dpo+0.1*sft",
    "neftune_noise_alpha": "Leave it out: noise on embeddings is not supported",
    "gguf": "Use --to gguf",
    "ollama": "Use --to ollama",
    "full_finetuning": "Leave it out: all weights train without --lora",
    "wandb_project": "Set the environment variable WANDB_PROJECT, with --report_to wandb",
    "run_name": "A run has the name of its folder: --output runs/NAME",
    "num_workers": "Leave it out: data are prepared once, before the first step",
    "dataloader_num_workers": "Leave it out: data are prepared once, before the first step",
    "dataset_num_proc": "Leave it out: data are prepared once, before the first step",
    "remove_unused_columns": "Leave it out: every column is used, passed to rewards or reported",
    "verbose": "Leave it out: every step is logged in metrics.jsonl, and the report shows it",
    "debug": "Leave it out: --dry-run runs one step and prints memory and time",
    "quiet": "Redirect standard error: 2> train.log; results of other commands have --json",
    "overwrite": "Name a new --output, or delete the old folder",
    "html": "Leave it out: report writes report.html; --output names another page",
    "rpo_alpha": "Write the sum of two losses: --objective dpo+1*sft",
    "pref_ftx": "Write the sum of two losses: --objective dpo+0.1*sft",
    "sync_ref_model": "Use --reference.update_every STEPS and --reference.update_rate",
    "disable_dropout": "Leave it out: dropout is off",
    "tf32": "Leave it out; use --precision bf16 for speed",
    "eval_strategy": "Use --eval_every STEPS",
    "evaluation_strategy": "Use --eval_every STEPS",
    "save_strategy": "Use --save_every STEPS",
    "dataset_text_field": "Use --columns COLUMN=ROLE; docs/data.md lists the roles",
    "tokenizer": "The tokenizer is read from the model's folder",
    "processing_class": "The tokenizer is read from the model's folder",
    "load_in_8bit": "Use --lora.quantization bnb-int8 (bitsandbytes) or int8 (torchao)",
    "load_in_4bit": "Use --lora.quantization nf4 (bitsandbytes) or int4 (torchao)",
    "qlora": "Use --lora.quantization nf4 (bitsandbytes) or int4 (torchao)",
    "max_prompt_length": "Use --rows.max_length with --rows.truncation",
}
"""What to use instead of names that have no equal here."""

CUTOFF = 0.72  # similarity of a suggestion; below it the suggestion misleads more often than it helps


def nearest(name: str, choices: Iterable[str], cutoff: float = CUTOFF) -> str | None:
    """The choice that is most like `name`, if one is like enough; swapped letters count as most alike."""
    written = {one.lower(): one for one in choices}
    wanted = name.lower()
    if wanted in written and written[wanted] != name:  # only the case differs
        return written[wanted]
    swapped = [one for one in written if one != wanted and sorted(one) == sorted(wanted)]
    near = swapped or difflib.get_close_matches(wanted, written, n=1, cutoff=cutoff)
    return written[near[0]] if near else None


def unknown_setting(key: str, names: Mapping[str, str], *, flag: bool, where: str = "") -> ConfigError:
    """What to state about a key that is no setting. `names` are the names that work, short and full."""
    what = f"Unknown option --{key}" if flag else f"Unknown setting {key}{where}"
    leaf = key.rpartition(".")[2]
    dash = "--" if flag else ""
    if leaf in ELSEWHERE:
        return ConfigError(what, do=ELSEWHERE[leaf])
    if key.startswith("objective."):
        return ConfigError(what, do="Give --help with this --objective to see its hyperparameters")
    same_leaf = sorted({full for full in names.values() if full.rpartition(".")[2] == leaf and full != key})
    if same_leaf:
        others = [full for full in same_leaf if not full.startswith("objective.")] or same_leaf
        return ConfigError(what, do=f"Did you mean {' or '.join(dash + full for full in others)}?")
    near = nearest(key, names) or nearest(leaf, names)
    return ConfigError(what, do=f"Did you mean {dash}{near}?" if near else "Give --help to see all settings")


SWITCHED = {"bf16": "bf16", "fp32": "fp32"}
"""Switches of other tools -> the precision that they choose."""

LOSS_NAMES = {
    "sigmoid": "dpo",
    "sigmoid-norm": "ln-dpo",
    "exo-pair": "exo",
    "nca-pair": "nca",
    "robust": "robust-dpo",
    "sppo-hard": "sppo",
}
"""Losses as other tools write them -> the objective, where the names differ."""

SPELLINGS = {
    "precision": {"bfloat16": "bf16", "float32": "fp32", "float": "fp32", "fp16": "bf16", "float16": "bf16"},
    "source": {
        "online": "on-policy",
        "on_policy": "on-policy",
        "onpolicy": "on-policy",
        "off-policy": "offline",
        "off_policy": "offline",
    },
    "device": {"gpu": "cuda"},
    "to": {"ggml": "gguf", "safetensors": "merged", "huggingface": "hub", "hf": "hub", "lora": "adapter"},
}
"""Setting -> values as other tools write them, with the value to suggest."""
