"""Rollouts of a model that calls a calculator: what is scored, what the budgets do, what a template must keep."""

from dataclasses import replace

import numpy as np
import pytest

from preftune.data.options import DataOptions
from preftune.data.render import make_renderer
from preftune.environments.base import NamedEnvironment, RolloutOptions
from preftune.environments.drawers import local_drawer
from preftune.environments.rollout import Rollouts, check_template, environment_seed
from preftune.environments.steps import Steps
from preftune.errors import ConfigError
from preftune.model.layout import LayoutOptions
from preftune.model.policy import Policy
from preftune.model.whole_model import LoadOptions
from preftune.sampling.agreement import agreement
from preftune.sampling.sample import SampleOptions, load_sampler, sample
from preftune.types import Message, Record
from tests.data import tokenizers_for_tests as made
from tests.environments.calculator import QUESTIONS, Calculator

RECORDS = [
    Record(
        prompt=row["prompt"], completions=(), columns={"answer": row["answer"]}, origin=f"questions:{k + 1}"
    )
    for k, row in enumerate(QUESTIONS)
]


@pytest.fixture(scope="module")
def sampler(calling_folder):
    return load_sampler(str(calling_folder), LoadOptions(), "fp32", "cpu", DataOptions())


def drawn(sampler, environment, sampling=None, seed=5, records=RECORDS, **limits):
    model, renderer = sampler
    options = SampleOptions(**{"num_completions": 2, "max_new_tokens": 20} | (sampling or {}))
    rollouts = Rollouts(
        steps=Steps(NamedEnvironment(name="test", environment=environment), RolloutOptions(**limits)),
        renderer=renderer,
        answer_tokens=options.max_new_tokens,
    )
    prompts = [renderer.render(record).prompt for record in records]
    drawer = local_drawer(model, renderer, options, seed)
    return rollouts.draw(drawer, records, prompts, range(len(records)), options.num_completions, seed)


def flat(rollouts):
    return [one for ones in rollouts for one in ones]


def test_the_model_calls_the_calculator_and_uses_what_it_says(sampler):
    found = flat(drawn(sampler, Calculator()))
    assert np.mean([one.reward for one in found]) > 0.5
    calls = [one for one in found if one.num_answers == 2]
    assert len(calls) > len(found) / 2
    for one in calls:
        assert [turn.role for turn in one.turns] == ["assistant", "tool", "assistant"]
        asked = one.turns[0].content.removeprefix("calc ").split("+")
        assert one.turns[1].content == str(sum(map(int, asked)))
        assert (one.outcome, one.turn_rewards[0]) == ("done", None)
        assert one.sampled.text == one.turns[2].content


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_scored_tokens_are_those_of_the_answers_in_the_rendered_text(sampler, temperature):
    """Counted in the text that the tokenizer's own template gives, without our rendering."""
    _, renderer = sampler
    tokenizer, told = renderer.tokenizer, 0
    found = drawn(sampler, Calculator(), {"temperature": temperature})
    for record, ones in zip(RECORDS, found, strict=True):
        for one in ones:
            turns = [{"role": turn.role, "content": turn.content} for turn in one.turns]
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": record.prompt}, *turns], tokenize=False
            )
            ids = one.sampled.token_ids
            whole = renderer.decode(np.concatenate([renderer.render(record).prompt, ids]))
            assert whole == (
                text.removesuffix("\n") if one.sampled.ended else text.removesuffix("<|im_end|>\n")
            )
            pieces = np.split(ids, np.flatnonzero(np.diff(one.sampled.scored)) + 1)
            answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
            assert [renderer.decode(piece).removesuffix("<|im_end|>") for piece in pieces[::2]] == answers
            assert one.sampled.scored[0] and one.sampled.scored[-1]
            assert len(one.sampled.behaviour_logp) == len(one.sampled.logp) == one.sampled.scored.sum()
            told += one.num_answers > 1
    assert told


def test_log_probabilities_are_the_trainer_s(sampler):
    model, renderer = sampler
    ones = drawn(sampler, Calculator(), {"temperature": 1.3})
    policy = Policy(model=model, precision="fp32", sharing="flat", sharing_reason="")
    prompts = [renderer.render(record).prompt for record in RECORDS]
    found = agreement(policy, prompts, [[one.sampled for one in group] for group in ones], LayoutOptions())
    assert found.num_tokens == sum(one.sampled.num_scored for one in flat(ones))
    assert found.max < 1e-4


class Silent:
    """Never says anything."""

    def reset(self, row):
        return None

    def step(self, state, text):
        return None, 1.0


def test_a_rollout_of_one_turn_is_a_plain_sample(sampler):
    model, renderer = sampler
    options = SampleOptions(num_completions=3, max_new_tokens=9)
    prompts = [renderer.render(record).prompt for record in RECORDS]
    plain = sample(model, renderer, prompts, options, 5)
    ones = drawn(sampler, Silent(), {"num_completions": 3, "max_new_tokens": 9})
    for group, rolled in zip(plain, ones, strict=True):
        for one, other in zip(group, rolled, strict=True):
            assert one.token_ids.tolist() == other.sampled.token_ids.tolist()
            assert one.behaviour_logp.tolist() == other.sampled.behaviour_logp.tolist()


def test_rollouts_follow_from_the_seed_and_not_from_their_company(sampler):
    whole = drawn(sampler, Calculator(), {"temperature": 2.0})
    again = drawn(sampler, Calculator(), {"temperature": 2.0})
    other = drawn(sampler, Calculator(), {"temperature": 2.0}, seed=6)
    texts = [[one.turns for one in ones] for ones in whole]
    assert texts == [[one.turns for one in ones] for ones in again]
    assert texts != [[one.turns for one in ones] for ones in other]
    [alone] = drawn(sampler, Calculator(), {"temperature": 2.0}, records=RECORDS[:1])
    assert [one.turns for one in alone] == texts[0]


class Endless:
    """Says the same after every answer, at some length, and gives a tenth for each answer."""

    def __init__(self, words=1):
        self.words, self.finished = words, []

    def reset(self, row):
        return {"seed": row["seed"]}

    def step(self, state, text):
        return "word " * self.words, 0.1

    def finish(self, state):
        self.finished.append(state["seed"])
        return 1.0


def test_budgets_of_turns(sampler):
    environment = Endless()
    found = flat(drawn(sampler, environment, max_turns=3))
    whole = [one for one in found if one.outcome == "turns"]
    assert whole and all(one.num_answers == 3 for one in whole)
    assert whole[0].turn_rewards == (0.1, 0.1, 1.1) and whole[0].reward == pytest.approx(1.3)
    assert len(environment.finished) == len(found) == len(set(environment.finished))
    assert environment_seed(5, 0, 0) in environment.finished


@pytest.mark.parametrize("total", [20, 33, 40, 57])
def test_the_budget_in_all_counts_what_the_environment_says(sampler, total):
    found = flat(drawn(sampler, Endless(), {"max_new_tokens": 12}, max_turns=9, total_tokens=total))
    assert {one.outcome for one in found} <= {"tokens", "cut"}
    for one in found:
        assert len(one.sampled.token_ids) <= total
        assert one.sampled.scored[-1] and one.turns[-1].role == "assistant"


def test_an_answer_that_is_cut_off_ends_its_rollout_and_has_its_reward(sampler):
    found = flat(drawn(sampler, Endless(), {"max_new_tokens": 3}))
    assert {one.outcome for one in found} == {"cut"} and all(one.num_answers == 1 for one in found)
    assert all(len(one.sampled.token_ids) == 3 and not one.sampled.ended for one in found)
    assert found[0].turn_rewards == (1.1,)


def test_a_flood_is_cut_to_its_budget(sampler):
    _, renderer = sampler
    found = flat(drawn(sampler, Endless(words=10**5), max_turns=2, turn_tokens=7))
    said = [one.turns[1].content for one in found if len(one.turns) > 1]
    assert said and set(said) == {said[0]}
    assert said[0].endswith("\n[the rest is cut off]")
    kept = said[0].removesuffix("\n[the rest is cut off]")
    assert len(renderer.tokenizer(kept, add_special_tokens=False)["input_ids"]) == 7


# --- templates ---

TRAJECTORY = (
    Message(role="assistant", content="I am fine"),
    Message(role="user", content="And you?"),
    Message(role="assistant", content="Paris."),
    Message(role="tool", content="The sea"),
)
FAMILIES = {
    "chatml": (made.CHATML, "<|im_end|>"),
    "two bos": (made.TWO_BOS, "<|im_end|>"),
    "gemma": (made.GEMMA, "</s>"),
    "mistral": (made.MISTRAL, "</s>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_have_the_tokens_that_training_gives_them(family):
    """Prompt, answers and continuations one after another are the tokens of the whole dialogue."""
    template, eos = FAMILIES[family]
    renderer = make_renderer(made.byte_tokenizer(template, eos=eos))
    record = Record(prompt="Hello", completions=(), origin="f:1")
    last = Message(role="assistant", content="So be it.")
    group = renderer.render(replace(record, completions=((*TRAJECTORY, last),)))
    answers = np.split(group.completions[0], np.flatnonzero(np.diff(group.scored[0])) + 1)[::2]
    first, second = (renderer.continued(record, TRAJECTORY[:k]) for k in (2, 4))
    grown = np.concatenate([answers[0], first, answers[1], second, answers[2]])
    assert grown.tolist() == group.completions[0].tolist()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (made.THINKING, r"template of MODEL cannot continue .* writes a turn of a trajectory differently"),
        (made.NO_END, r"template of MODEL cannot continue .* no end-of-turn token"),
        (None, r"MODEL is read as plain text"),
    ],
)
def test_a_template_that_cannot_append_turns_is_refused_by_name(template, words):
    with pytest.raises(ConfigError, match=words):
        check_template(make_renderer(made.byte_tokenizer(template)), "MODEL")
    check_template(make_renderer(made.byte_tokenizer(made.CHATML, eos="<|im_end|>")), "MODEL")
