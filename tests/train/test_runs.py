"""Whole runs on a tiny model: it learns, its folder holds everything, and what it saves loads elsewhere."""

import io
import json
import math

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.cli.settings import settings_from_run
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.errors import ConfigError
from preftune.model.adapters import LoraOptions, quiet_peft
from preftune.model.layout import LayoutOptions
from preftune.model.load import LoadOptions, load_model, load_tokenizer
from preftune.model.policy import Policy, score, score_groups
from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.sft import SFT
from preftune.progress import Reporter
from preftune.train.batches import cut_step
from preftune.train.loop import train
from preftune.train.models import load_policy
from preftune.train.options import TrainConfig
from preftune.train.setup import build_job
from tests.folders import PAIRS, metric_rows, tiny_config, weights_of, write_rows


def plain_logps(model, groups):
    """The definition, with nothing but transformers and torch."""
    found = []
    for group in groups:
        for completion in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, completion])).long()[None]
            with torch.no_grad():
                logp = model(ids, use_cache=False).logits[0].log_softmax(-1)
            found.append(
                logp[len(group.prompt) - 1 : -1].gather(1, ids[0, len(group.prompt) :, None]).squeeze(1)
            )
    return torch.cat(found)


def our_logps(source, groups):
    policy = Policy(
        model=load_model(str(source), LoadOptions()), precision="fp32", sharing="shared", sharing_reason=""
    )
    return torch.from_numpy(
        np.concatenate([one for group in score_groups(policy, groups, LayoutOptions()) for one in group])
    )


def groups_of(folder, data):
    return prepare(data, load_tokenizer(str(folder), LoadOptions()), "pairs", DataOptions()).groups


@pytest.mark.parametrize("objective", [BNF(), BNF(reduction="pair_min"), DPO(), SFT()], ids=repr)
def test_four_pairs_are_learned_by_heart(objective, tiny_folder, tmp_path):
    data = write_rows(tmp_path / "four.jsonl", PAIRS[:4])
    config = tiny_config(
        tiny_folder, data, tmp_path / "run", objective=objective, epochs=25.0, eval_fraction=0.0
    )
    result = train(config, quiet=True)
    rows = [row for row in metric_rows(result.folder) if row["phase"] == "train"]
    first, last = rows[0], rows[-1]
    assert len(rows) == result.step == 25
    assert last["logps/chosen"] > first["logps/chosen"] + 5
    if isinstance(objective, SFT):
        assert last["loss"] < 0.5 * first["loss"]
    else:
        assert first["log_ratios/chosen"] == pytest.approx(0.0, abs=1e-3)
        assert last["log_ratios/chosen"] > 5 and last["log_ratios/rejected"] < -5
    if isinstance(objective, DPO):
        assert first["loss"] == pytest.approx(math.log(2.0), abs=1e-6)
        assert last["loss"] < 0.1 and last["rewards/accuracies"] == 1.0
    if isinstance(objective, BNF):
        assert last["bnf/weight_rejected"] < 0.5 < first["bnf/weight_rejected"]


def test_the_run_folder_holds_everything(tiny_folder, pairs_file, tmp_path):
    config = tiny_config(
        tiny_folder, pairs_file, tmp_path / "run", objective=DPO(beta=0.3), save_every=1, keep_checkpoints=2
    )
    result = train(config, quiet=True)
    assert (result.state, result.step) == ("finished", 4)  # 6 of 8 pairs in steps of 4, twice
    assert settings_from_run(TrainConfig, result.folder) == config
    assert set(yaml.safe_load((result.folder / "config.yaml").read_text())["environment"]) >= {
        "torch",
        "git",
        "device",
    }
    layout = yaml.safe_load((result.folder / "config.yaml").read_text())["environment"]["layout"]
    assert layout.items() >= {"rows": "flat", "attention": "segments", "num_key_value_heads": 2}.items()
    rows = metric_rows(result.folder)
    assert [(row["step"], row["phase"]) for row in rows] == [
        (0, "eval"),
        *((step, phase) for step in range(1, 5) for phase in ("train", "eval")),
    ]
    sides = {
        f"{name}/{side}" for name in ("logps", "log_ratios", "rewards") for side in ("chosen", "rejected")
    }
    pairwise = sides | {"rewards/margins", "rewards/accuracies"}
    assert set(rows[1]) == pairwise | {
        "step",
        "phase",
        "loss",
        "grad_norm",
        "learning_rate",
        "epoch",
        "num_tokens",
        "prompts_seen",
        "samples_drawn",
        "reward_queries",
        "step_time",
        "tokens_per_second",
        "packing",
        "mfu",
        "pairs/common_ends",
    }
    assert set(rows[0]) == {"step", "phase", "eval_loss", "eval_mfu", "health/reference"} | {
        f"eval_{name}" for name in pairwise
    }
    assert [row["prompts_seen"] for row in rows if row["phase"] == "train"] == [4, 6, 10, 12]
    assert json.loads((result.folder / "status.json").read_text())["state"] == "finished"
    assert sorted(path.name for path in (result.folder / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000003",
    ]
    assert {path.name for path in result.folder.iterdir()} == {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "data_report.json",
        "status.json",
        "checkpoints",
        "final",
        "report.html",
        "report.md",
        "tokens.jsonl",
        "health.json",
    }
    assert result.evaluation["loss"] == rows[-1]["eval_loss"]


def test_final_is_a_plain_transformers_model(tiny_folder, pairs_file, tmp_path):
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", eval_fraction=0.0)
    result = train(config, quiet=True)
    groups = groups_of(tiny_folder, pairs_file)
    plain = plain_logps(AutoModelForCausalLM.from_pretrained(result.final).eval(), groups)
    torch.testing.assert_close(our_logps(result.final, groups), plain, rtol=1e-5, atol=1e-5)
    assert (plain - our_logps(tiny_folder, groups)).abs().max() > 0.1  # it has moved
    tokenizer = AutoTokenizer.from_pretrained(result.final)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_folder).chat_template


def test_an_adapter_loads_with_plain_peft_and_as_a_model(tiny_folder, pairs_file, tmp_path):
    config = tiny_config(
        tiny_folder,
        pairs_file,
        tmp_path / "run",
        lora=LoraOptions(rank=2),
        optim={"learning_rate": 0.02},
        eval_fraction=0.0,
    )
    final = train(config, quiet=True).final
    assert sorted(path.name for path in final.glob("*.safetensors")) == ["adapter_model.safetensors"]
    groups = groups_of(tiny_folder, pairs_file)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    with quiet_peft():
        plain = plain_logps(PeftModel.from_pretrained(base, final).eval(), groups)
    torch.testing.assert_close(our_logps(final, groups), plain, rtol=1e-5, atol=1e-4)
    assert (plain - our_logps(tiny_folder, groups)).abs().max() > 0.1
    # An adapter trained on top of it stands on both.
    second = train(
        tiny_config(
            final,
            pairs_file,
            tmp_path / "run2",
            lora=LoraOptions(rank=2),
            max_steps=1,
            optim={"learning_rate": 1e-6},
            eval_fraction=0.0,
        ),
        quiet=True,
    ).final
    torch.testing.assert_close(our_logps(second, groups), plain, rtol=1e-3, atol=1e-3)


def test_an_adapter_without_a_tokenizer_takes_its_base_s(tiny_folder, pairs_file, tmp_path):
    config = tiny_config(
        tiny_folder, pairs_file, tmp_path / "run", lora=LoraOptions(rank=2), max_steps=1, eval_fraction=0.0
    )
    final = train(config, quiet=True).final
    for path in final.glob("*token*"):
        path.unlink()
    (final / "chat_template.jinja").unlink()
    assert (
        load_tokenizer(str(final), LoadOptions()).get_vocab()
        == load_tokenizer(str(tiny_folder), LoadOptions()).get_vocab()
    )


def test_attention_that_is_not_to_be_had_is_told_before_anything_is_read(tmp_path):
    config = tiny_config(
        tmp_path / "no model", "no data.jsonl", tmp_path / "run", layout=LayoutOptions(attention="flex")
    )
    with pytest.raises(ConfigError, match="flex needs a CUDA device"):
        build_job(config, Reporter(quiet=True))


@pytest.mark.parametrize("has", [True, False])
def test_bf16_without_the_instructions_is_said(has, tiny_folder, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "preftune.train.models.has_bf16", lambda: has
    )  # as on a processor with or without them
    for precision in ("bf16", "fp32"):
        told = io.StringIO()
        config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", precision=precision)
        load_policy(config.model_plan, Reporter(console=Console(file=told)))
        assert ("has no bf16 products" in told.getvalue()) is (precision == "bf16" and not has)


@pytest.mark.parametrize("lora", [0, 2])
def test_bf16_trains(lora, tiny_folder, pairs_file, tmp_path):
    config = tiny_config(
        tiny_folder,
        pairs_file,
        tmp_path / "run",
        precision="bf16",
        lora=LoraOptions(rank=lora),
        epochs=10.0,
        optim={"learning_rate": 0.02 if lora else 3e-3},
    )
    result = train(config, quiet=True)
    rows = metric_rows(result.folder)
    assert rows[0]["eval_loss"] == pytest.approx(math.log(2.0), abs=1e-2)
    assert rows[-1]["eval_loss"] < 0.5 and rows[-1]["eval_rewards/accuracies"] == 1.0
    assert {tensor.dtype for tensor in weights_of(result.final).values()} == {torch.float32}


@pytest.mark.parametrize("lora", [0, 2])
def test_gradient_checkpointing_changes_nothing(lora, tiny_folder, pairs_file, tmp_path):
    """Equal to rounding; and it does recompute: each layer runs once more in backward."""
    finals, calls = [], []
    for wanted in (False, True):
        config = tiny_config(
            tiny_folder,
            pairs_file,
            tmp_path / f"run{wanted}",
            gradient_checkpointing=wanted,
            lora=LoraOptions(rank=lora),
            eval_fraction=0.0,
        )
        finals.append(weights_of(train(config, quiet=True).final))
        job = build_job(config, Reporter(quiet=True))
        assert job.policy.kept_positions == (0 if wanted else config.layout.micro_batch_tokens)
        count = []
        job.policy.model.get_decoder().layers[0].mlp.register_forward_pre_hook(
            lambda *_, count=count: count.append(1)
        )
        (piece,) = cut_step(job.source.take(1), DPO().signal, job.policy, config.layout)
        score(job.policy, piece.content.batch).logp.sum().backward()
        calls.append(len(count))
    for name, tensor in finals[0].items():
        torch.testing.assert_close(finals[1][name], tensor, rtol=1e-5, atol=1e-6)
    assert calls == [1, 2]


def test_tokens_of_held_out_pairs_are_kept(tiny_folder, pairs_file, tmp_path):
    """Under the tuned model and under the one it started from, as these two models score them themselves."""
    result = train(tiny_config(tiny_folder, pairs_file, tmp_path / "run"), quiet=True)
    rows = [
        json.loads(line)
        for line in (result.folder / "tokens.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]
    assert [(row["run"], row["pair"], row["side"]) for row in rows] == [
        ("run", pair, side) for pair in (0, 1) for side in ("chosen", "rejected")
    ]
    texts = ["".join(token["text"] for token in row["tokens"]) for row in rows]
    assert all(text.endswith("<|im_end|>") for text in texts) and "what is" in rows[0]["prompt"]
    last = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[-1])
    for k, side in enumerate(("chosen", "rejected")):
        ratios = [sum(token["logp"] - token["ref_logp"] for token in row["tokens"]) for row in rows[k::2]]
        assert sum(ratios) / len(ratios) == pytest.approx(last[f"eval_log_ratios/{side}"], rel=1e-4)
    assert "Token by token" in (result.folder / "report.html").read_text(encoding="utf-8")


def test_without_held_out_pairs_there_are_no_tokens(tiny_folder, pairs_file, tmp_path):
    result = train(
        tiny_config(tiny_folder, pairs_file, tmp_path / "run", eval_fraction=0.0, max_steps=1), quiet=True
    )
    assert not (result.folder / "tokens.jsonl").exists()


def test_labeled_completions_without_pairs_show_the_first_one(tiny_folder, tmp_path):
    rows = [{"prompt": f"p{k}", "completion": f"answer {k}", "label": k % 2 == 0} for k in range(8)]
    data = write_rows(tmp_path / "labels.jsonl", rows)
    result = train(tiny_config(tiny_folder, data, tmp_path / "run", objective=BNF(), max_steps=1), quiet=True)
    found = [json.loads(line) for line in (result.folder / "tokens.jsonl").read_text().splitlines()]
    assert [row["side"] for row in found] == ["completion"] * 2
