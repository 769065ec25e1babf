"""`filter`: pairs above the quantile are left out of training, counted, and refused where they have no
meaning.
"""

import json

import numpy as np
import pytest

from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.errors import ConfigError, DataError
from preftune.measures.probe import ches_scores
from preftune.model.layout import LayoutOptions
from preftune.model.load import LoadOptions, load_tokenizer
from preftune.objectives import OBJECTIVES
from preftune.objectives.bnf import BNF
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.objectives.dpo import DPO
from preftune.objectives.grpo import GRPO
from preftune.objectives.sft import SFT
from preftune.progress import Reporter
from preftune.train.filters import filter_pairs
from preftune.train.groups import read_data
from preftune.train.loop import train
from preftune.train.models import load_policy
from tests.folders import PAIRS, SCORED, same_bits, tiny_config, weights_of, write_rows

QUIET = Reporter(quiet=True)


def filtered(model, data, tmp_path, **settings):
    config = tiny_config(model, data, tmp_path / "run", **settings)
    policy, _ = load_policy(config.model_plan, QUIET)
    read = read_data(config.data_plan, load_tokenizer(str(model), LoadOptions()))
    left = filter_pairs(config.filter, policy, config.layout, read, QUIET)
    return policy, read.train, left.prepared, left.train


def test_the_highest_pairs_go(tiny_folder, pairs_file, tmp_path):
    policy, before, prepared, after = filtered(
        tiny_folder, pairs_file, tmp_path, filter="ches<0.5", eval_fraction=0.0
    )
    scores = [
        row[0].normalized
        for row in ches_scores(policy, before, [[(0, 1)]] * 8, LayoutOptions(), lambda done, of: None)
    ]
    low = {before[i].origin for i in np.argsort(scores)[:4]}
    assert {group.origin for group in after} == low
    assert list(prepared.report.filtered.values()) == [4]
    assert "left out 4 pairs of training: length-normalized CHES of" in prepared.report.lines()[-1]


def test_pairs_of_a_group_go_one_by_one(tiny_folder, tmp_path):
    """Three pairs of each prompt: what stays are the completions that are still in one."""
    data = write_rows(tmp_path / "scored.jsonl", SCORED)
    _, before, prepared, after = filtered(tiny_folder, data, tmp_path, filter="ches<0.3", eval_fraction=0.0)
    assert sum(len(group.pairs) for group in before) == 24
    assert (
        sum(len(group.pairs) for group in after) == 24 - sum(prepared.report.filtered.values()) == 7
    )  # below 0.3 * 23 = 6.9
    by_origin = {group.origin: group for group in before}
    for group in after:
        old = by_origin[group.origin]
        assert {k for pair in group.pairs for k in pair} == set(range(len(group.completions)))
        texts = {(old.completions[c].tobytes(), old.completions[r].tobytes()) for c, r in old.pairs}
        assert all(
            (group.completions[c].tobytes(), group.completions[r].tobytes()) in texts for c, r in group.pairs
        )


def test_labels_that_imply_pairs(tiny_folder, pairs_file, tmp_path):
    """bnf learns from labels; the pair of a prompt is its +1 against its -1, so the same groups stay as for
    dpo.
    """
    one = filtered(tiny_folder, pairs_file, tmp_path, filter="ches<0.5", eval_fraction=0.0, objective=DPO())[
        3
    ]
    two = filtered(tiny_folder, pairs_file, tmp_path, filter="ches<0.5", eval_fraction=0.0, objective=BNF())[
        3
    ]
    assert [group.origin for group in one] == [group.origin for group in two]
    assert all(sorted(group.labels) == [-1, 1] for group in two)


def test_a_run_with_a_filter(tiny_folder, pairs_file, tmp_path):
    """It trains as a run on the kept rows does, and its data report counts the others; held-out data stay
    whole.
    """
    held = write_rows(tmp_path / "held.jsonl", PAIRS[:2])
    rest = write_rows(tmp_path / "rest.jsonl", PAIRS[2:])
    common = {"eval_data": held, "eval_fraction": 0.1, "epochs": 1.0}
    run = train(
        tiny_config(tiny_folder, rest, tmp_path / "filtered", filter="ches<0.6", **common), quiet=True
    )
    report = json.loads((run.folder / "data_report.json").read_text())
    assert sum(report["filtered"].values()) == 3 and any(
        "left out 3 pairs" in line for line in report["lines"]
    )
    groups = prepare(rest, load_tokenizer(str(tiny_folder), LoadOptions()), "pairs", DataOptions()).groups
    kept = filtered(tiny_folder, rest, tmp_path / "again", filter="ches<0.6", **common)[3]
    rows = [PAIRS[2:][int(group.origin.rpartition(":")[2]) - 1] for group in kept]
    assert len(rows) == len(groups) - 3
    by_hand = write_rows(tmp_path / "kept.jsonl", rows)
    other = train(tiny_config(tiny_folder, by_hand, tmp_path / "by hand", **common), quiet=True)
    assert run.final and other.final and same_bits(weights_of(run.final), weights_of(other.final))


def test_where_it_does_not_apply(tiny_folder, pairs_file, tmp_path):
    def config(**settings):
        return tiny_config(tiny_folder, pairs_file, tmp_path / "run", filter="ches<0.9", **settings)

    for objective in (GRPO(), BradleyTerry(), OBJECTIVES["hypo"]()):
        with pytest.raises(ConfigError, match="filter has no effect on this objective"):
            config(objective=objective)
    with pytest.raises(ConfigError, match="filter has no effect on-policy"):
        config(source="on-policy", reward="brief")
    with pytest.raises(ConfigError, match="cannot be understood"):
        tiny_config(tiny_folder, pairs_file, tmp_path / "run", filter="ches")
    singles = write_rows(
        tmp_path / "labels.jsonl",
        [{"prompt": f"p{k}", "completion": "c", "label": k % 2 == 0} for k in range(8)],
    )
    with pytest.raises(DataError, match="no pairs to choose from"):
        filtered(tiny_folder, singles, tmp_path, filter="ches<0.9", objective=BNF())
    with pytest.raises(DataError, match="no pairs to choose from"):
        filtered(
            tiny_folder, pairs_file, tmp_path, filter="ches<0.9", objective=SFT()
        )  # it reads no rejected completion
    single = write_rows(tmp_path / "one.jsonl", PAIRS[:1])
    with pytest.raises(DataError, match="leaves nothing to train on"):
        filtered(tiny_folder, single, tmp_path, filter="ches<0.9", eval_fraction=0.0)
