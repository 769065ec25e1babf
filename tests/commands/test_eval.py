"""`eval`: log-ratios on pairs by hand, rewards of samples before and after."""

import json
import shutil

import numpy as np
import pytest

from preftune.commands.eval import evaluate_pairs, evaluate_prompts
from preftune.commands.eval_options import EvalConfig
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.errors import ConfigError, ModelError, StorageError
from preftune.model.layout import LayoutOptions
from preftune.model.load import LoadOptions, load_model, load_tokenizer
from preftune.model.policy import Policy, score_groups
from preftune.progress import Reporter
from preftune.rewards.judged import Judged, compare_stages
from preftune.sampling.sample import SampleOptions
from tests.data.tokenizers_for_tests import CHATML, word_tokenizer
from tests.folders import PAIRS, save_tiny_model, write_rows

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("other") / "model", seed=1)


def totals(folder, data) -> np.ndarray:
    """Summed logp [pair][chosen, rejected]."""
    groups = prepare(data, load_tokenizer(str(folder), LoadOptions()), "pairs", DataOptions()).groups
    policy = Policy(
        model=load_model(str(folder), LoadOptions()), precision="fp32", sharing="single", sharing_reason=""
    )
    return np.array(
        [[logp.sum() for logp in score_groups(policy, [group], LayoutOptions())[0]] for group in groups]
    )


def test_pairs_by_hand(tiny_folder, other, pairs_file):
    own, of_reference = totals(other, pairs_file), totals(tiny_folder, pairs_file)
    ratio = own - of_reference
    margin = 0.5 * (ratio[:, 0] - ratio[:, 1])
    for layout in (LayoutOptions(), LayoutOptions(share_prompts=False, micro_batch_tokens=90)):
        found = evaluate_pairs(
            EvalConfig(
                model=str(other), data=pairs_file, reference=str(tiny_folder), beta=0.5, layout=layout
            ),
            QUIET,
        )
        means = {name: interval.mean for name, interval in found.intervals.items()}
        assert found.num_pairs == 8
        assert means == pytest.approx(
            {
                "log_ratios/chosen": ratio[:, 0].mean(),
                "log_ratios/rejected": ratio[:, 1].mean(),
                "rewards/margins": margin.mean(),
                "rewards/accuracies": (margin > 0).mean(),
                "ranking/accuracies": (own[:, 0] > own[:, 1]).mean(),
                "ranking/reference_accuracies": (of_reference[:, 0] > of_reference[:, 1]).mean(),
            },
            rel=1e-5,
        )
        assert (
            found.intervals["rewards/margins"].low < margin.mean() < found.intervals["rewards/margins"].high
        )


def test_a_model_against_itself_is_nothing(tiny_folder, pairs_file):
    found = evaluate_pairs(
        EvalConfig(model=str(tiny_folder), data=pairs_file, reference=str(tiny_folder)), QUIET
    )
    means = {name: interval.mean for name, interval in found.intervals.items()}
    assert {means[name] for name in ("log_ratios/chosen", "log_ratios/rejected", "rewards/margins")} == {0.0}
    accuracy = found.intervals["rewards/accuracies"]
    assert accuracy.mean == 0.5 and 0.0 < accuracy.low < 0.5 < accuracy.high < 1.0  # ties count one half
    assert means["ranking/accuracies"] == means["ranking/reference_accuracies"]


def test_the_beta_of_a_run_is_used_and_told(tiny_folder, other, pairs_file, tmp_path):
    final = tmp_path / "run" / "final"
    shutil.copytree(other, final)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(f"model: {tiny_folder}\nobjective: {{name: dpo, beta: 0.25}}\n")
    for given, beta, of_run in ((None, 0.25, True), (0.5, 0.5, False)):
        found = evaluate_pairs(EvalConfig(model=str(final), data=pairs_file, beta=given), QUIET)
        assert (found.beta, found.beta_of_run) == (beta, of_run)
        assert found == evaluate_pairs(
            EvalConfig(model=str(tmp_path / "run"), data=pairs_file, beta=given), QUIET
        )
    config.write_text(f"model: {tiny_folder}\nobjective: {{name: sft}}\n")
    found = evaluate_pairs(EvalConfig(model=str(final), data=pairs_file), QUIET)
    assert (found.beta, found.beta_of_run) == (1.0, False)
    config.write_text("model: [\n")  # without a manifest it is somebody else's
    alone = EvalConfig(model=str(final), data=pairs_file, reference=str(tiny_folder))
    assert evaluate_pairs(alone, QUIET).beta == 1.0
    (tmp_path / "run" / "manifest.json").write_text("{}")
    with pytest.raises(StorageError, match=r"settings of the run .* cannot be read"):
        evaluate_pairs(alone, QUIET)


def test_pairs_of_one_prompt_count_once(tiny_folder, other, tmp_path):
    """Three pairs of one prompt and one of another: two clusters, each with its own mean."""
    rows = [
        {"prompt": "p", "completions": ["a", "b", "c"], "rewards": [3, 2, 1]},
        {"prompt": "q", "completions": ["d", "e"], "rewards": [1, 0]},
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    found = evaluate_pairs(EvalConfig(model=str(other), data=data, reference=str(tiny_folder)), QUIET)
    assert found.num_pairs == 4
    assert found.intervals["rewards/margins"].num == 2


def test_other_tokenizers_are_refused(tiny_folder, pairs_file, tmp_path):
    folder = save_tiny_model(tmp_path / "words")
    word_tokenizer(CHATML, eos="<|im_end|>").save_pretrained(folder)
    with pytest.raises(ModelError, match=r"different tokenizers.*tuned from"):
        evaluate_pairs(EvalConfig(model=str(tiny_folder), data=pairs_file, reference=str(folder)), QUIET)


def test_the_reference_of_a_run_is_what_it_started_from(tiny_folder, other, pairs_file, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(other, run / "final")
    (run / "config.yaml").write_text(f"model: {tiny_folder}\n")
    named = evaluate_pairs(
        EvalConfig(model=str(run / "final"), data=pairs_file, reference=str(tiny_folder)), QUIET
    )
    found = evaluate_pairs(EvalConfig(model=str(run / "final"), data=pairs_file), QUIET)
    assert found == named
    assert found.intervals["rewards/margins"].mean != 0
    with pytest.raises(ConfigError, match=r"eval compares with a reference.*--reference MODEL"):
        evaluate_pairs(EvalConfig(model=str(tiny_folder), data=pairs_file), QUIET)


def test_prompts_before_and_after(tiny_folder, other, tmp_path):
    data = write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in PAIRS])
    settings = EvalConfig(
        model=str(other),
        prompts=data,
        reference=str(tiny_folder),
        reward="brief",
        output=str(tmp_path / "out"),
        sampling=SampleOptions(num_completions=2, max_new_tokens=4),
        seed=1,
    )
    found = evaluate_prompts(settings, QUIET)
    assert (found.num_prompts, found.reward) == (8, "brief")
    assert found.difference.mean == pytest.approx(found.after.reward.mean - found.before.reward.mean)
    assert found.before.num_tokens <= 4
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [sample["stage"] for sample in samples] == ["before"] * 16 + ["after"] * 16
    assert np.mean([sample["reward"] for sample in samples[16:]]) == pytest.approx(found.after.reward.mean)
    same = evaluate_prompts(
        EvalConfig(
            model=str(tiny_folder),
            prompts=data,
            reference=str(tiny_folder),
            reward="brief",
            sampling=SampleOptions(max_new_tokens=4),
        ),
        QUIET,
    )
    assert (same.difference.mean, same.difference.low, same.difference.high) == (0.0, 0.0, 0.0)


def judged(prompt, number, reward, ended=True, num_tokens=3):
    return Judged(
        prompt_index=prompt,
        sample_index=number,
        prompt="p",
        completion="c",
        reward=reward,
        ended=ended,
        num_tokens=num_tokens,
    )


def test_comparison_by_hand():
    before = [judged(0, 0, 0.0), judged(0, 1, 1.0), judged(1, 0, 0.5, ended=False), judged(2, 0, None)]
    after = [judged(0, 0, 1.0), judged(0, 1, 1.0), judged(1, 0, 1.0), judged(2, 0, 1.0, num_tokens=7)]
    found = compare_stages(before, after, "r")
    # Prompt 0: 0.5 -> 1, prompt 1: 0.5 -> 1; prompt 2 has no number before.
    assert found.num_prompts == 2
    assert (found.before.reward.mean, found.after.reward.mean, found.difference.mean) == (0.5, 1.0, 0.5)
    assert (found.before.ended, found.after.ended, found.after.num_tokens) == (0.75, 1.0, 4.0)
