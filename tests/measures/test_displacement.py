"""Where probability went, in constructed cases."""

import numpy as np
import pytest

from preftune.errors import DataError
from preftune.measures.displacement import (
    TOKEN_KINDS,
    by_class,
    directions,
    rank_correlation,
    same_share,
    sample_shift,
    token_expectations,
    token_kind,
)


@pytest.mark.parametrize(
    ("text", "place", "ends", "kind"),
    [
        ("The", 0, False, "first"),
        ("<|im_end|>", 5, True, "end"),
        ("<|im_end|>", 0, True, "end"),
        (" sea", 3, False, "words"),
        ("\n\n", 1, False, "punctuation"),
        (" -", 1, False, "punctuation"),
        ("€", 1, False, "punctuation"),
        (" 42", 1, False, "digits"),
        ("3.", 1, False, "digits"),
        ("4th", 1, False, "words"),
        ("", 1, False, "words"),
        ("é", 1, False, "words"),
    ],
)
def test_kinds_of_tokens(text, place, ends, kind):
    assert token_kind(text, place, ends) == kind


def test_a_token_of_one_half_is_likely():
    assert token_expectations(np.log(np.array([0.49, 0.5, 0.9]))) == ["unlikely", "likely", "likely"]


def test_classes_split_the_log_ratio():
    ratios = [np.array([1.0, -2.0, 0.5]), np.array([3.0, 1.0])]
    classes = [["first", "words", "end"], ["first", "words"]]
    found = by_class(ratios, classes, TOKEN_KINDS, [0, 1])
    assert {name: one.share for name, one in found.items()} == pytest.approx(
        {"first": 0.4, "end": 0.2, "punctuation": 0.0, "digits": 0.0, "words": 0.4}
    )
    assert (
        found["first"].per_token == 2.0
        and found["words"].per_token == -0.5
        and found["digits"].per_token is None
    )
    assert found["end"].per_completion.mean == 0.25  # 0.5 in one completion, none in the other
    assert sum(one.per_completion.mean for one in found.values()) == pytest.approx(np.mean([-0.5, 4.0]))
    with pytest.raises(DataError, match="its class"):
        by_class(ratios, [["first"], ["first"]], TOKEN_KINDS, [0, 1])


def test_directions_of_pairs():
    found = directions([1.0, 1.0, -1.0, -1.0, 0.0, -2.0], [-1.0, 2.0, -3.0, 1.0, 1.0, -1.0], range(6))
    assert {name: one.mean for name, one in found.items()} == pytest.approx(
        {"apart": 1 / 6, "both_rise": 1 / 6, "both_fall": 2 / 6, "wrong_way": 1 / 6}
    )
    assert (
        directions([-1.0, -1.0, 1.0], [-1.0, -1.0, -1.0], [0, 0, 1])["both_fall"].mean == 0.5
    )  # prompts, not pairs


def test_samples_estimate_divergences():
    """A coin that moved from (0.5, 0.5) to (0.8, 0.2): expected shares of samples give both divergences
    exactly.
    """
    ref, policy = np.log([0.5, 0.5]), np.log([0.8, 0.2])
    ratio = policy - ref
    drawn = [np.array([ratio[0]])] * 8 + [np.array([ratio[1]])] * 2
    forward = sample_shift(drawn, range(10))["log_ratio"].mean
    assert forward == pytest.approx(0.8 * np.log(1.6) + 0.2 * np.log(0.4))
    back = sample_shift([np.array([r]) for r in ratio], range(2))["log_ratio"].mean
    assert back == pytest.approx(-(0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)))
    two = sample_shift([np.array([1.0, 3.0])], [0])
    assert (two["log_ratio"].mean, two["mean_log_ratio"].mean) == (4.0, 2.0)


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 100, 1000, 5000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5 / 3, variances 4.5 / 3 and 5 / 3
    assert rank_correlation([0, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert rank_correlation([1, 1], [1, 2]) is None and rank_correlation([1], [2]) is None
    with pytest.raises(DataError, match="in pairs"):
        rank_correlation([1, 2], [1])


def test_samples_that_are_in_the_data():
    assert same_share([b"a", b"b"], [frozenset({b"a"}), frozenset({b"a"})]) == 0.5
