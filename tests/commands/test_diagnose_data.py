"""`preftune diagnose data`: what it measures of files and of a tiny model, what it reports, and what it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.cli.main import main
from preftune.data.options import DataOptions
from preftune.data.records import LoadedRecords
from preftune.data.render import make_renderer
from preftune.diagnosis.data_measures import OwnSamples
from preftune.diagnosis.data_model import choose_prompts, measure_own, score_data_completions
from preftune.diagnosis.data_rows import SignalRows, read
from preftune.diagnosis.data_verdicts import BOUNDS, Bound
from preftune.diagnosis.sample_findings import findings_of
from preftune.measures.noise import ModelAgreement
from preftune.model.layout import LayoutOptions
from preftune.progress import Reporter
from preftune.sampling.sample import SampleOptions, sample
from preftune.stats import Interval
from preftune.types import Record
from tests.folders import PAIRS, save_tiny_model, write_rows

EVIDENCE = {
    "num_prompts",
    "num_pairs",
    "completions_per_prompt",
    "completion_tokens",
    "off_policy",
    "best_of_data",
    "best_of_n",
    "reward_spread",
    "zero_spread",
    "noise",
    "length_bias",
    "overlap",
    "duplicates",
    "leakage",
    "can_reward",
}
QUICK = ["--max_new_tokens", "12", "--samples", "3"]
LONG = "word " * 30


def diagnose(capsys, *words) -> dict:
    assert main(["diagnose", "data", *map(str, words), "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return json.loads(told.out)


def verdicts(told: dict) -> dict[str, str]:
    return {one["name"]: one["verdict"] for one in told["findings"]}


@pytest.fixture(scope="module")
def parts(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval(), make_renderer(tokenizer)


# --- without a model ---


def test_clean_data_without_a_model(pairs_file, capsys):
    told = diagnose(capsys, pairs_file)
    evidence = told["evidence"]
    assert set(evidence) == EVIDENCE and told["model"] is None and told["used"] is None
    assert (evidence["num_prompts"], evidence["num_pairs"], evidence["completions_per_prompt"]) == (8, 8, 2.0)
    assert evidence["duplicates"] == 0 and evidence["can_reward"] is False
    assert evidence["length_bias"] == 0.0  # "No idea about ... at all." is always longer
    missing = {"completion_tokens", "off_policy", "best_of_data", "best_of_n"}
    missing |= {"reward_spread", "zero_spread", "noise", "leakage"}
    assert all(evidence[name] is None for name in missing) and told["measures"]["unit"] == "words"
    # "It is the sea ." and "No idea about the sea at all ." share three words of 5 + 8; and so on
    assert 0.2 < evidence["overlap"] < 0.6
    told_verdicts = verdicts(told)
    assert told_verdicts.pop("length bias") == "fix" and set(told_verdicts.values()) == {"good"}
    assert any("no --model" in one for one in told["left_out"]) and any(
        "no --held_out" in one for one in told["left_out"]
    )


def test_overlap_and_lengths_in_words(tmp_path, capsys):
    row = {"prompt": "p", "chosen": "It is water.", "rejected": "It was salt, sir."}
    told = diagnose(capsys, write_rows(tmp_path / "d.jsonl", [row]))
    assert told["evidence"]["overlap"] == pytest.approx(
        2 * 2 / (4 + 6)
    )  # It and . of "It is water ." and "It was salt , sir ."
    assert (
        told["measures"]["overlap"]["prefix_tokens"] == 1
        and told["measures"]["lengths"]["difference"]["mean"] == -2
    )
    assert told["measures"]["lengths"]["difference"]["low"] is None  # one prompt has no interval
    assert told["measures"]["completion_length"] == 5


def test_every_fault_is_counted_where_it_is(tmp_path, capsys):
    def row(number, chosen="Yes.", **more):
        return {
            "prompt": f"Question {number} of my own",
            "chosen": f"{number} {chosen}",
            "rejected": f"No {number}.",
        } | more

    rows = [
        row(1),
        row(2, "Hm.\nHuman: x"),
        row(3, LONG),
        row(4, "fiancÃ©"),
        row(5, "a\x08b"),
        row(6, "x <|im_end|>"),
        {**row(7), "prompt": "<s> Hi"},
        {**row(8), "rejected": ""},
        {**row(9), "prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {**row(10), "chosen": "same", "rejected": "same"},
        row(1),
    ]
    told = diagnose(capsys, data := write_rows(tmp_path / "d.jsonl", rows))
    found = told["measures"]["faults"]
    assert {name: (one["rows"], one["example"].rpartition(":")[2]) for name, one in found.items()} == {
        "role_markers": (1, "2"),
        "no_end": (1, "3"),
        "mojibake": (1, "4"),
        "control_characters": (1, "5"),
        "special_tokens": (1, "6"),
        "double_bos": (1, "7"),
    }
    assert found["mojibake"]["example"] == f"{data}:4" and found["mojibake"]["share"] == 1 / 8
    unusable = {what: one["example"].rpartition(":")[2] for what, one in told["measures"]["unusable"].items()}
    assert unusable == {
        "The field rejected is empty": "8",
        "The dialogue prompt does not end with a turn of the user": "9",
    }
    assert told["measures"]["idle_pairs"] == {"equal texts": 1} and told["evidence"]["num_pairs"] == 8
    assert (
        told["evidence"]["duplicates"] == 1 / 8
        and told["measures"]["duplicate_example"] == f"{data}:11 repeats {data}:1"
    )
    assert verdicts(told)["pairs that teach nothing"] == "fix"
    meanings = {one["name"]: one["meaning"] for one in told["findings"]}
    assert "(1, first row 8)" in meanings["unusable rows"]
    assert meanings["duplicates"].endswith("row 11 repeats row 1. Keep one of each")


def test_leakage(tmp_path, capsys, pairs_file):
    held = [
        {**PAIRS[0], "prompt": PAIRS[0]["prompt"].upper()},
        {**PAIRS[1], "chosen": "Something new."},
        PAIRS[2],
        {**PAIRS[3], "prompt": "Quite another question about it?"},
    ]
    told = diagnose(capsys, pairs_file, "--held_out", write_rows(tmp_path / "h.jsonl", held))
    leaked = told["measures"]["leakage"]
    assert (
        leaked["prompts"] == {"exact": 0.5, "normalized": 0.75, "near": 0.75}
        and told["evidence"]["leakage"] == 0.75
    )
    assert leaked["rows"] == {"exact": 0.25, "normalized": 0.5, "near": 0.5}
    assert verdicts(told)["leakage"] == "fix"
    clean = diagnose(capsys, pairs_file, "--held_out", write_rows(tmp_path / "h.jsonl", held[3:]))
    assert clean["evidence"]["leakage"] == 0 and verdicts(clean)["leakage"] == "good"


def test_contradictions(tmp_path, capsys):
    rows = [
        *PAIRS,
        {
            "prompt": PAIRS[0]["prompt"],
            "chosen": PAIRS[0]["rejected"].upper(),
            "rejected": PAIRS[0]["chosen"],
        },
    ]
    told = diagnose(capsys, write_rows(tmp_path / "d.jsonl", rows))
    assert told["measures"]["contradictions"]["in_cycles"] == pytest.approx(2 / 9)
    assert verdicts(told)["contradictions"] == "fix"


def test_the_order_of_completions_makes_no_new_row(tmp_path, capsys):
    rows = [
        *PAIRS,
        {"prompt": PAIRS[0]["prompt"], "chosen": PAIRS[0]["rejected"], "rejected": PAIRS[0]["chosen"]},
    ]
    assert diagnose(capsys, write_rows(tmp_path / "d.jsonl", rows))["evidence"][
        "duplicates"
    ] == pytest.approx(1 / 9)


def test_rewards_and_labels_become_pairs(tmp_path, capsys):
    scored = [{"prompt": "p", "completions": ["a", "b", "c"], "rewards": [1, 0, 0]}]
    told = diagnose(capsys, write_rows(tmp_path / "scored.jsonl", scored))
    assert told["evidence"]["num_pairs"] == 2 and told["measures"]["idle_pairs"] == {"equal rewards": 1}
    told = diagnose(capsys, tmp_path / "scored.jsonl", "--min_gap", "0.5", "--pairing", "best_worst")
    assert told["evidence"]["num_pairs"] == 1
    labels = [{"prompt": f"p{k}", "completion": f"c {k}", "label": k % 2 == 0} for k in range(4)]
    told = diagnose(capsys, write_rows(tmp_path / "labels.jsonl", labels))
    assert (
        told["evidence"]["num_pairs"] == 0
        and told["evidence"]["length_bias"] is None
        and told["evidence"]["overlap"] is None
    )
    assert any("give no pairs" in one for one in told["left_out"])


# --- with a model ---


def test_readings_are_the_model_s(parts, pairs_file):
    """Log-probabilities and states as plain transformers has them, one sequence at a time, up to the budget."""
    model, renderer = parts
    rows = read(pairs_file, DataOptions(), renderer)
    asked = choose_prompts(rows, model, SampleOptions(max_new_tokens=10), 3, seed=1)
    assert len(asked.numbers) == 3 and list(asked.numbers) == sorted(set(asked.numbers))
    found = score_data_completions(model, asked, 10, "fp32", LayoutOptions(), Reporter(quiet=True))
    for members, by_record in zip(asked.members, found, strict=True):
        for (_, group), readings in zip(members, by_record, strict=True):
            for ids, reading in zip(group.completions, readings, strict=True):
                cut = ids[:10]
                whole = torch.from_numpy(np.concatenate([group.prompt, cut])).long()[None]
                with torch.no_grad():
                    out = model(whole, output_hidden_states=True)
                logp = (
                    out.logits[0, len(group.prompt) - 1 : -1]
                    .log_softmax(-1)
                    .gather(1, whole[0, len(group.prompt) :, None])
                )
                assert reading.logp == pytest.approx(float(logp.mean()), rel=1e-5)
                expected = out.hidden_states[-1][0, len(group.prompt) :].mean(0)
                np.testing.assert_allclose(reading.state, expected.numpy(), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_information_content_is_that_of_plain_hidden_states(parts, pairs_file):
    """A prompt's mean of the cosines of its pairs, each side the mean of its last hidden states."""
    model, renderer = parts
    rows = read(pairs_file, DataOptions(), renderer)
    cosines = []
    for group in rows.groups:
        states = []
        for ids in group.completions:
            whole = torch.from_numpy(np.concatenate([group.prompt, ids[:24]])).long()[None]
            out = model(whole, output_hidden_states=True)
            states.append(out.hidden_states[-1][0, len(group.prompt) :].mean(0))
        cosines += [float(torch.cosine_similarity(states[c], states[r], dim=0)) for c, r in group.pairs]
    assert len(cosines) == len(rows.groups) == len(set(rows.prompt))  # one pair for each prompt
    told = measured(parts, rows, seed=0)
    assert told.similarity is not None and told.similarity.mean == pytest.approx(np.mean(cosines), abs=1e-5)


def test_choice_of_prompts_depends_on_the_seed(parts, pairs_file):
    model, renderer = parts
    rows = read(pairs_file, DataOptions(), renderer)
    chosen = [choose_prompts(rows, model, SampleOptions(), 4, seed).numbers for seed in (0, 0, 1, 2)]
    assert chosen[0] == chosen[1] and len(set(chosen)) > 1


def own_rows(model, renderer, count: int, seed: int) -> SignalRows:
    """Pairs of the tiny model's own completions, as tokens: its bytes do not survive being written as text."""
    records = [
        Record(prompt=f"Question {k}", completions=("a", "b"), pairs=((0, 1),), origin=f"own:{k + 1}")
        for k in range(count)
    ]
    groups = [renderer.render(record) for record in records]
    drawn = sample(
        model,
        renderer,
        [group.prompt for group in groups],
        SampleOptions(num_completions=2, max_new_tokens=24),
        seed,
    )
    groups = [
        replace(group, completions=tuple(one.token_ids for one in ones))
        for group, ones in zip(groups, drawn, strict=True)
    ]
    loaded = LoadedRecords(records=tuple(records), format="pairs", num_rows=count, bad_rows=(), dropped={})
    return SignalRows(
        loaded=loaded,
        records=tuple(records),
        groups=tuple(groups),
        prompt=tuple(range(count)),
        unusable={},
        dropped={},
        idle_pairs={},
    )


def measured(parts, rows: SignalRows, seed: int):
    model, renderer = parts
    return measure_own(
        rows,
        model,
        renderer,
        None,
        SampleOptions(num_completions=2, max_new_tokens=24),
        max_prompts=99,
        seed=seed,
        precision="fp32",
        layout=LayoutOptions(),
        report=Reporter(quiet=True),
    )[0]


def test_own_samples_are_on_policy_and_random_labels_are_noise(parts):
    told = measured(parts, own_rows(*parts, 40, seed=9), seed=0)
    for near in told.near.values():
        assert near.off_policy.low < 0 < near.off_policy.high and abs(near.off_policy.mean) < 0.1
        assert near.rank.low < 0.5 < near.rank.high
    assert told.agreement is not None and 0.25 < told.agreement.noise < 0.75
    assert next(one for one in findings_of(told) if one.name == "noise of the labels").verdict == "check"
    assert [one.verdict for one in findings_of(told) if one.name.startswith("off-policy")] == ["good"] * 3


def about(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.02, high=mean + 0.02, num=100)


@pytest.mark.parametrize(("exchanged", "invariance"), [(0.88, "good"), (0.6, "check")])
@pytest.mark.parametrize(("strong", "preferences"), [(0.1, "good"), (0.9, "check")])
def test_costly_exchanges_and_strong_preferences_are_told(exchanged, invariance, strong, preferences):
    agreement = ModelAgreement(
        agreement=about(0.9), nll=about(0.3), num_pairs=100, strong=about(strong), exchanged=about(exchanged)
    )
    own = OwnSamples(num_prompts=100, num_samples=2, beyond_budget=0.0, near={}, agreement=agreement)
    found = {one.name: one for one in findings_of(own)}
    assert found["noise invariance"].verdict == invariance
    assert ("collect more pairs" in found["noise invariance"].meaning) == (invariance == "check")
    assert found["strong preferences"].verdict == preferences
    assert ("label_smoothing" in found["strong preferences"].meaning) == (preferences == "check")


def test_the_very_same_samples_are_at_no_distance(parts):
    """Drawn with the same seed and keys: the trainer's scores against the sampler's."""
    told = measured(parts, own_rows(*parts, 5, seed=3), seed=3)
    assert abs(told.near["all"].off_policy.mean) < 1e-5 and told.near["all"].off_policy.high < 1e-5
    rows = own_rows(*parts, 5, seed=3)  # what is drawn for a prompt does not depend on which others are asked
    told = measured(parts, replace(rows, groups=(None, *rows.groups[1:])), seed=3)
    assert told.num_prompts == 4 and abs(told.near["all"].off_policy.mean) < 1e-5


def test_the_end_of_turn_is_nothing_in_common(tmp_path, tiny_folder, capsys):
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    told = diagnose(capsys, data, "--model", tiny_folder, *QUICK)
    assert told["evidence"]["overlap"] == 0 and told["evidence"]["completion_tokens"] == 2


def test_other_data_are_off_policy_and_a_plain_rule_is_no_noise(tmp_path, capsys):
    """Chosen is short, rejected long: a quick reward model sees it. This model is less even than the others."""
    tiny_folder = save_tiny_model(tmp_path / "model", std=0.3)
    capsys.readouterr()
    rows = [{"prompt": f"Question {k}?", "chosen": f"yes {k}", "rejected": f"no {k} " * 4} for k in range(25)]
    told = diagnose(capsys, write_rows(tmp_path / "d.jsonl", rows), "--model", tiny_folder, *QUICK)
    assert told["evidence"]["noise"] == 0.0 and verdicts(told)["noise of the labels"] == "good"
    assert (
        told["evidence"]["off_policy"] > BOUNDS["off_policy"].check
        and verdicts(told)["off-policy"] == "check"
    )
    # the byte tokenizer may join letters, so tokens are counted by it, end-of-turn token included
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    sizes = [len(tokenizer(row[side])["input_ids"]) + 1 for row in rows for side in ("chosen", "rejected")]
    assert (
        told["evidence"]["completion_tokens"] == pytest.approx(np.mean(sizes))
        and told["measures"]["unit"] == "tokens"
    )


def test_the_reward_s_peak(tmp_path, tiny_folder, capsys):
    """length.min is minus the tokens, so everything follows from lengths; own completions are cut off at 12
    tokens.
    """
    chosen = ["Maybe so, maybe not.", "No.", "No.", "No."]
    rows = [
        {"prompt": f"Question {k}?", "chosen": one, "rejected": "Yes indeed, it is."}
        for k, one in enumerate(chosen)
    ]
    data = write_rows(tmp_path / "d.jsonl", rows)
    told = diagnose(capsys, data, "--model", tiny_folder, "--reward", "length.min", *QUICK)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    size = {
        text: len(tokenizer(text)["input_ids"]) + 1
        for row in rows
        for text in (row["chosen"], row["rejected"])
    }
    own = told["measures"]["own"]
    assert own["data_rewards"]["chosen"]["mean"] == pytest.approx(
        -np.mean([size[row["chosen"]] for row in rows])
    )
    assert own["data_rewards"]["rejected"]["mean"] == pytest.approx(-size[rows[0]["rejected"]])
    assert size["No."] < size["Yes indeed, it is."] < size["Maybe so, maybe not."]
    assert own["reward_agreement"]["mean"] == 0.75
    curve = told["evidence"]["best_of_n"]
    assert list(curve) == ["1", "2", "3"] and -12 <= curve["1"] <= curve["2"] <= curve["3"] <= -1
    assert told["evidence"]["can_reward"] is True and told["coverage"]
    assert 0 <= told["evidence"]["best_of_data"] <= 1 and told["evidence"]["reward_spread"] >= 0
    again = diagnose(capsys, data, "--model", tiny_folder, "--reward", "length.min", *QUICK)
    assert again == told
    other = diagnose(capsys, data, "--model", tiny_folder, "--reward", "length.min", *QUICK, "--seed", "5")
    assert other["evidence"]["off_policy"] != told["evidence"]["off_policy"]


def test_a_flat_reward_and_one_without_an_opinion(tmp_path, tiny_folder, capsys, monkeypatch):
    (tmp_path / "flat.py").write_text(
        "def flat(prompts, completions, **columns): return [1.0] * len(completions)\n"
        "def none(prompts, completions, **columns): return [None] * len(completions)\n"
    )
    data = write_rows(tmp_path / "d.jsonl", PAIRS)
    told = diagnose(capsys, data, "--model", tiny_folder, "--reward", f"{tmp_path}/flat.py:flat", *QUICK)
    assert [told["evidence"][name] for name in ("zero_spread", "best_of_data", "reward_spread")] == [
        1,
        0.5,
        0,
    ]
    assert told["measures"]["own"]["reward_agreement"]["mean"] == 0.5
    assert verdicts(told)["prompts with equal own rewards"] == "fix"
    told = diagnose(capsys, data, "--model", tiny_folder, "--reward", f"{tmp_path}/flat.py:none", *QUICK)
    assert told["evidence"]["best_of_n"] is None and any(
        "does the reward score both" in one for one in told["left_out"]
    )


def test_equal_after_cutting_and_too_long(tmp_path, tiny_folder, capsys):
    rows = [
        *PAIRS,
        {"prompt": "p", "chosen": LONG + "a", "rejected": LONG + "b"},
        {"prompt": "q", "chosen": LONG, "rejected": "c"},
    ]
    data = write_rows(tmp_path / "d.jsonl", rows)
    told = diagnose(
        capsys, data, "--model", tiny_folder, "--max_length", "100", "--truncation", "cut_completion", *QUICK
    )
    assert (
        told["measures"]["idle_pairs"] == {"equal tokens after cutting": 1}
        and told["evidence"]["num_pairs"] == 9
    )
    told = diagnose(capsys, data, "--model", tiny_folder, "--max_length", "100", *QUICK)
    assert told["measures"]["dropped"] == {"dropped: too long": 2} and told["evidence"]["num_pairs"] == 8


def test_few_prompts_are_said_to_be_few(tmp_path, tiny_folder, pairs_file, capsys):
    words = [
        "--model",
        str(tiny_folder),
        "--max_prompts",
        "3",
        "--output",
        str(tmp_path / "out.json"),
        *QUICK,
    ]
    assert main(["diagnose", "data", pairs_file, *words]) == 0
    out = capsys.readouterr().out
    assert "sampled for 3 prompts of 8, 3 samples each; with this few prompts, intervals are wide" in out
    assert (
        re.search(r"off-policy, chosen +.*nats/token", out)
        and "not measured: noise of the labels: needs 20 prompts" in out
    )
    assert (
        re.search(r"\d+% of the data's completions are longer than max_new_tokens", out)
        and "(the paper" not in out
    )
    assert out.rstrip().endswith("out.json")
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (
        set(written["evidence"]) == EVIDENCE
        and written["used"]["prompts"] == 3
        and set(written["thresholds"]) == set(BOUNDS)
    )
    assert (
        "NaN" not in (tmp_path / "out.json").read_text()
        and "Infinity" not in (tmp_path / "out.json").read_text()
    )


def test_a_file_is_replaced_only_if_that_is_asked(tmp_path, pairs_file, capsys):
    out = tmp_path / "out.json"
    out.write_text("mine")
    words = ["diagnose", "data", pairs_file, "--output", str(out)]
    assert main(words) == 2 and out.read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0 and "measures" in json.loads(out.read_text())


def test_trajectories(tmp_path, tiny_folder, capsys):
    def turns(answer):
        told = [("assistant", "call"), ("tool", "21"), ("assistant", answer)]
        return [{"role": role, "content": content} for role, content in told]

    rows = [{"prompt": f"q{k}", "chosen": turns("It is 21."), "rejected": turns("No")} for k in range(3)]
    data = write_rows(tmp_path / "t.jsonl", rows)
    told = diagnose(capsys, data, "--model", tiny_folder, "--max_new_tokens", "90", "--samples", "2")
    assert told["evidence"]["num_pairs"] == 3
    # Up to the first answer both sides are alike, and a trajectory is compared up to there.
    near = told["measures"]["own"]["near"]
    assert near["chosen"] == near["rejected"] and near["chosen"]["off_policy"]["mean"] is not None
    assert main(["diagnose", "data", data, "--model", str(tiny_folder), "--reward", "brief"]) == 2
    assert "a trajectory in" in capsys.readouterr().err


# --- verdicts and mistakes ---


def test_bounds():
    bound = Bound(check=0.1, fix=0.5, reason="")
    assert [bound.verdict(value) for value in (0.1, 0.2, 0.5)] == ["good", "check", "fix"]
    assert bound.verdict(0.9, mildest=0.05) == "check" and bound.verdict(0.9, mildest=0.2) == "fix"
    assert Bound(check=0.0, fix=None, reason="").verdict(9.0) == "check"
    assert all(bound.reason and (bound.fix is None or bound.fix > bound.check) for bound in BOUNDS.values())


def test_the_page_has_the_thresholds():
    page = (Path(__file__).parents[2] / "docs" / "data_diagnosis.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.M))
    for name, bound in BOUNDS.items():
        fix = "never" if bound.fix is None else f"{bound.fix:g}"
        assert f"| `{name}` | {bound.check:g} | {fix} |" in page, name
    assert set(BOUNDS) <= set(rows) and all(f"`{name}`" in page for name in EVIDENCE)


def test_mistakes(tmp_path, tiny_folder, pairs_file, capsys):
    model = ["--model", str(tiny_folder)]
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "p"}])
    for words, wanted in (
        ([], "--data is missing"),
        (["/nowhere"], "/nowhere does not exist"),
        ([prompts], "holds prompts only"),
        ([pairs_file, "--samples", "1", *model], "samples is out of range; got 1; expected at least 2"),
        ([pairs_file, "--max_prompts", "0", *model], "max_prompts is out of range"),
        ([pairs_file, "--reward", "brief"], "reward has no effect without a model"),
        ([pairs_file, "--seed", "3"], "seed has no effect without a model"),
        ([pairs_file, "--max_length", "99"], "rows.max_length has no effect on texts without a model"),
        (
            [pairs_file, "--soft_label_temperature", "1"],
            "soft_label_temperature has no effect on a diagnosis",
        ),
        ([pairs_file, "--min_gap", "1"], "min_gap has no effect here"),
        ([pairs_file, "--output", str(tmp_path)], "output is the file of the diagnosis"),
        ([pairs_file, "--output", pairs_file], "is there already"),
        ([pairs_file, "--overwrite"], "overwrite has no effect without an output"),
        ([pairs_file, *model, "--reward", "nothing"], "Unknown reward"),
        ([pairs_file, *model, "--reward", "exact(column=gold)"], "lacks columns"),
        ([pairs_file, *model, "--max_new_tokens", "4000"], "No prompt leaves the model room"),
        ([pairs_file, *model, "--max_length", "3"], "no row is left that could be trained on"),
        ([pairs_file, "--held_out", "/nowhere"], "/nowhere does not exist"),
        ([pairs_file, "--model", "/nowhere"], "There is no model"),
        ([pairs_file, "--stray", "1"], "Unknown option"),
    ):
        assert main(["diagnose", "data", *words]) == 2, words
        told = capsys.readouterr()
        mistakes = [
            line for line in told.err.splitlines() if not line.startswith(("columns: ", "census: "))
        ]  # how the file was read is reported first
        assert told.out == "" and len(mistakes) == 1 and wanted in mistakes[0], (words, told.err)


def test_bad_rows_can_be_an_error(tmp_path, capsys):
    data = write_rows(tmp_path / "d.jsonl", [*PAIRS, {"prompt": "p", "chosen": "", "rejected": "x"}])
    assert main(["diagnose", "data", data, "--bad_rows", "error"]) == 2
    assert "row 9: The field chosen is empty" in capsys.readouterr().err


def test_nothing_commands_the_terminal(tmp_path, tiny_folder, capsys):
    evil = "\x1b[31mred\x07\u202eback"
    rows = [{"prompt": f"{k}{evil}", "chosen": f"y{evil}{k}", "rejected": evil} for k in range(3)]
    data = write_rows(tmp_path / f"e{evil}.jsonl", rows)
    assert main(["diagnose", "data", data, "--model", str(tiny_folder), *QUICK]) == 0
    out, err = capsys.readouterr()
    assert not any(c in out + err for c in "\x1b\x07\u202e") and "control characters" in out
