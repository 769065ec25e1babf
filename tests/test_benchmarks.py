"""The benchmarks run on tiny models, and refuse to compare variants that differ."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from preftune.model.attention_masks import packed_mask
from preftune.model.layout import LayoutOptions, collate
from tests.folders import save_tiny_model

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")]


FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str):
    spec = spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(name: str, *words: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *words, "--json"], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def bench():
    return script("group_update")


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield script("gpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("bench") / "model"))


def test_growth():
    """Three decades: over two, the fixed costs of small sizes bend the line."""
    [found] = run("growth.py", "--only", "near-duplicates of templated rows")
    assert found["sizes"] == [20, 200, 2000, 20000] and 0.5 < found["exponent"] < 1.15


def test_an_exponent_is_the_slope_of_logarithms():
    growth = script("growth")
    assert growth.exponent([1, 10, 100], [1.0, 100.0, 10_000.0]) == pytest.approx(2)
    assert growth.exponent([1, 10, 100], [1e-4, 1.0, 10.0]) == pytest.approx(1), "short times are left out"


def test_what_a_soak_counts_as_growth():
    soak = script("soak")
    assert soak.growth([100.0, 100.0, 100.0]) == 0
    assert soak.growth([100.0, 101.0, 102.0]) == pytest.approx(2 / 101)
    assert soak.growth([100.0, 101.0, 500.0, 103.0, 104.0]) < 0.06, "one disturbed round does not decide"
    calm = soak.Sample(minute=1.0, memory_mib=100.0, descriptors=6, threads=2, seconds=3.0, pace=9.0)
    assert soak.faults([calm] * 8) == []
    leaking = [replace(calm, memory_mib=100.0 + k, descriptors=6 + k) for k in range(8)]
    assert [text.split()[0] for text in soak.faults(leaking)] == ["memory", "descriptors"]


def test_startup(tiny):
    [found] = run("startup.py", "--model", tiny, "--pairs", "8", "--turns", "1")
    assert 0 < found["help"][0] < 0.5, "the help is written without importing torch"
    assert found["first_step"][0] > 0


def test_cost_model():
    """Shards move what the formulas say, to the entry; activations lie above theirs by copied keys and values
    only.
    """
    [found] = run("cost_model.py")
    for moves in found["moved"].values():
        assert all(one["measured"] == one["formula"] for one in moves.values()), found["moved"]
    for one in found["kept"].values():
        assert 0 <= one["measured"] - one["formula"] < 2500, found["kept"]


def test_engines_agree(tiny, tmp_path, monkeypatch, capsys):
    """On every character, and a difference is told."""
    engines = script("engines_agree")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Hello 123", "chosen": ["\u00e9"]}\n')
    words = [str(file), "--tokenizers", f"{tiny}/tokenizer.json", "--texts", "500", "--json"]
    monkeypatch.setattr("sys.argv", ["engines_agree.py", *words])
    with pytest.raises(SystemExit) as ended:
        engines.main()
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert found["used"]
    assert [found[kind]["texts"] for kind in engines.KINDS_OF_TEXTS] == [2, 500, 126974]
    assert not any(found[kind]["different"] for kind in engines.KINDS_OF_TEXTS)
    other, own = (engines.Tokenizer.from_file(f"{tiny}/tokenizer.json") for _ in range(2))
    other.add_tokens(["lo 1"])
    quick = engines.fastokens.Tokenizer.from_json_str(other.to_str())
    assert engines.compared(own, quick, ["Hello 123", "Hi", "\U0001f600 lo 1"])["different"] == 2
    assert engines.compared(own, quick, ["Hello 123", "Hi", "\U0001f600 lo 1"])["of_these_trusted"] == 1


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_group_update(bench, tiny, objective, monkeypatch, capsys):
    """Left to run, it ends with an error if loss or gradient differ."""
    monkeypatch.setattr(
        "sys.argv",
        [
            "group_update.py",
            "--model",
            tiny,
            "--objective",
            objective,
            "--updates",
            "1",
            "--only",
            "time",
            "--json",
        ],
    )
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
    done = subprocess.run(
        [sys.executable, str(FOLDER / "quick.py"), "--json"], capture_output=True, text=True, check=False
    )
    worse = {name: one for name, one in json.loads(done.stdout).items() if one["ratio"] > 1.05}
    assert not worse and done.returncode == 0, (worse, done.stderr)


def test_pairs_are_trained_alike(tiny):
    """Ours with a live and a cached reference, TRL and the plain baseline: the benchmark ends where their
    losses differ.
    """
    names = ["preftune-live", "preftune-cached", "trl-cached", "plain"]
    [found] = run(
        "pair_training.py",
        "--mix",
        "long-prompt",
        "--model",
        tiny,
        "--pairs",
        "2",
        "--steps",
        "1",
        "--turns",
        "1",
        "--variants",
        *names,
    )
    assert found["apart"] < 1e-4 and list(found["pairs_per_second"]) == names
    assert found["positions"]["shared"] < found["positions"]["unshared"]
    assert found["ratios"]["preftune-cached / plain"]["clock"] > 0


def test_methods_against_sft(tiny):
    [found] = run("methods_vs_sft.py", "--model", tiny, "--steps", "1", "--groups", "2")
    assert list(found["methods"]) == ["bnf", "dpo", "kto"]
    kto = found["methods"]["kto"]
    assert (
        kto["ratio_without_extra_rows"] < kto["ratio"]
        and found["methods"]["bnf"]["ratio_without_extra_rows"] == found["methods"]["bnf"]["ratio"]
    )


def test_the_floor(tiny):
    found = run(
        "floor.py",
        "--mix",
        "short-prompt",
        "--model",
        tiny,
        "--pairs",
        "2",
        "--turns",
        "1",
        "--micro_batch_tokens",
        "512",
    )
    assert [one["precision"] for one in found] == ["fp32", "bf16"]
    assert all(
        one["floor"] < one["seconds"] and sum(one["kinds"].values()) == pytest.approx(1) for one in found
    )


def gpu_lines(gpu, monkeypatch, capsys, *words: str) -> tuple[int, list[dict]]:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--tiny", "--steps", "1", "--json", *words])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    return end.value.code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_dry_run_for_a_gpu_runs_everything(gpu, monkeypatch, capsys):
    """All but FlexAttention, which a CPU does not have; variants agree on how far an update moves the loss."""
    mixes = ["short-prompt", "groups"]
    status, (about, *lines) = gpu_lines(gpu, monkeypatch, capsys, "--mixes", *mixes)
    assert status == 0
    assert about["device"] == "cpu"
    measured = [line for line in lines if "losses" in line]
    assert {line["variant"] for line in lines} == set(gpu.VARIANTS)
    assert {line["variant"] for line in measured} == set(gpu.VARIANTS) - {"preftune-varlen", "preftune-flex"}
    assert {(line["model"], line["method"], line["mix"]) for line in measured} == {
        (model, method, mix)
        for model in gpu.shapes(True)
        for method in gpu.METHODS
        for mix in mixes
        if method != "rloo" or mix == "groups"
    }
    assert all(
        "needs a CUDA device" in line["left_out"]
        for line in lines
        if line["variant"] in ("preftune-varlen", "preftune-flex")
    )
    assert all(0 < line["utilisation"] < 1 and line["tokens_per_second"] > 0 for line in measured)
    assert "tiny, groups, rloo, preftune-sdpa: " in "\n".join(map(gpu.sentence, lines))


def test_the_steps_for_a_gpu_run_on_a_cpu(monkeypatch, capsys):
    check = script("gpu_check")
    words = ["--device", "cpu", "--tiny", "--only", "train:bf16", "train:resume"]
    monkeypatch.setattr("sys.argv", ["gpu_check.py", *words])
    with pytest.raises(SystemExit) as end:
        check.main()
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["step"] for line in found] == ["train:bf16", "train:bf16-weights", "train:resume"]
    assert not end.value.code and {line["status"] for line in found} == {0}, found
    assert check.run_step("x", [sys.executable, "-c", "raise SystemExit(3)"], 60)["status"] == 3


def test_a_variant_that_learns_otherwise_is_told(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu.plain_baseline, "BETA", 0.05)
    words = ["--mixes", "short-prompt", "--methods", "dpo-cached", "--variants", "preftune-sdpa", "plain"]
    status, (_, *lines) = gpu_lines(gpu, monkeypatch, capsys, *words)
    assert status == 1
    assert [line["agrees"] for line in lines if line["model"] == "tiny"] == [True, False]
    assert "nothing to compare" in gpu.sentence(lines[1])


def test_what_no_time_is_left_for_is_told(gpu, monkeypatch, capsys):
    status, (_, *lines) = gpu_lines(gpu, monkeypatch, capsys, "--minutes", "0")
    assert status == 0
    assert {line["left_out"] for line in lines} == {"no time was left"}


def test_the_operations_that_are_needed_are_those_that_torch_counts(gpu):
    """Torch counts whole rows of attention scores; ours are the entries of the mask."""
    shape = gpu.shapes(True)["tiny"]
    (group,) = gpu.random_groups("groups", 1, shape.config.vocab_size, 20)
    batch = collate([group], LayoutOptions(micro_batch_tokens=4), "shared")
    assert gpu.looks(group) == int(packed_mask(batch).sum())
    model, _ = gpu.build(shape, torch.device("cpu"))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        states = model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[0]
        model.lm_head(states[batch.predict_at])
    config, width = shape.config, batch.input_ids.shape[1]
    a_look = 4 * config.num_hidden_layers * config.hidden_size
    expected = 3 * (counter.get_total_flops() - a_look * width**2 + a_look * gpu.looks(group))
    assert gpu.needed_operations("bnf", shape, [group]) == expected
