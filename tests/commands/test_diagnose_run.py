"""`diagnose run` end to end on tiny models: against logits taken from the models themselves, and what it
refuses.
"""

import copy
import json
import math
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from preftune.cli.main import main
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.diagnosis.run_material import DiagnoseRunConfig, find_material, find_runs
from preftune.measures.shifts import TokenShifts, completion_shifts
from preftune.model.load import LoadOptions, load_model, load_tokenizer
from preftune.objectives.bnf import BNF
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.objectives.sft import SFT
from preftune.report.diagnosis import summary
from preftune.train.loop import train
from tests.data.tokenizers_for_tests import CHATML, word_tokenizer
from tests.folders import PAIRS, save_tiny_model, tiny_config, write_rows

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m\u202e"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder, pairs_file):
    """Two methods on the same pairs, a quarter of which they hold out."""
    root = tmp_path_factory.mktemp("runs")
    common = {"save_every": 0, "optim": {"learning_rate": 1e-2}}
    train(tiny_config(tiny_folder, pairs_file, root / "dpo", **common), quiet=True)
    train(tiny_config(tiny_folder, pairs_file, root / "bnf", objective=BNF(), **common), quiet=True)
    return root


@pytest.fixture(scope="module")
def diagnosis(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosis") / "out"
    words = [
        str(runs / "dpo"),
        str(runs / "bnf"),
        "--output",
        str(folder),
        "--samples",
        "2",
        "--max_new_tokens",
        "6",
    ]
    assert main(["diagnose", "run", *words, "--examples", "1", "--json"]) == 0
    return folder


def content(folder) -> dict:
    return json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))


@torch.no_grad()
def by_hand(final, start, group, k) -> dict[str, float]:
    """The definitions, from the whole logits of one sequence."""
    ids = torch.from_numpy(np.concatenate([group.prompt, group.completions[k]])).long()
    targets = ids[len(group.prompt) :, None]

    def known(model) -> list[np.ndarray]:
        logits = model(input_ids=ids[None]).logits[0, len(group.prompt) - 1 : -1].float()
        z = logits.gather(1, targets)[:, 0]
        every = logits.log_softmax(1)
        return [one.numpy() for one in (every.gather(1, targets)[:, 0], z, z - logits.mean(1), every)]

    (logp, z, centred, every), (ref_logp, ref_z, ref_centred, ref_every) = known(final), known(start)
    greedy = np.arange(len(ref_every)), ref_every.argmax(1)
    return completion_shifts(
        TokenShifts(
            logp=logp,
            ref_logp=ref_logp,
            logit_shift=z - ref_z,
            centred_logit_shift=centred - ref_centred,
            greedy_log_ratio=every[greedy] - ref_every[greedy],
        )
    )


def test_numbers_are_those_of_the_models(runs, diagnosis, tiny_folder):
    found = content(diagnosis)
    assert [run["name"] for run in found["runs"]] == ["dpo", "bnf"] and found["num_pairs"] == found[
        "num_prompts"
    ] == 2
    settings = DiagnoseRunConfig(runs=[str(runs / "dpo")], output="x")
    groups = find_material(settings, find_runs(settings.runs)).groups
    start = load_model(str(tiny_folder), LoadOptions())
    for run in found["runs"]:
        final = load_model(f"{run['folder']}/final", LoadOptions())
        for side, name in enumerate(("chosen", "rejected")):
            rows = [by_hand(final, start, group, group.pairs[0][side]) for group in groups]
            intervals = run["sides"][name]["intervals"]
            for quantity in rows[0]:
                mean = np.mean([row[quantity] for row in rows])
                assert intervals[quantity]["mean"] == pytest.approx(mean, rel=1e-3, abs=1e-4), quantity
            assert abs(intervals["log_ratio"]["mean"]) > 0.05  # the runs moved
            kinds = run["sides"][name]["kinds"]
            total = sum(one["per_completion"]["mean"] for one in kinds.values())
            assert total == pytest.approx(intervals["log_ratio"]["mean"], rel=1e-5)
            assert sum(run["sides"][name]["histogram"]) == pytest.approx(1)
    first, second = [run["sides"]["chosen"]["intervals"]["gini"]["mean"] for run in found["runs"]]
    assert found["differences"][0]["chosen"]["gini"]["mean"] == pytest.approx(second - first)
    assert (found["differences"][0]["run"], found["differences"][0]["minus"]) == ("bnf", "dpo")


def test_what_a_run_evaluated_is_what_is_diagnosed(runs, diagnosis):
    """The last evaluation of training speaks of the same pairs: held out by the same seed and fraction."""
    rows = [json.loads(line) for line in (runs / "dpo" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["phase"] == "eval"][-1]
    found = content(diagnosis)["runs"][0]
    for side in ("chosen", "rejected"):
        told = last[f"eval_log_ratios/{side}"]
        assert found["sides"][side]["intervals"]["log_ratio"]["mean"] == pytest.approx(told, rel=1e-3)
    assert found["accuracy"]["mean"] == last["eval_rewards/accuracies"]


def test_samples_gain_what_the_reference_s_lose(diagnosis):
    for run in content(diagnosis)["runs"]:
        policy, reference = (
            run["samples"][who]["intervals"]["log_ratio"]["mean"] for who in ("policy", "reference")
        )
        assert policy > reference  # KL(pi || ref) + KL(ref || pi) > 0
        assert 0 < run["samples"]["policy"]["num_tokens"] <= 6


def test_tokens_are_those_of_the_completions(runs, diagnosis, pairs_file):
    rows = [
        json.loads(line) for line in (diagnosis / "tokens.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(row["run"], row["side"]) for row in rows] == [
        (run, side) for run in ("dpo", "bnf") for side in ("chosen", "rejected")
    ]
    texts = {row["chosen"] for row in PAIRS} | {row["rejected"] for row in PAIRS}
    for row in rows:
        assert "".join(token["text"] for token in row["tokens"]).removesuffix("<|im_end|>") in texts
        assert all(
            math.isfinite(token[name])
            for token in row["tokens"]
            for name in ("logp", "ref_logp", "logit_shift")
        )


def test_the_page_is_whole(diagnosis):
    page = (diagnosis / "diagnosis.html").read_text(encoding="utf-8")
    figures = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(figures) == 7 + 2 + 2
    for svg in figures:
        ElementTree.fromstring(svg)
    assert "default-src 'none'" in page and page.count("<script>") == 1
    assert "chosen completions changed by" in page and "Minus dpo" in page
    assert "On chosen completions" in page and "KL(policy || reference)" in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def shifted(told: dict, chosen: tuple, rejected: tuple, greedy: tuple) -> str:
    """The summary of a run whose changes of log-probability have these intervals, in nats per token."""
    told = copy.deepcopy(told)
    sides = told["runs"][0]["sides"]
    for side, name, (low, high) in (
        ("chosen", "mean_log_ratio", chosen),
        ("rejected", "mean_log_ratio", rejected),
        ("rejected", "mean_greedy_log_ratio", greedy),
    ):
        sides[side]["intervals"][name] = {"mean": (low + high) / 2, "low": low, "high": high, "num": 9}
    return summary(told)[0]


def test_squeezing_needs_three_intervals_without_zero(diagnosis):
    told, fell, rose, unsure = content(diagnosis), (-2.0, -1.0), (0.1, 0.3), (-0.1, 0.1)
    assert "Probability was squeezed" in shifted(told, fell, fell, rose)
    for shifts in (
        (unsure, fell, rose),
        (fell, unsure, rose),
        (fell, fell, unsure),
        (rose, fell, rose),
        (fell, fell, fell),
    ):
        assert "squeezed" not in shifted(told, *shifts)


def test_a_model_that_did_not_move(tiny_folder, pairs_file, tmp_path, capsys):
    """Shifts, Gini and KL of a model against itself are 0; one prompt gives no interval, and null in JSON."""
    run = tmp_path / "run"
    shutil.copytree(tiny_folder, run / "final")
    (run / "config.yaml").write_text(f"model: {tiny_folder}\ndata: {pairs_file}\noutput: {run}\n")
    assert (
        main(
            [
                "diagnose",
                "run",
                str(run),
                "--data",
                pairs_file,
                "--output",
                str(tmp_path / "out"),
                "--max_prompts",
                "1",
                "--max_new_tokens",
                "3",
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    heading = told.partition("─")[0].split()  # in two lines, because the names of columns wrap
    assert "diagnosis.html shows it" in told and {"run", "side", "Gini", "reference"} <= set(heading)
    found = content(tmp_path / "out")["runs"][0]
    numbers = found["sides"]["chosen"]["intervals"]
    assert all(one["mean"] == 0 and one["low"] is None for one in numbers.values())
    assert found["samples"]["policy"]["intervals"]["log_ratio"]["mean"] == 0
    assert found["directions"]["both_fall"]["mean"] == 0 and found["ches"]["rank_correlation"] is None


def test_hostile_names_and_texts(tiny_folder, tmp_path, capsys):
    rows = [
        {"prompt": f"{k}{HOSTILE}", "chosen": f"{HOSTILE} yes", "rejected": f"{HOSTILE} no"} for k in range(3)
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    run = tmp_path / "<b>run"
    shutil.copytree(tiny_folder, run / "final")
    (run / "config.yaml").write_text(f"model: {tiny_folder}\ndata: {data}\noutput: x\n")
    assert (
        main(
            ["diagnose", "run", str(run), "--data", data, "--output", str(tmp_path / "out"), "--samples", "0"]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert "\x1b" not in told and "\u202e" not in told
    page = (tmp_path / "out" / "diagnosis.html").read_text(encoding="utf-8")
    assert "<b>run" not in page and "&lt;b&gt;run" in page and "Own samples" not in page
    assert content(tmp_path / "out")["runs"][0]["samples"] is None


def failure(capsys, *words: object) -> str:
    assert main(["diagnose", "run", *map(str, words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


def test_mistakes_are_one_sentence(runs, tiny_folder, pairs_file, tmp_path, capsys):
    out = ["--output", tmp_path / "out", "--json"]
    unfinished, words = tmp_path / "unfinished", tmp_path / "words"
    unfinished.mkdir()
    shutil.copy(runs / "dpo" / "config.yaml", unfinished)
    shutil.copytree(runs / "dpo", words)
    word_tokenizer(CHATML, eos="<|im_end|>").save_pretrained(words / "final")
    (words / "final" / "digests.json").unlink()
    other = train(
        tiny_config(tiny_folder, pairs_file, tmp_path / "seed", seed=1, max_steps=1, objective=SFT()),
        quiet=True,
    ).folder
    all_in = train(
        tiny_config(tiny_folder, pairs_file, tmp_path / "all", eval_fraction=0.0, max_steps=1), quiet=True
    ).folder
    singles = write_rows(
        tmp_path / "labels.jsonl",
        [{"prompt": f"p{k}", "completion": "c", "label": k % 2 == 0} for k in range(8)],
    )
    labels = train(
        tiny_config(tiny_folder, singles, tmp_path / "labels", objective=BNF(), max_steps=1), quiet=True
    ).folder
    reward = train(
        tiny_config(tiny_folder, pairs_file, tmp_path / "rm", objective=BradleyTerry(), max_steps=1),
        quiet=True,
    ).folder
    for asked, wanted in (
        ((), "missing"),
        ((tmp_path,), "is not a run folder"),
        ((unfinished,), "has no final model"),
        ((runs / "dpo", runs / "dpo"), "given twice"),
        ((words,), "different tokenizers"),
        ((runs / "dpo", other), "did not hold out the same pairs: seed differs"),
        ((all_in,), "held out nothing"),
        ((labels,), "give no pairs"),
        ((reward,), "trained a reward model"),
        ((runs / "dpo", "--data", singles), "give no pairs"),
        ((runs / "dpo", "--max_rows", "3"), "rows has no effect"),
        ((runs / "dpo", "--samples", "0", "--seed", "1"), "have no effect when nothing is drawn"),
        ((runs / "dpo", "--examples", "-1"), "examples is out of range"),
        ((*[runs / "dpo"] * 9,), "a few run folders"),
    ):
        assert wanted in failure(capsys, *asked, *out), asked
    assert not (tmp_path / "out").exists()
    assert "is there already" in failure(capsys, runs / "dpo", "--output", runs / "dpo")


def test_runs_of_other_seeds_share_named_pairs(runs, tiny_folder, pairs_file, tmp_path, capsys):
    """Held-out data of its own takes the place of the split; the reference of a run is what it started from."""
    start = save_tiny_model(tmp_path / "start", seed=1)
    other = train(tiny_config(start, pairs_file, tmp_path / "seed", seed=1, max_steps=1), quiet=True).folder
    held = write_rows(tmp_path / "held.jsonl", PAIRS[:3])
    words = ["--data", held, "--output", str(tmp_path / "out"), "--samples", "0", "--json"]
    assert main(["diagnose", "run", str(other), str(runs / "bnf"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["reference"] for run in found["runs"]] == [str(start), str(tiny_folder)]
    assert found == content(tmp_path / "out")
    groups = prepare(held, load_tokenizer(str(start), LoadOptions()), "pairs", DataOptions()).groups
    models = load_model(f"{other}/final", LoadOptions()), load_model(str(start), LoadOptions())
    shift = np.mean([by_hand(*models, group, 0)["log_ratio"] for group in groups])
    assert found["runs"][0]["sides"]["chosen"]["intervals"]["log_ratio"]["mean"] == pytest.approx(
        shift, rel=1e-3, abs=1e-5
    )
