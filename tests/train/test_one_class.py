"""Labels that are all equal: what the objective will do is said before training."""

import json

import pytest

from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.objectives import OBJECTIVES
from preftune.train.groups import one_class
from tests.data.tokenizers_for_tests import CHATML, word_tokenizer


@pytest.mark.parametrize(
    ("name", "labels", "words"),
    [
        ("bnf", (True, True), "all 2 labels are +1, so bnf only raises"),
        ("kto", (True, True), "all 2 labels are +1, so kto only raises"),
        ("bnf", (False, False), "all 2 labels are -1, so bnf only lowers"),
        ("bnf", (True, False), ""),
        ("sft", (True, True), ""),
    ],
)
def test_labels_that_are_all_equal(tmp_path, name, labels, words):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"p{k}", "completion": "a", "label": label} for k, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(path, word_tokenizer(CHATML), "labels", DataOptions())
    told = one_class(prepared, OBJECTIVES[name]())
    assert words in told and bool(told) == bool(words)
