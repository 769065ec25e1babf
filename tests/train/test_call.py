"""`preftune.train(...)` with keywords and with objects in memory; callbacks; what a result shows."""

import pandas
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import preftune
from preftune.errors import ConfigError
from preftune.objectives import DPO
from tests.folders import PAIRS

QUICK = {"max_steps": 2, "batch_size": 4, "eval_fraction": 0, "quiet": True}


def config_of(run) -> str:
    return (run.folder / "config.yaml").read_text()


def test_keywords_are_the_settings_of_the_command_line(tiny_folder, tmp_path):
    run = preftune.train(
        tiny_folder,
        pandas.DataFrame(PAIRS),
        "dpo",
        beta=0.3,
        lr=1e-4,
        lora=4,
        rows__max_length=64,
        output=tmp_path / "run",
        **QUICK,
    )
    text = config_of(run)
    assert all(part in text for part in ("beta: 0.3", "learning_rate: 0.0001", "rank: 4", "max_length: 64"))
    assert run.step == 2 and (run.final / "adapter_config.json").is_file()


def test_objects_are_taken(tiny_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    seen = []
    run = preftune.train(
        model,
        PAIRS,
        DPO(beta=0.2),
        tokenizer=tokenizer,
        output=tmp_path / "run",
        on_step=seen.append,
        **QUICK,
    )
    assert [row["step"] for row in seen] == [1, 2] and seen[0]["loss"] > 0
    with pytest.raises(TypeError):
        seen[0]["loss"] = 0.0
    assert "beta: 0.2" in config_of(run)
    table = run.metrics
    assert table.index.tolist() == [1, 2] and table.loc[1, "loss"] == pytest.approx(seen[0]["loss"])
    assert len(run.plot("loss", "grad_norm").axes) == 2 and "report.html" in run._repr_html_()
    with pytest.raises(ConfigError, match="no such metric; got nothing"):
        run.plot("nothing")


def test_a_callback_may_end_a_run(tiny_folder, tmp_path):
    settings = QUICK | {"max_steps": 6}
    run = preftune.train(
        tiny_folder, PAIRS, output=tmp_path / "run", on_step=lambda row: row["step"] == 3, **settings
    )
    assert (run.step, run.state) == (3, "finished") and run.final is not None


def test_a_reward_function_makes_a_run_on_policy(tiny_folder, tmp_path):
    def short(prompts, completions, **columns):
        return [-float(len(text)) for text in completions]

    run = preftune.train(
        tiny_folder,
        [{"prompt": row["prompt"]} for row in PAIRS],
        "rloo",
        reward=short,
        output=tmp_path / "run",
        num_completions=2,
        max_new_tokens=4,
        **QUICK,
    )
    assert "reward: python:" in config_of(run) and run.step >= 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"learnin_rate": 1}, "Unknown option --learnin_rate. Did you mean --learning_rate?"),
        ({"objective": "dop"}, "Unknown objective 'dop'. Did you mean dpo?"),
        ({"batch_size": 0}, "batch_size is out of range"),
        ({"data": None}, "train needs data"),
        ({"model": 3}, "model is no model; got int"),
        ({"reward": 3}, "not callable"),
    ],
)
def test_mistakes_get_the_sentences_of_the_command_line(given, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        preftune.train(**({"data": PAIRS, "output": tmp_path / "run"} | given))
    assert not (tmp_path / "run").exists()


def test_a_loaded_model_needs_its_tokenizer(tiny_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        preftune.train(model, PAIRS, output=tmp_path / "run")


def test_a_file_with_one_function_is_a_reward(tmp_path):
    from preftune.rewards import resolve_reward

    one = tmp_path / "mine.py"
    one.write_text("def score(prompts, completions, **columns):\n    return [1.0 for _ in completions]\n")
    assert resolve_reward(str(one))(prompts=["a"], completions=["b"]) == [1.0]
    one.write_text(one.read_text() + "def other(prompts, completions, **columns):\n    return []\n")
    with pytest.raises(ConfigError, match=r"names a file, not a function; got score, other"):
        resolve_reward(str(one))
