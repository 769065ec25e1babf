"""Completions of several turns: how they are written in files, which of their tokens are the assistant's,
what cuts do.
"""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.fit import COMPLETION_CUT, CUT_EQUAL, NOTHING_SCORED, WHOLE, fit, take_completions
from preftune.data.formats import FORMATS, Drop, detect
from preftune.data.inspect import inspect_data
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.data.render import make_renderer
from preftune.data.signals import derive
from preftune.errors import DataError
from preftune.types import Group, Message, Record
from tests.data import tokenizers_for_tests as made


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


def tool(content):
    return {"role": "tool", "content": content}


def messages(*turns):
    return tuple(Message(**turn) for turn in turns)


HI, ASK, YES = user("Hi"), bot("Who?"), bot("Paris.")
GOOD, BAD = (ASK, tool("me"), YES), (bot("What?"), user("you"), bot("The sea."))

# --- from rows to records ---

ROWS = {
    "beyond the prompt": ("pairs", {"prompt": "Hi", "chosen": [*GOOD], "rejected": [*BAD]}, "Hi"),
    "beyond the prompt's turns": (
        "pairs",
        {"prompt": [HI], "chosen": [*GOOD], "rejected": [*BAD]},
        messages(HI),
    ),
    "whole dialogues and a prompt": (
        "pairs",
        {"prompt": "Hi", "chosen": [HI, *GOOD], "rejected": [HI, *BAD]},
        messages(HI),
    ),
    "whole dialogues": ("dialogues", {"chosen": [HI, *GOOD], "rejected": [HI, *BAD]}, messages(HI)),
    "whole dialogues with a shared answer": (
        "dialogues",
        {"chosen": [HI, YES, tool("so"), *GOOD], "rejected": [HI, YES, tool("so"), *BAD]},
        messages(HI, YES, tool("so")),
    ),
    "sharegpt": ("sharegpt", {"conversations": [HI], "chosen": [*GOOD], "rejected": [*BAD]}, messages(HI)),
}


@pytest.mark.parametrize("case", ROWS)
def test_pairs_of_trajectories(case):
    name, row, prompt = ROWS[case]
    assert detect([row]).name == name
    record = FORMATS[name].convert(row)
    assert record == Record(prompt=prompt, completions=(messages(*GOOD), messages(*BAD)), pairs=((0, 1),))


def test_transcripts_that_part_at_an_earlier_answer():
    start, end = "\n\nHuman: Hi\n\nAssistant:", "\n\nHuman: so\n\nAssistant:"
    record = FORMATS["dialogues"].convert({"chosen": f"{start} a{end} b", "rejected": f"{start} c{end} d"})
    assert isinstance(record, Record) and record.prompt == messages(HI)
    assert record.completions == (
        messages(bot("a"), user("so"), bot("b")),
        messages(bot("c"), user("so"), bot("d")),
    )
    blank = FORMATS["dialogues"].convert({"chosen": f"{start} a{end} b", "rejected": f"{start} {end} d"})
    assert blank == Drop(reason="empty completion")


def test_one_side_may_be_a_single_answer():
    record = FORMATS["dialogues"].convert({"chosen": [HI, *GOOD], "rejected": [HI, YES]})
    assert isinstance(record, Record) and record.completions == (messages(*GOOD), "Paris.")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "Hi", "completion": [*GOOD], "label": True}, "labels"),
        ({"prompt": "Hi", "completions": [[*GOOD], "no"], "rewards": [1, 0]}, "scored"),
        ({"prompt": "Hi", "completions": [[*GOOD], "no"], "pairs": [[0, 1]]}, "groups"),
        (
            {"prompt": "Hi", "answers": [{"answer": [*GOOD], "rank": 1}, {"answer": "no", "rank": 2}]},
            "ranked",
        ),
    ],
)
def test_other_formats_take_trajectories(row, name):
    assert detect([row]).name == name
    record = FORMATS[name].convert(row)
    assert isinstance(record, Record) and record.completions[0] == messages(*GOOD)


def test_a_labeled_dialogue_keeps_its_last_answer_as_the_completion():
    record = FORMATS["messages_label"].convert({"messages": [HI, *GOOD], "label": True})
    assert isinstance(record, Record)
    assert (record.prompt, record.completions) == (messages(HI, ASK, tool("me")), ("Paris.",))


@pytest.mark.parametrize("role", ["tool", "function", "observation", "ipython"])
def test_what_a_tool_returned_may_end_a_prompt(role):
    row = {"prompt": [HI, ASK, {"role": role, "content": "me"}], "chosen": "yes", "rejected": "no"}
    record = FORMATS["pairs"].convert(row)
    assert isinstance(record, Record) and record.prompt == messages(HI, ASK, tool("me"))


def test_a_dialogue_that_starts_with_the_assistant_is_whole_if_it_repeats_the_prompt():
    for prompt in ("Hi", [bot("Welcome"), HI]):
        row = {
            "prompt": prompt,
            "chosen": [bot("Welcome"), HI, bot("a")],
            "rejected": [bot("Welcome"), HI, bot("b")],
        }
        record = FORMATS["pairs"].convert(row)
        assert isinstance(record, Record)
        assert (record.prompt, record.completions) == (messages(bot("Welcome"), HI), ("a", "b"))


TOO = "not one answer of the assistant, nor a trajectory; got the turns "
REFUSED = {
    "the user parts": (
        {"chosen": [HI, ASK, user("a"), YES], "rejected": [HI, ASK, user("b"), YES]},
        "prompts of chosen and rejected differ; got in turn 3 user: 'a' and user: 'b'",
    ),
    "one goes on": (
        {"chosen": [HI, ASK], "rejected": [HI, ASK, user("b"), YES]},
        "prompts of chosen and rejected differ; got 1 and 3 turns",
    ),
    "another role": (
        {"chosen": [HI, *GOOD], "rejected": [HI, user("b"), YES]},
        "prompts of chosen and rejected differ",
    ),
    "nothing shared": (
        {"chosen": [ASK, HI, YES], "rejected": [YES, HI, ASK]},
        "the shared prompt does not end with",
    ),
    "two answers in a row": (
        {"chosen": [HI, *GOOD], "rejected": [HI, bot("a"), bot("b")]},
        TOO + "assistant, assistant; expected text, one assistant turn, or",
    ),
    "beyond the prompt, two in a row": (
        {"prompt": "Hi", "chosen": [*GOOD], "rejected": [bot("a"), bot("b")]},
        TOO,
    ),
    "it starts with a tool": (
        {"prompt": "Hi", "completion": [tool("me"), YES], "label": True},
        TOO + "tool, assistant",
    ),
    "it ends with a tool": ({"prompt": "Hi", "completion": [ASK, tool("me")], "label": True}, TOO),
    "an empty answer": (
        {"prompt": "Hi", "chosen": [*GOOD], "rejected": [bot(" "), user("you"), bot("b")]},
        "field rejected is empty",
    ),
    "an empty answer after the prompt": (
        {"prompt": "Hi", "chosen": [HI, *GOOD], "rejected": [HI, bot(""), tool("x"), YES]},
        "field rejected is empty",
    ),
    "a tool's call": (
        {
            "prompt": "Hi",
            "chosen": [{**ASK, "tool_calls": [{"arguments": {}}]}, tool("me"), YES],
            "rejected": "no",
        },
        "has no function name",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_trajectory_is_refused(case):
    row, words = REFUSED[case]
    with pytest.raises(DataError, match=words):
        detect([row]).convert(row)


def test_signals_tell_trajectories_apart():
    record = Record(
        prompt="Hi", completions=(messages(*GOOD), messages(*GOOD), "no"), rewards=(1.0, 0.5, 0.0)
    )
    (derived,), _ = derive([record], "pairs")
    assert derived.completions == record.completions and set(derived.pairs) == {(0, 2), (1, 2)}


# --- from records to tokens ---

TRAJECTORY = messages(bot("I am fine"), user("And you?"), bot("Paris."), tool("The sea"), bot("So be it."))
RECORD = Record(prompt="Hello", completions=(TRAJECTORY, "The sea."), pairs=((0, 1),), origin="f:1")
FAMILIES = {
    "chatml": (made.CHATML, "<|im_end|>", "<|im_end|>"),
    "chatml with another eos": (made.CHATML, "</s>", "<|im_end|>"),
    "two bos": (made.TWO_BOS, "<|im_end|>", "<|im_end|>"),
    "llama3": (made.LLAMA3, "</s>", "<|eot_id|>"),
    "gemma": (made.GEMMA, "</s>", "<end_of_turn>"),
    "mistral": (made.MISTRAL, "</s>", "</s>"),
}


def renderer_of(family):
    template, eos, end = FAMILIES[family]
    return make_renderer(made.byte_tokenizer(template, eos=eos)), end


def runs(ids, mask, renderer) -> list[tuple[bool, str]]:
    """The text of each run of scored or unscored tokens."""
    cuts = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
    return [(bool(mask[a]), renderer.decode(ids[a:b])) for a, b in pairwise(cuts)]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_answers_and_their_ends_are_scored(family):
    renderer, end = renderer_of(family)
    group = renderer.render(RECORD)
    blank = " " if family == "mistral" else ""
    written = runs(group.completions[0], group.scored[0], renderer)
    assert [text for scored, text in written if scored] == [
        f"{blank}{m.content}{end}" for m in TRAJECTORY[::2]
    ]
    context = [text for scored, text in written if not scored]
    assert all(m.content in text for m, text in zip(TRAJECTORY[1::2], context, strict=True))
    assert group.scored[1].all() and group.num_scored == (
        int(group.scored[0].sum()),
        len(group.completions[1]),
    )
    alone = renderer.render(replace(RECORD, completions=("The sea.",), pairs=()))
    assert alone.scored == () and alone.completions[0].tolist() == group.completions[1].tolist()


@pytest.mark.parametrize("family", ["chatml", "two bos", "gemma", "mistral"])
def test_a_trajectory_reads_as_the_template_writes_it(family):
    """Token for token what the whole dialogue gives, and every answer follows what the model would be asked
    with.

    Not so for llama3 with this tokenizer: it joins the line breaks of a header only where no answer follows.
    """
    renderer, _ = renderer_of(family)
    group, tokenizer = renderer.render(RECORD), renderer.tokenizer
    ids, mask = group.completions[0], group.scored[0]
    turns = [{"role": m.role, "content": m.content} for m in messages(user("Hello")) + TRAJECTORY]
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    both = [*group.prompt.tolist(), *ids.tolist()]
    shift = 1 if family == "two bos" else 0
    assert whole[shift : shift + len(both)] == both
    starts = [0, *(np.flatnonzero(np.diff(mask.astype(int)) == 1) + 1).tolist()]
    for answer, start in zip((1, 3, 5), starts, strict=True):
        asked = tokenizer.apply_chat_template(turns[:answer], add_generation_prompt=True, return_dict=False)
        assert asked[shift:] == both[: len(group.prompt) + start]


def test_a_cut_off_trajectory_has_no_end_of_turn_at_its_end():
    renderer, _ = renderer_of("llama3")
    whole = renderer.render(RECORD)
    cut = renderer.render(replace(RECORD, ended=(False, True)))
    assert [*cut.completions[0].tolist(), renderer.end_of_turn] == whole.completions[0].tolist()
    assert cut.scored[0].tolist() == whole.scored[0].tolist()[:-1]
    assert (
        cut.completions[0] == renderer.end_of_turn
    ).sum() == 4  # two answers, the user's turn and the tool's


def test_a_merge_over_a_boundary_gives_every_turn_its_own_tokens():
    renderer, _ = renderer_of("chatml")
    merging = messages(bot("I am"), user("And?"), bot("\n\nParis."))
    group = renderer.render(replace(RECORD, completions=(merging, "no")))
    whole = renderer.tokenizer("assistant\n\n\nParis.", add_special_tokens=False)["input_ids"]
    apart = [
        renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("assistant\n", "\n\nParis.")
    ]
    assert whole != apart[0] + apart[1]  # or the test shows nothing
    written = runs(group.completions[0], group.scored[0], renderer)
    assert written[-1] == (True, "\n\nParis.<|im_end|>") and written[-2][1].endswith("assistant\n")


TEMPLATE_WITHOUT_TOOLS = (
    "{% for m in messages %}{% if m['role'] != 'tool' %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (made.THINKING, r"f:1: .*writes a turn of a trajectory differently.*<think>.*against"),
        (made.NO_END, r"f:1: .*no end-of-turn token.*got a trajectory of 5 turns"),
        (TEMPLATE_WITHOUT_TOOLS, r"f:1: .*leaves a turn out; got tool: 'The sea'"),
        (None, r"f:1: A trajectory needs a chat template"),
    ],
)
def test_a_template_that_proves_nothing_is_refused(template, words):
    renderer = make_renderer(made.byte_tokenizer(template))
    with pytest.raises(DataError, match=words):
        renderer.render(RECORD)
    assert len(renderer.render(replace(RECORD, completions=("no", "The sea."))).completions) == 2


def test_tokens_that_reach_over_a_later_boundary_without_proof_are_refused():
    words = (
        "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
    )
    renderer = make_renderer(made.word_tokenizer(words))
    record = Record(
        prompt="Hello", completions=(messages(bot("I am"), user("How"), bot("fine")),), origin="f:1"
    )
    with pytest.raises(
        DataError, match=r"f:1: .* are not the first tokens of prompt and completion together"
    ):
        renderer.render(record)


def test_the_boundary_that_fails_is_the_one_that_is_told():
    """The first answer follows a token of its own, the second a blank that joins it."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>' if loop.index0 < 2 else 'assistant ' }}"
        "{% endif %}{{ m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' if messages | length < 2 else 'assistant ' }}{% endif %}"
    )
    renderer = make_renderer(made.word_tokenizer(template))
    record = Record(
        prompt="Hello", completions=(messages(bot("I am"), user("How"), bot("fine")),), origin="f:1"
    )
    with pytest.raises(
        DataError, match=r"f:1: the tokens of a trajectory's earlier turns are not the first tokens"
    ):
        renderer.render(record)


def test_plain_text_has_no_tools():
    renderer = make_renderer(made.byte_tokenizer())
    record = Record(prompt=messages(HI, ASK, tool("me")), completions=("a",), origin="f:1")
    with pytest.raises(DataError, match=r"f:1: Plain text has no place for a turn of the tool"):
        renderer.render(record)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PROPERTY = renderer_of("chatml")[0]


@settings(max_examples=60, deadline=None)
@given(asked=text, answers=st.lists(text.filter(lambda t: t.strip()), min_size=2, max_size=4), between=text)
def test_any_answers_come_back_from_their_scored_tokens(asked, answers, between):
    turns = [turn for answer in answers for turn in (bot(answer), user(between))][:-1]
    group = PROPERTY.render(Record(prompt=asked, completions=(messages(*turns),)))
    scored = [
        content for is_scored, content in runs(group.completions[0], group.scored[0], PROPERTY) if is_scored
    ]
    assert scored == [answer + "<|im_end|>" for answer in answers]


# --- the length policy ---


def masked(*completions, prompt=(5, 6), **known):
    """Completions as strings of tokens; those in brackets are context."""
    ids, masks = [], []
    for tokens in completions:
        inside = np.cumsum([(t == "[") - (t == "]") for t in tokens])
        kept = [k for k, t in enumerate(tokens) if t not in "[]"]
        ids.append(np.array([ord(tokens[k]) for k in kept], dtype=np.int32))
        masks.append(np.array([inside[k] == 0 for k in kept]))
    return Group(
        prompt=np.array(prompt, dtype=np.int32),
        completions=tuple(ids),
        scored=tuple(masks),
        origin="f:1",
        **({"pairs": ((0, 1),)} | known),
    )


def written(group):
    """The inverse of `masked`, one mark per token."""
    return [
        "".join(chr(t) if m else chr(t).upper() for t, m in zip(ids, mask, strict=True))
        for ids, mask in zip(group.completions, group.scored, strict=True)
    ]


def fitted(group, max_length, truncation="cut_completion"):
    return fit(group, max_length=max_length, truncation=truncation, bos=None)


def test_masks_are_cut_with_their_tokens_and_context_at_the_end_goes():
    group = masked("ab[cd]ef", "xy[z]w")
    assert fitted(group, 8).group is group
    assert written(fitted(group, 7).group) == ["abCDe", "xyZw"]
    assert written(fitted(group, 6).group) == ["ab", "xyZw"]
    assert written(fitted(group, 5).group) == ["ab", "xy"]
    assert fitted(group, 5).kind == COMPLETION_CUT
    assert written(fitted(group, 3).group) == ["a", "x"]


def test_trajectories_that_are_equal_after_cutting_are_no_preference():
    assert fitted(masked("ab[cd]ef", "ab[c]wxy"), 5).kind == CUT_EQUAL
    assert fitted(masked("ab[c]d", "abcd"), 9).kind == WHOLE  # the same tokens, spoken by others


def test_a_completion_without_scored_tokens_drops_its_group():
    assert fitted(masked("[ab]", "xy"), 9).kind == NOTHING_SCORED
    late = masked("[ab]c", "xyz")
    assert fitted(late, 9).kind == WHOLE
    assert (fitted(late, 4).group, fitted(late, 4).kind) == (None, NOTHING_SCORED)


def test_masks_stay_with_their_completions():
    three = masked("a[b]c", "d", "e[f]gh", pairs=((0, 1), (0, 2)))
    assert written(take_completions(three, [0, 2], [1])) == ["aBc", "eFgh"]
    assert written(fitted(masked("a[b]c", "a[b]c", "e[f]gh", pairs=((0, 1), (0, 2))), 9).group) == [
        "aBc",
        "eFgh",
    ]


# --- reports ---


def test_what_is_not_scored_is_counted_and_shown(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"prompt": "Hi", "chosen": [*GOOD], "rejected": "No <s> no"},
        {"prompt": "Ho", "chosen": "yes", "rejected": "no"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    tokenizer = made.byte_tokenizer(made.CHATML, eos="<|im_end|>")
    prepared = prepare(path, tokenizer, "pairs", DataOptions())
    group = prepared.groups[0]
    context = int((~group.scored[0]).sum())
    assert prepared.report.num_context == context > 0
    assert (
        f"{context} tokens of trajectories are not the assistant's and are not scored"
        in prepared.report.lines()
    )
    assert not any(
        "not scored" in line
        for line in prepare(
            path, tokenizer, "pairs", DataOptions(max_length=len(prepared.groups[1].prompt) + 9)
        ).report.lines()
    )
    found = inspect_data(path, tokenizer, DataOptions())
    assert found.special_inside == 1  # the <s>, not the ends of a trajectory's turns
    assert found.preferred_tokens.max == group.num_scored[0] == len(group.completions[0]) - context
    assert found.completion_tokens.max == len(group.completions[0])
    shown = found.samples(1)[0]
    spans = [(shown.plain[span.start : span.end], str(span.style)) for span in shown.spans]
    first = shown.plain.index("completion 1 chosen")
    assert f"{len(group.completions[0])} tokens, {group.num_scored[0]} of them scored" in shown.plain
    assert "of them scored" not in shown.plain[shown.plain.index("completion 2") :]
    green = "".join(t for t, style in spans if "green" in style or "yellow" in style)
    assert green == "Who?<|im_end|>Paris.<|im_end|>No <s> no<|im_end|>"
    assert "me" in "".join(
        t
        for (t, style), span in zip(spans, shown.spans, strict=True)
        if "dim" in style and span.start > first
    )
