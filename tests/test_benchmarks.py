"""The benchmark against TRL runs on a tiny model, and refuses to compare two that differ."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from tests.folders import save_tiny_model

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")]


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[1] / "benchmarks" / "group_update.py"
    spec = spec_from_file_location("group_update", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("bench") / "model"))


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_group_update(bench, tiny, objective, monkeypatch, capsys):
    """Left to run, it ends with an error if loss or gradient differ."""
    monkeypatch.setattr("sys.argv", ["group_update.py", "--model", tiny, "--objective", objective, "--updates", "1",
                                     "--only", "time", "--json"])  # fmt: skip
    bench.main()
    result = json.loads(capsys.readouterr().out)
    assert max(result["agreement"].values()) < 1e-4
    assert set(result["seconds"]) == set(bench.VARIANTS)
    assert result["positions"]["preftune"] < result["positions"]["trl"]
    assert "times the completions/s of trl" in "\n".join(bench.sentences(result))


def test_two_that_differ_are_not_compared(bench, tiny):
    policy = bench.our_policy(tiny)
    groups = bench.random_groups(1, policy.model.config.vocab_size)
    behaviour = bench.behaviour_logps(policy, groups, 0.02)
    ours = bench.our_side(policy, bench.OBJECTIVES["rloo"], groups, behaviour)
    theirs = bench.trl_side(tiny, "rloo", groups, bench.behaviour_logps(policy, groups, 0.03))
    with pytest.raises(SystemExit, match="do not compute the same"):
        bench.check_agreement(ours, theirs, size=1.0)


def test_a_step_costs_no_more_than_it_did():
    """Operations, calls, kept bytes and padding against the committed baseline; times are measured elsewhere."""
    done = subprocess.run([sys.executable, "benchmarks/quick.py", "--json"], capture_output=True, text=True, check=False,
                          cwd=Path(__file__).parents[1])  # fmt: skip
    worse = {name: one for name, one in json.loads(done.stdout).items() if one["ratio"] > 1.05}
    assert not worse and done.returncode == 0, (worse, done.stderr)
