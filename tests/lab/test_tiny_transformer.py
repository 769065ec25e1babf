"""runs/tiny_transformer.py in miniature: its pieces do what its table says; nothing is confirmed here."""

import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from preftune.model.load import LoadOptions
from preftune.sampling.sample import load_sampler
from preftune.types import Record

SCRIPT = Path(__file__).parents[2] / "runs" / "tiny_transformer.py"


@pytest.fixture(scope="module")
def tiny():
    spec = importlib.util.spec_from_file_location("tiny_transformer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def size(tiny):
    return tiny.Size(base_steps=4, base_rows=256, pairs=48, steps=4, every=2, batch=8, measured=16)


@pytest.fixture(scope="module")
def base(tiny, size, tmp_path_factory):
    return tiny.make_base(tmp_path_factory.mktemp("tiny") / "base-1", 1, size)


def test_the_law_of_lengths(tiny):
    law = tiny.length_law()
    assert law.sum() == pytest.approx(1) and law[:2].sum() == 0 and law.argmax() == 23
    assert law[19] / law[23] == pytest.approx(np.exp(-0.5))
    assert tiny.law_gap([23, 23]) == pytest.approx(-np.log(law[23]))
    drawn = np.random.default_rng(0).choice(33, 20_000, p=law)
    assert 0 <= tiny.law_gap(drawn) < 0.002
    assert tiny.law_gap(drawn - 2) > 0.1


def test_strings_follow_the_law_and_the_alphabet(tiny):
    rows = tiny.strings(np.random.default_rng(0), 4000)
    assert len({row["prompt"] for row in rows}) == 4000
    assert tiny.law_gap([len(row["completion"]) + 1 for row in rows]) < 0.01
    walks = [row["prompt"][-1] + row["completion"] for row in rows]
    steps = [(ord(b) - ord(a)) % 16 for walk in walks for a, b in pairwise(walk)]
    assert np.bincount(steps)[1:] / len(steps) == pytest.approx([0.6, 0.3, 0.1], abs=0.01)


def test_a_base_keeps_training_and_held_out_prompts_apart(tiny, base):
    pairs, held = tiny.read_rows(base / "pairs.jsonl"), tiny.read_rows(base / "held_pairs.jsonl")
    assert not {row["prompt"] for row in pairs} & {row["prompt"] for row in held}
    assert not {row["prompt"] for row in pairs} & {
        row["prompt"] for row in tiny.read_rows(base / "held_prompts.jsonl")
    }
    assert all(len(row["chosen"]) < len(row["rejected"]) for row in [*pairs, *held])
    assert set(json.loads((base / "base.json").read_text())) == {
        "gap",
        "length",
        "completions",
        "pairs",
        "ended",
    }


def test_log_ratios_are_those_of_plain_logits(tiny, base):
    model, renderer = load_sampler(str(base / "model"), LoadOptions(), "fp32", "cpu")
    other, _ = load_sampler(str(base / "untrained"), LoadOptions(), "fp32", "cpu")
    records = [Record(prompt="abcd", completions=("efg", "e")), Record(prompt="p", completions=("a", "bb"))]
    groups = [renderer.render(record) for record in records]
    found = tiny.log_ratios(model, other, groups)
    for g, group in enumerate(groups):
        for k, completion in enumerate(group.completions):
            ids = torch.tensor([[*group.prompt, *completion]])
            with torch.no_grad():
                logps = [
                    one(ids).logits[0, len(group.prompt) - 1 : -1].log_softmax(-1) for one in (model, other)
                ]
            plain = [logp.gather(1, torch.tensor(completion).long()[:, None]).sum().item() for logp in logps]
            assert found[g, k] == pytest.approx(plain[0] - plain[1], abs=1e-4)
    assert np.abs(tiny.log_ratios(model, model, groups)).max() == 0


def test_every_method_runs_and_is_read_again(tiny, base, size, tmp_path):
    for method, (_, on_policy) in tiny.METHODS.items():
        found = tiny.run_method(base, tmp_path / method, method, 1e-3, 1, size)
        assert list(found["lengths"]) == ["2", "4"] and found["steps"] == 4
        assert found["samples"] == (4 * 8 * 2 if on_policy else 0)
        assert len(found["chosen"]) == len(found["rejected"]) > 0
    kept = tmp_path / "ppo" / "measured.json"
    kept.write_text(json.dumps({"marked": True}))
    assert tiny.run_method(base, tmp_path / "ppo", "ppo", 1e-3, 1, size) == {"marked": True}


def test_a_contrast_with_nothing_left_to_teach_counts_with_the_policy_it_reached(tiny, base, tmp_path):
    size = tiny.Size(steps=60, every=30, batch=8, measured=16)
    found = tiny.run_method(
        base, tmp_path / "run", "on-dpo", 3e-2, 1, size
    )  # ends at one token within a few steps
    assert found["steps"] < 30 and found["lengths"] == {"30": 1.0, "60": 1.0}


def test_verdicts_on_numbers_worked_out_by_hand(tiny):
    done = {
        "long": [
            {"lengths": {"10": x}, "chosen": [1.0, 2.0], "rejected": [0.0, 0.5]} for x in (20.0, 21.0, 22.0)
        ],
        "short": [
            {"lengths": {"10": x}, "chosen": [0.0, 0.0], "rejected": [0.0, 0.0]} for x in (10.0, 12.0, 14.0)
        ],
    }
    clause = {"id": "x", "longer": "long", "shorter": "short", "at": [10]}
    [row] = tiny.length_verdicts(clause | {"above": 8.9}, done)
    assert row["seeds"] == [10.0, 9.0, 8.0] and row["mean"] == 9.0 and row["verdict"] == "pass"
    assert row["high"] - 9.0 == pytest.approx(4.302653 / np.sqrt(3))  # Student's t, two degrees of freedom
    assert tiny.length_verdicts(clause | {"above": 9.1}, done)[0]["verdict"] == "fail"
    assert tiny.length_verdicts(clause, done)[0]["verdict"] == "-"
    done["long"][0]["lengths"]["10"] = 9.5  # the mean stays above the bound, the sign of one seed does not
    assert tiny.length_verdicts(clause | {"above": 1.0}, done)[0]["verdict"] == "fail"
    rows = tiny.margin_verdicts({"id": "m", "larger": "long", "smaller": "short", "beta": 0.5}, done)
    assert [row["mean"] for row in rows] == [0.625, 0.75, 0.125, 0.0, 0.0]
    assert rows[0]["verdict"] == "fail"  # two pairs per seed, 0.5 and 0.75: their interval reaches below 0


def test_every_frozen_clause_can_be_judged(tiny):
    criteria, size = yaml.safe_load(tiny.CRITERIA.read_text()), tiny.Size()
    assert tiny.TUNING_SEED not in criteria["seeds"] and len(set(criteria["seeds"])) == 3
    assert {
        (run["method"] in tiny.METHODS, run["rate"] in tiny.RATES) for run in criteria["runs"].values()
    } == {(True, True)}
    for clause in criteria["lengths"]:
        assert {clause["longer"], clause["shorter"]} <= set(criteria["runs"])
        assert all(step % size.every == 0 and step <= size.steps for step in clause["at"])
    assert {clause[side] for clause in criteria["margins"] for side in ("larger", "smaller")} <= set(
        criteria["runs"]
    )
