"""The verb train-reward-model: what it saves, what it says of held-out pairs, and its mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from preftune.cli.main import main
from preftune.rewards import ask, resolve_reward
from preftune.train.runlog import RunFolder
from tests.folders import PAIRS, metric_rows, save_tiny_model, write_rows

LEARN = ["--learning_rate", "0.01", "--schedule", "constant", "--batch_size", "4", "--epochs", "12"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    home = tmp_path_factory.mktemp("reward")
    held = [{**row, "prompt": row["prompt"].replace("Question", "Then question")} for row in PAIRS]
    return {
        "model": str(save_tiny_model(home / "model")),
        "data": write_rows(home / "pairs.jsonl", PAIRS),
        "held": write_rows(home / "held.jsonl", held),
    }


def train(files, output, *words) -> tuple[int, list[str]]:
    start = [
        "--data",
        files["data"],
        "--eval_data",
        files["held"],
        "--model",
        files["model"],
        "--output",
        str(output),
    ]
    return main(["train-reward-model", *start, *LEARN, *words])


def plainly(folder, rows) -> tuple[list[float], list[float]]:
    """The scores of chosen and rejected as a user of transformers gets them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = []
    for side in ("chosen", "rejected"):
        dialogues = [
            [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r[side]}]
            for r in rows
        ]
        batch = tokenizer.apply_chat_template(dialogues, padding=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            scores.append(model(**batch).logits[:, 0].tolist())
    return scores[0], scores[1]


@pytest.mark.parametrize("adapter", [[], ["--lora_r", "4", "--learning_rate", "0.02", "--epochs", "20"]])
def test_it_learns_and_says_how_well(files, tmp_path, capsys, adapter):
    assert train(files, tmp_path / "run", *adapter, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "finished" and told["evaluation"]["num_pairs"] == 8
    assert told["evaluation"]["accuracy"]["mean"] == 1.0
    held = [json.loads(line) for line in Path(files["held"]).read_text(encoding="utf-8").splitlines()]
    chosen, rejected = plainly(told["final"], held)
    margin = np.array(chosen) - np.array(rejected)
    assert told["evaluation"]["nll"]["mean"] == pytest.approx(np.mean(np.log1p(np.exp(-margin))), rel=1e-4)
    last = [row for row in metric_rows(tmp_path / "run") if row["phase"] == "eval"][-1]
    assert margin.mean() == pytest.approx(
        last["eval_rewards/margins"], rel=1e-4
    )  # the loop saw the same rewards
    assert json.loads((tmp_path / "run" / "reward_evaluation.json").read_text()) == told["evaluation"]
    page = (tmp_path / "run" / "reward_evaluation.md").read_text()
    assert (
        page.startswith("# Reward model on 8 held-out pairs of 8 prompts")
        and page.count("\n| 0.") + page.count("\n| 1.") == 10
    )
    assert not (tmp_path / "run" / "final" / "adapter_config.json").exists()


def test_margin_and_centring_act(files, tmp_path, capsys):
    for name, words in {"plain": [], "margin": ["--margin", "2"], "centred": ["--centring", "5"]}.items():
        assert train(files, tmp_path / name, *words, "--json", "--max_steps", "3") == 0
    capsys.readouterr()
    losses = {name: metric_rows(tmp_path / name)[1]["loss"] for name in ("plain", "margin", "centred")}
    assert losses["plain"] == pytest.approx(np.log(2), abs=1e-6)  # the head starts at 0
    assert losses["margin"] == pytest.approx(np.log1p(np.exp(2)), abs=1e-6)
    finals = {name: metric_rows(tmp_path / name)[-1] for name in ("plain", "centred")}

    def origin(row):
        return abs(row["eval_rewards/chosen"] + row["eval_rewards/rejected"])

    assert origin(finals["centred"]) != origin(finals["plain"])


def test_told_in_words(files, tmp_path, capsys):
    assert train(files, tmp_path / "run", "--max_steps", "2", "--num_bins", "2") == 0
    out, err = capsys.readouterr()
    assert "reference" not in err  # log-ratios say nothing of a body that is trained for a head
    assert (
        "| accuracy |" in out and f"reward model  {tmp_path}/run/final" in out and out.count("to 1.00 |") == 1
    )
    assert main(["sample", "--model", str(tmp_path / "run" / "final"), "--prompt", "Hi"]) == 2
    assert "cannot write text" in capsys.readouterr().err


def test_nothing_held_out(files, tmp_path, capsys):
    words = [
        "--data",
        files["data"],
        "--eval_fraction",
        "0",
        "--model",
        files["model"],
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(["train-reward-model", *words, "--max_steps", "1"]) == 0
    assert "nothing is held out" in capsys.readouterr().out
    assert not (tmp_path / "run" / "reward_evaluation.json").exists()


@pytest.mark.parametrize("command", ["train-reward-model", "train"])
def test_resume(command, files, tmp_path, capsys):
    """A finished run without an evaluation gets one; with one, nothing is left. Messages name `train --resume`."""
    assert train(files, tmp_path / "run", "--max_steps", "2", "--json") == 0
    first = capsys.readouterr().out
    (tmp_path / "run" / "reward_evaluation.json").unlink()
    assert main([command, "--resume", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] == json.loads(first)["evaluation"]
    assert main([command, "--resume", str(tmp_path / "run")]) == 2
    assert "is finished" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_to_the_same_model(files, tmp_path, capsys):
    words = ["--max_steps", "4", "--save_every", "2", "--json"]
    assert train(files, tmp_path / "whole", *words) == 0 and train(files, tmp_path / "cut", *words) == 0
    whole = json.loads(capsys.readouterr().out.split("}\n{")[0] + "}")
    run = RunFolder(path=tmp_path / "cut")
    (run.path / "reward_evaluation.json").unlink()
    run.set_state("interrupted", 2)
    assert main(["train-reward-model", "--resume", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] == whole["evaluation"]


def test_mistakes(files, tmp_path, capsys):
    for words, wanted in (
        (["--margin", "-1"], "bradley-terry: margin"),
        (["--num_bins", "0"], "num_bins is out of range"),
        (["--reference.mode", "live"], "Unknown option"),
        (["--objective", "dpo"], "Unknown option"),
        (["--eval_fraction", "0.5"], "eval_fraction has no effect with eval_data"),
    ):
        assert train(files, tmp_path / "run", *words) == 2, words
        assert wanted in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert main(["train-reward-model", "--resume"]) == 2
    assert main(["train-reward-model", "--resume", str(tmp_path)]) == 2
    start = [
        "--data",
        files["data"],
        "--model",
        files["model"],
        "--output",
        str(tmp_path / "dpo"),
        "--max_steps",
        "1",
    ]
    assert main(["train", *start, "--objective", "dpo", "--json"]) == 0
    capsys.readouterr()
    assert main(["train-reward-model", "--resume", str(tmp_path / "dpo")]) == 2
    assert "no run of a reward model" in capsys.readouterr().err


def evaluations(folder) -> list[dict]:
    return [row for row in metric_rows(folder) if row["phase"] == "eval"]


def test_a_reward_model_is_trained_further(files, tmp_path, capsys):
    """The second run begins with the numbers that the first one ends with, and goes on learning."""
    assert train(files, tmp_path / "first", "--max_steps", "4") == 0
    second = {**files, "model": str(tmp_path / "first")}
    assert train(second, tmp_path / "second", "--max_steps", "6", "--json") == 0
    last, (start, *_, end) = evaluations(tmp_path / "first")[-1], evaluations(tmp_path / "second")
    for name in ("eval_loss", "eval_rewards/margins", "eval_rewards/chosen"):
        assert start[name] == pytest.approx(last[name], rel=1e-5)
    assert 0 < end["eval_loss"] < start["eval_loss"] < 0.69
    chosen, rejected = plainly(tmp_path / "second" / "final", PAIRS)
    assert np.mean(chosen) > np.mean(rejected)
    capsys.readouterr()
    words = ["--data", files["data"], "--output", str(tmp_path / "dpo"), "--objective", "dpo"]
    assert main(["train", "--model", str(tmp_path / "first"), *words]) == 2
    assert "train it further with preftune train-reward-model" in capsys.readouterr().err


def test_an_ensemble_of_heads(files, tmp_path, capsys):
    """Plain transformers loads all heads; they start apart, learn, disagree, and are trained further."""
    assert train(files, tmp_path / "run", "--heads", "3", "--max_steps", "20", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    model = AutoModelForSequenceClassification.from_pretrained(told["final"]).eval()
    assert model.config.num_labels == 3 and model.config.problem_type == "regression"
    assert model.config.id2label == {0: "head_0", 1: "head_1", 2: "head_2"}
    held = [json.loads(line) for line in Path(files["held"]).read_text(encoding="utf-8").splitlines()]
    sides = [plain_heads(told["final"], held, side) for side in ("chosen", "rejected")]
    margins = sides[0] - sides[1]
    last = evaluations(tmp_path / "run")[-1]
    assert last["eval_rewards/margins"] == pytest.approx(margins.mean(), rel=1e-4)
    assert last["eval_rewards/disagreement"] == pytest.approx(margins.std(1).mean(), rel=1e-4)
    expected = np.log1p(np.exp(-margins)) + 0.01 * (sides[0] + sides[1]) ** 2
    assert last["eval_loss"] == pytest.approx(expected.mean(), rel=1e-4)
    assert told["evaluation"]["nll"]["mean"] == pytest.approx(
        np.log1p(np.exp(-margins.mean(1))).mean(), rel=1e-4
    )
    first = evaluations(tmp_path / "run")[0]
    assert first["eval_rewards/disagreement"] > 0.01 and last["eval_loss"] < first["eval_loss"]
    further = {**files, "model": told["final"]}
    assert train(further, tmp_path / "further", "--heads", "3", "--max_steps", "1") == 0
    assert evaluations(tmp_path / "further")[0]["eval_loss"] == pytest.approx(last["eval_loss"], rel=1e-5)
    capsys.readouterr()
    assert train(further, tmp_path / "two", "--heads", "2") == 2
    assert "keeps its heads; got heads 2; expected the 3 of" in capsys.readouterr().err


def plain_heads(folder, rows, side) -> np.ndarray:
    """All outputs, as a user of transformers gets them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    dialogues = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
        for row in rows
    ]
    batch = tokenizer.apply_chat_template(dialogues, padding=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.double().numpy()


def test_heads_start_from_the_seed(files, tmp_path, capsys):
    """Values and gradient of the first step by torch alone: heads are drawn from the seed, width 32."""
    for seed in ("0", "1"):
        words = ["--heads", "2", "--max_steps", "1", "--seed", seed, "--learning_rate", "0"]
        assert train(files, tmp_path / seed, *words) == 0
        saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / seed / "final").score.weight
        drawn = torch.randn(2, 32, generator=torch.Generator().manual_seed(int(seed))) / 32**0.5
        torch.testing.assert_close(saved.detach(), drawn)


STEPS = [
    {
        "prompt": f"Question {k}: what is {word}?",
        "completions": [f"It is {word}.", "No idea at all."],
        "labels": [True, False],
    }
    for k, word in enumerate(("sea", "tea", "snow", "sun", "ice", "rain", "fog", "mud"), 1)
]


def test_a_process_model_learns_steps(files, tmp_path, capsys):
    """It tells right steps from wrong ones, on held-out answers too, and the reward reads what was trained."""
    data, output = write_rows(tmp_path / "steps.jsonl", STEPS[:6]), tmp_path / "run"
    held = write_rows(tmp_path / "held.jsonl", STEPS[6:])
    words = ["--data", data, "--eval_data", held, "--model", files["model"], "--output", str(output)]
    assert main(["train-reward-model", "--process", "true", *words, *LEARN]) == 0
    assert "accuracy" in capsys.readouterr().out
    written = (tmp_path / "run.steps.jsonl").read_text().splitlines()
    assert json.loads(written[0])["completions"] == ["It is sea.", "It is sea.\nNo idea at all."]
    found = json.loads((output / "reward_evaluation.json").read_text())
    assert found["num_pairs"] == 4 and found["accuracy"]["mean"] == 1.0
    first = next(row for row in metric_rows(output) if "loss" in row)
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)

    reward = resolve_reward(f"process(path='{output / 'final'}', give=steps)")
    text = "It is fog.\nNo idea at all."
    one = ask(reward, "", [STEPS[6]["prompt"]], [text], {})
    scores = [plain_score(output / "final", STEPS[6]["prompt"], part) for part in (text.split("\n")[0], text)]
    expected = [1 / (1 + np.exp(-score)) for score in scores]
    assert one.steps[0] == pytest.approx(expected, abs=1e-5) and expected[0] > 0.5 > expected[1]
    for give, value in (
        ("min", min(expected)),
        ("product", expected[0] * expected[1]),
        ("mean", sum(expected) / 2),
        ("last", expected[1]),
    ):
        whole = resolve_reward(f"process(path='{output / 'final'}', give={give})")
        assert ask(whole, "", [STEPS[6]["prompt"]], [text], {}).rewards == pytest.approx([value], abs=1e-5)
    gains = resolve_reward(f"process(path='{output / 'final'}', give=gains, raw=true)")
    found = ask(gains, "", [STEPS[6]["prompt"]] * 2, [text, ""], {})
    assert found.steps[0] == pytest.approx([scores[0], scores[1] - scores[0]], abs=1e-4)
    assert found.rewards[1] is None


def plain_score(folder, prompt, beginning) -> float:
    """The score of a beginning by plain transformers, the prompt from the template and nothing behind the text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, beginning)]
    with torch.no_grad():
        return float(model(torch.tensor([ids[0] + ids[1]])).logits[0, 0])


@pytest.mark.parametrize(
    ("words", "rows", "told"),
    [
        (["--process", "true", "--margin", "1"], STEPS, "margin has no effect"),
        (["--step_loss", "squared"], STEPS, "step_loss has no effect"),
        (["--process", "true"], PAIRS, "no labels or values of steps"),
        (
            ["--process", "true"],
            [{"prompt": "p", "completions": ["a"], "rewards_steps": [[-0.5]]}],
            "Add --step_loss squared",
        ),
        (["--process", "true"], [{"prompt": "p", "completions": ["a"], "rewards_steps": [None]}], "no step"),
    ],
)
def test_mistakes_with_steps(files, tmp_path, capsys, words, rows, told):
    data, output = write_rows(tmp_path / "d.jsonl", rows), tmp_path / "run"
    start = ["--data", data, "--model", files["model"], "--output", str(output)]
    assert main(["train-reward-model", *start, *words]) != 0
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err and not output.exists()
