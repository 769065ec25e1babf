"""Tasks of lm-eval and inspect-ai: paired scores, and both libraries where they are installed."""

import gc
import json

import pytest

from preftune.commands.eval import evaluate_tasks
from preftune.commands.eval_options import EvalConfig
from preftune.errors import ConfigError
from preftune.measures.suites import SuiteOptions, TaskScore, paired_score
from preftune.progress import Reporter
from tests.folders import save_tiny_model

LM_TASK = """\
task: parity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{{{a}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""
INSPECT_TASK = """\
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def letters():
    data = [Sample(input="Say a", target="a"), Sample(input="hi", target="no such answer")]
    return Task(dataset=data, solver=generate(), scorer=includes())
"""


def test_scores_are_paired_by_example():
    before, after = {"1": 0.0, "2": 1.0, "3": 0.0}, {"3": 1.0, "2": 1.0, "1": 0.0, "4": 1.0}
    score = paired_score(("task", "acc"), before, after)
    assert score.before is not None and score.difference is not None
    assert (score.after.mean, score.after.num, score.before.num) == (0.75, 4, 3)
    assert (score.difference.mean, score.difference.num) == (pytest.approx(1 / 3), 3)
    alone: TaskScore = paired_score(("task", "acc"), None, {"1": 2.5})
    assert (alone.after.mean, alone.before, alone.difference) == (2.5, None, None)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Task gsm8k needs the package lm-eval.*preftune\[tasks\]"):
        evaluate_tasks(EvalConfig(model="m", tasks="gsm8k"), Reporter(quiet=True))


@pytest.mark.filterwarnings("default")  # of the libraries
@pytest.mark.parametrize("library", ["lm_eval", "inspect_ai"])
def test_the_libraries_run_tasks_before_and_after(library, tmp_path, capfd):
    pytest.importorskip(library)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": f"is {k} even?", "a": k % 2}) + "\n" for k in range(6)))
    (tmp_path / "parity.yaml").write_text(LM_TASK.format(rows=rows))
    (tmp_path / "letters.py").write_text(INSPECT_TASK)
    models = [str(save_tiny_model(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    capfd.readouterr()
    found = evaluate_tasks(
        EvalConfig(
            model=models[1],
            reference=models[0],
            tasks="parity" if library == "lm_eval" else f"inspect:{tmp_path / 'letters.py'}@letters",
            suite=SuiteOptions(folder=str(tmp_path), limit=4 if library == "lm_eval" else None),
            output=str(tmp_path / "out"),
        ),
        Reporter(quiet=True),
    )
    score = next(one for one in found.scores if one.metric in ("acc", "includes"))
    assert score.before is not None and score.difference is not None
    assert score.after.num == (4 if library == "lm_eval" else 2)
    assert score.difference.mean == pytest.approx(score.after.mean - score.before.mean)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"before", "after"}
    assert capfd.readouterr().err == ""
    gc.collect()  # warnings of the library's open streams belong to this test
    if library == "lm_eval":
        with pytest.raises(ConfigError, match=r"lm-eval has no task .parityy.\. Did you mean parity"):
            evaluate_tasks(
                EvalConfig(model=models[1], tasks="parityy", suite=SuiteOptions(folder=str(tmp_path))),
                Reporter(quiet=True),
            )
