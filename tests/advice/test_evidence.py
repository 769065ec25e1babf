"""Evidence as JSON: in and out the same, and every wrong value one sentence."""

import json

import pytest

from preftune.advice.evidence import Evidence, evidence_from, evidence_json, read_evidence
from tests.refusals import refusal

FULL = {
    "num_prompts": 10,
    "num_pairs": 20,
    "completions_per_prompt": 2.5,
    "completion_tokens": 40,
    "off_policy": -0.2,
    "best_of_data": 0.5,
    "best_of_n": {"1": 0.1, "4": 0.3},
    "reward_spread": 0.2,
    "zero_spread": 0.0,
    "noise": 0.1,
    "length_bias": 0.6,
    "overlap": 0.3,
    "duplicates": 0.0,
    "leakage": 0.0,
    "can_reward": True,
    "can_sample": False,
    "samples": 0,
    "steps": 100,
    "can_hold_reference": True,
    "keep_length": False,
}


def test_out_and_in_again_is_the_same():
    evidence = evidence_from(FULL, "a test")
    assert evidence.best_of_n == {1: 0.1, 4: 0.3}
    assert evidence_json(evidence) == FULL
    assert evidence_from(evidence_json(evidence), "a test") == evidence
    assert evidence_from(evidence_json(Evidence()), "a test") == Evidence()


def test_every_field_is_in_the_full_example():
    assert list(FULL) == list(evidence_json(Evidence()))


def test_a_diagnosis_holds_it_among_other_things():
    assert read_evidence(json.dumps({"evidence": {"num_pairs": 3}, "findings": []}), "d.json") == Evidence(
        num_pairs=3
    )
    assert read_evidence(json.dumps({"num_pairs": 3}), "d.json") == Evidence(num_pairs=3)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "d.json is not valid JSON"),
        ("[1]", "d.json contains no evidence"),
        ('{"evidence": 3}', "d.json contains no evidence"),
        ('{"num_pair": 3}', "Did you mean num_pairs?"),
        ('{"num_pairs": -1}', "num_pairs has an invalid value"),
        ('{"num_pairs": 1.5}', "expected a whole number"),
        ('{"num_pairs": true}', "expected a whole number"),
        ('{"noise": 1.5}', "expected a number in [0, 1]"),
        ('{"noise": NaN}', "expected a number in [0, 1]"),
        ('{"noise": "high"}', "expected a number in [0, 1]"),
        ('{"reward_spread": -0.1}', "expected a finite number of at least 0"),
        ('{"off_policy": Infinity}', "expected a finite number"),
        ('{"can_reward": 1}', "expected true or false"),
        ('{"best_of_n": {"x": 1}}', "best_of_n has a key that is not a number of samples"),
        ('{"best_of_n": {"0": 1}}', "expected a finite reward"),
        ('{"best_of_n": [1]}', "expected a finite reward"),
    ],
)
def test_what_cannot_be_is_refused(text, wanted):
    assert wanted in refusal(read_evidence, text, "d.json")


def test_answers_win_and_none_leaves_what_was_known():
    known = Evidence(can_reward=True, samples=5)
    assert known.with_answers(can_reward=False, samples=None, steps=3) == Evidence(
        can_reward=False, samples=5, steps=3
    )
