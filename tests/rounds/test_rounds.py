"""Parts of rounds against values worked out by hand."""

from collections import Counter

import pytest

from preftune.errors import ConfigError, DataError
from preftune.rounds.evolve import (
    chosen_parents,
    evolve,
    evolved_rows,
    near_misses,
    reward_spread,
    rewriting_prompt,
)
from preftune.rounds.measure import distinct_n, measure_round
from preftune.rounds.mix import pair_rows_of, replayed
from preftune.rounds.options import named_places, named_reward, rewrite_template
from preftune.types import Message, Record


def test_parents_are_drawn_by_their_spread():
    """One of three prompts with spreads of 3, 1 and 0: with chances 3/4, 1/4 and 0."""
    count = Counter(chosen_parents([3.0, 1.0, 0.0], 1, seed)[0] for seed in range(2000))
    assert count[2] == 0 and count[0] / 2000 == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 2000) ** 0.5)
    assert sorted(chosen_parents([3.0, 1.0, 0.0], 3, 0)) == [0, 1] and chosen_parents([0.0, 0.0], 2, 0) == []
    assert reward_spread([None, 1.0, 0.25]) == 0.75 and reward_spread([1.0, None]) == 0.0


def test_evolved_rows_keep_where_they_come_from():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say sea."}]
    parents = [
        {"prompt": "Say tea.", "completions": ["a", "b"], "rewards": [0.0, 1.0]},
        {"prompt": turns, "completions": ["c", "d"], "rewards": [2.0, None]},
        {"prompt": "Say snow.", "completions": ["e", "f"], "rewards": [0.0, 1.0]},
    ]
    rows, unusable = evolved_rows(parents, ["Say tea twice. ", "Say sea in French.", " Say snow."])
    assert unusable == 1
    assert rows[0] == {"prompt": "Say tea twice.", "parent": "Say tea.", "parent_text": "b"}
    assert rows[1]["prompt"] == [turns[0], {"role": "user", "content": "Say sea in French."}]
    assert rows[1]["parent_text"] == "c"
    asked = rewriting_prompt(turns, "New: {prompt}")
    assert asked.prompt == (Message(role="user", content="New: Say sea."),)


def test_evolving_asks_only_where_rewards_differ():
    scored = [
        {"prompt": f"Say {k}.", "completions": ["a", "b"], "rewards": [0.0, float(k % 2)]} for k in range(6)
    ]
    seen: list[str] = []

    def draw(asked):
        seen.extend(one.prompt[0].content for one in asked)
        return [f"new {k}" for k in range(len(asked))]

    rows, unusable = evolve(scored, 5, "{prompt}", 0, draw)
    assert sorted(seen) == ["Say 1.", "Say 3.", "Say 5."] and len(rows) == 3 and unusable == 0


def test_near_misses():
    rows = [
        {"prompt": "n", "parent_text": "old", "completions": ["x", "y"], "rewards": [0.0, 1.0]},
        {"prompt": "n", "parent_text": "y", "completions": ["x", "y"], "rewards": [0.0, 1.0]},
        {"prompt": "n", "parent_text": "old", "completions": ["x"], "rewards": [None]},
        {"prompt": "n", "completions": ["x"], "rewards": [1.0]},
    ]
    assert near_misses(rows) == [{"prompt": "n", "chosen": "y", "rejected": "old"}]


def test_the_share_of_replayed_pairs():
    """6 own pairs at a share of 1/4 are joined by 2 others, at 1/2 by 6, and by no more than there are."""
    record = Record(prompt="p", completions=("a", "b", "c"), pairs=((0, 1), (2, 1)))
    rows = pair_rows_of([record])
    assert rows == [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "c", "rejected": "b"},
    ]
    many = [{"prompt": str(k)} for k in range(9)]
    assert [len(replayed(6, many, share, 0)) for share in (0.25, 0.5, 0.9)] == [2, 6, 9]
    assert len({row["prompt"] for row in replayed(6, many, 0.5, 0)}) == 6
    with pytest.raises(DataError, match="no pairs"):
        replayed(6, [], 0.5, 0)


def test_measures_of_a_round():
    """Prompt 1 passes with 1 of 3, so pass@1 is 1/3 and pass@2 = 1 - C(2,2)/C(3,2) = 2/3; prompt 2 with both of 2.

    Pairs of words of prompt 1: "a b" twice and "b c": 2 of 3 differ; of prompt 2: "d e" and "d f", all differ.
    """
    texts = [["a b", "a b", "b c"], ["d e", "d f"], ["no reward"]]
    found = measure_round(texts, [[0.0, 1.0, 0.5], [1.0, 2.0], [None]], 1.0)
    assert found is not None and (found.num_prompts, found.k) == (2, 2)
    assert found.pass_1.mean == pytest.approx((1 / 3 + 1) / 2)
    assert found.pass_k.mean == pytest.approx((2 / 3 + 1) / 2)
    assert found.reward.mean == pytest.approx((0.5 + 1.5) / 2)
    assert found.distinct.mean == pytest.approx((2 / 3 + 1) / 2)
    assert found.distinct_2.mean == pytest.approx((2 / 3 + 1) / 2)
    assert found.length.mean == 3.0
    assert measure_round([["a"]], [[None]], 1.0) is None
    assert distinct_n(["one"], 2) is None


def test_policies_by_their_place(tmp_path):
    line = "implicit(policy=last, reference=first) + 0.1*brief"
    assert named_places(line) == {"last", "first"} and named_places("brief") == set()
    assert named_reward(line, "runs/a", None, "base") == (
        "implicit(policy='runs/a', reference='base') + 0.1*brief"
    )
    assert named_reward("likelihood(model=before)", "l", "it's", None) == 'likelihood(model="it\'s")'
    with pytest.raises(ConfigError, match="does not have"):
        named_reward(line, "runs/a", None, None)
    (tmp_path / "t.txt").write_text("Write something else.")
    with pytest.raises(ConfigError, match="no place for the prompt"):
        rewrite_template(str(tmp_path / "t.txt"))
