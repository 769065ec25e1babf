"""The benchmark against TRL runs on a tiny model, and refuses to compare two that differ."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from tests.folders import save_tiny_model

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")]


FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    spec = spec_from_file_location("group_update", FOLDER / "group_update.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *words: str) -> list[dict]:
    done = subprocess.run([sys.executable, str(FOLDER / name), *words, "--json"], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


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
    done = subprocess.run([sys.executable, str(FOLDER / "quick.py"), "--json"], capture_output=True, text=True, check=False)
    worse = {name: one for name, one in json.loads(done.stdout).items() if one["ratio"] > 1.05}
    assert not worse and done.returncode == 0, (worse, done.stderr)


def test_pairs_are_trained_alike(tiny):
    """Ours with a live and a cached reference, TRL and the plain baseline: the benchmark ends where their losses differ."""
    names = ["preftune-live", "preftune-cached", "trl-cached", "plain"]
    [found] = run("pair_training.py", "--mix", "long-prompt", "--model", tiny, "--pairs", "2", "--steps", "1", "--turns", "1",
                  "--variants", *names)  # fmt: skip
    assert found["apart"] < 1e-4 and list(found["pairs_per_second"]) == names
    assert found["positions"]["shared"] < found["positions"]["unshared"]
    assert found["ratios"]["preftune-cached / plain"]["clock"] > 0


def test_methods_against_sft(tiny):
    [found] = run("methods_vs_sft.py", "--model", tiny, "--steps", "1", "--groups", "2")
    assert list(found["methods"]) == ["bnf", "dpo", "kto"]
    kto = found["methods"]["kto"]
    assert kto["ratio_without_extra_rows"] < kto["ratio"] and found["methods"]["bnf"]["ratio_without_extra_rows"] == found[
        "methods"]["bnf"]["ratio"]  # fmt: skip


def test_the_floor(tiny):
    found = run("floor.py", "--mix", "short-prompt", "--model", tiny, "--pairs", "2", "--turns", "1", "--micro_batch_tokens", "512")
    assert [one["precision"] for one in found] == ["fp32", "bf16"]
    assert all(one["floor"] < one["seconds"] and sum(one["kinds"].values()) == pytest.approx(1) for one in found)
