"""Every objective of the table trains from the command line and lowers its own loss."""

import pytest

from preftune.cli.main import main
from preftune.objectives import OBJECTIVES
from preftune.types import Hybrid, Labels, Pairs, Rewards
from tests.folders import PAIRS, metric_rows, save_tiny_model, write_rows

DATA = {Pairs: "pairs.jsonl", Labels: "pairs.jsonl", Rewards: "rewarded.jsonl", Hybrid: "hybrid.jsonl"}
FLAGS = {"tis-dpo": "--reference.contrast_positive other --reference.contrast_negative third"}
"""What an objective cannot do without."""


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    save_tiny_model(folder / "other", seed=1)
    save_tiny_model(folder / "third", seed=2)
    write_rows(folder / "pairs.jsonl", PAIRS)
    rewarded = [
        {
            "prompt": row["prompt"],
            "completions": [row["chosen"], row["rejected"], "Perhaps."],
            "rewards": [1.0, 0.0, 0.4],
        }
        for row in PAIRS
    ]
    write_rows(folder / "rewarded.jsonl", rewarded)
    hybrid = [
        {
            "prompt": row["prompt"],
            "completions": [row["chosen"], row["rejected"], "Perhaps."],
            "pairs": [[0, 1]],
            "sources": ["policy", "reference", "policy"],
        }
        for row in PAIRS
    ]
    write_rows(folder / "hybrid.jsonl", hybrid)
    return folder


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_trains(name, playground, tiny_folder, tmp_path, monkeypatch, capsys):
    """20 steps on all of a small file at once, so that the losses of two steps can be compared."""
    monkeypatch.chdir(playground)
    monkeypatch.setenv("PREFTUNE_CACHE", str(playground / "cache"))
    words = (
        f"train --objective {name} --data {DATA[OBJECTIVES[name]().signal]} --model {tiny_folder} --output {tmp_path / 'run'} "
        f"--batch_size 8 --max_steps 20 --epochs 20 --learning_rate 3e-3 --schedule constant --eval_fraction 0"
    )
    assert main([*words.split(), *FLAGS.get(name, "").split()]) == 0, capsys.readouterr().err
    losses = [row["loss"] for row in metric_rows(tmp_path / "run")]
    assert len(losses) == 20
    if OBJECTIVES[name]().value_is_surrogate:  # the value need not fall, but it must move
        assert losses[-1] != losses[0]
    else:
        assert losses[-1] < losses[0] - 1e-4 * abs(losses[0]), losses
