"""A loss of the user's own: the page's example is checked, trains and resumes; what cannot work is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest

from preftune.cli.main import main
from preftune.cli.settings import parse_settings, settings_from_run
from preftune.errors import ConfigError
from preftune.objectives import DPO, make_objective, objective_name
from preftune.objectives.mixture import Mixture
from preftune.race.contenders import contenders
from preftune.train.options import TrainConfig
from tests.folders import metric_rows, tiny_config

PAGE = (Path(__file__).parents[2] / "docs" / "add_an_objective.md").read_text(encoding="utf-8")
EXAMPLE = PAGE.split("```python\n")[1].split("```")[0]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a variation of the example and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user

    def written(old="", new="", name="my_loss.py:SquaredHinge") -> str:
        assert old in EXAMPLE
        Path("my_loss.py").write_text(EXAMPLE.replace(old, new), encoding="utf-8")
        return name

    return written


def test_the_example_trains_and_resumes(own, tiny_folder, pairs_file, tmp_path, capsys):
    assert len([line for line in EXAMPLE.splitlines() if line]) <= 15
    words = f"train --objective {own()} --objective.beta 0.2 --data {pairs_file} --model {tiny_folder}"
    words += " --output run --batch_size 4 --max_steps 2 --epochs 2 --save_every 1 --eval_fraction 0"
    assert main(words.split()) == 0, capsys.readouterr().err
    assert len(metric_rows(tmp_path / "run")) == 2
    config = settings_from_run(TrainConfig, Path("run"))
    assert (objective_name(config.objective), config.objective.beta) == ("my_loss.py:SquaredHinge", 0.2)
    shutil.rmtree("run/final")
    Path("run/status.json").write_text(json.dumps({"state": "interrupted", "step": 2, "message": ""}))
    own("** 2", "** 3")
    assert main(["train", "--resume", "run"]) == 2
    assert "other content of objective" in capsys.readouterr().err
    own()
    assert main(["train", "--resume", "run"]) == 0, capsys.readouterr().err
    assert Path("run/final").is_dir()


def test_the_example_keeps_every_contract(own, capsys):
    assert main(["objectives", "--check", own(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) >= 17 and not any(one["failure"] for one in found)


BROKEN = {
    "length_normalized": (
        'chosen_fall = "possible"',
        'chosen_fall = "possible"\n    length_normalized = True',
    ),
    "chosen_fall": ('    chosen_fall = "possible"\n', ""),
    "the loss is pure": ("** 2", "** 2 * __import__('torch').rand(1)"),
    "needs are what is read": ('{"ref_logp"}', '{"ref_logp", "entropy"}'),
    "hyperparameters out of range are refused": ("positive(0.1)", "0.1"),
    "a unit does not look at another group": ("** 2", "** 2 + rewards.mean()"),
    "extreme log-probabilities give finite numbers": ("** 2", "** 2 + (-rewards).exp().exp().mean()"),
    "metrics are detached numbers": ("pair_losses(loss,", "pair_losses(loss.detach(),"),
}


@pytest.mark.parametrize("contract", BROKEN)
def test_a_broken_loss_is_told_by_contract(contract, own, capsys):
    assert main(["objectives", "--check", own(*BROKEN[contract])]) == 1
    out = capsys.readouterr().out
    assert re.search(rf"^FAILS  {re.escape(contract)}\n       \S", out, flags=re.MULTILINE), out


REFUSED = {
    "my_loss.py:Squared": ("", "", "has no attribute 'Squared'. Did you mean SquaredHinge?"),
    "my_loss.py:log_ratio": ("", "", "is not an objective; got a function"),
    "my_loss.py:": ("", "", "The name of the objective is not complete"),
    "none.py:X": ("", "", "there is no file 'none.py'"),
    "my_loss.py:SquaredHinge": ("from dataclasses", "import nothing_here\nfrom dataclasses", "raised"),
    "./my_loss.py:SquaredHinge": ("frozen=True", "frozen=False", "can be changed after it was made"),
    "my_loss.py:SquaredHinge()": (
        "positive(0.1)",
        "positive()",
        "beta of my_loss.py:SquaredHinge has no default",
    ),
    "my_loss.py:SquaredHinge(beta=1)": ("__call__", "call", "is not complete; got no __call__"),
    "my_loss.py:SquaredHinge(beta=-1)": ("", "", "beta is out of range; got -1.0"),
    "my_loss.py:SquaredHinge(bet=1)": (
        "",
        "",
        "has no such setting; got bet; expected beta. Did you mean beta?",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_an_objective(name, own):
    old, new, wanted = REFUSED[name]
    own(old, new)
    with pytest.raises(ConfigError) as told:
        make_objective(name)
    assert wanted in str(told.value) and "\n" not in str(told.value)


def test_an_impure_loss_is_not_trained(own, tiny_folder, pairs_file, tmp_path):
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot be trained: two calls with the same input differ"):
        replace(config, objective=make_objective(own("** 2", "** 2 * __import__('torch').rand(1)")))


def test_the_name_works_wherever_a_name_does(own, tmp_path):
    name = own()
    wanted = f"{name}(beta=0.5)"
    mixed, alone = Mixture(terms=f"dpo + 2*{wanted}").parsed[1], make_objective(wanted)
    assert (mixed.weight, mixed.objective) == (2.0, replace(mixed.objective, beta=0.5))
    assert [type(one.objective).__name__ for one in contenders(f"dpo,{wanted}")] == ["DPO", "SquaredHinge"]
    assert contenders(f"dpo,{wanted}")[1].lab_method().objective.beta == 0.5
    (tmp_path / "a.yaml").write_text(f"objective: {wanted}\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text(f"objective:\n  name: {name}\n  beta: 0.5\n", encoding="utf-8")
    base = ["--data", "x.jsonl", "--output", "out"]
    for words in (["--objective", wanted], ["--config", "a.yaml"], ["--config", "b.yaml"]):
        found = parse_settings(TrainConfig, [*base, *words], prog="preftune train", description="")
        assert (objective_name(found.objective), found.objective.beta) == (name, 0.5)
    assert TrainConfig(data="x.jsonl", output="out", objective=wanted).objective.beta == alone.beta  # type: ignore[arg-type]
    assert TrainConfig(data="x", output="out", objective="dpo(beta=0.3)").objective == DPO(beta=0.3)  # type: ignore[arg-type]
