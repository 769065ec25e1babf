"""Each fault of a text, there and not there."""

import pytest

from preftune.measures.faults import FAULTS, count_faults, faults_of

LONG = "word " * 30
CLEAN = dict(
    prompt=["What is the sea?"], completions=["It is water, and salt.", "<b>No</b> idea: user: ask ### it."]
)


def test_a_clean_row():
    assert faults_of(**CLEAN) == frozenset()
    assert faults_of(["a < b | c > d"], ["Ça coûte 5 € – où ? NÃO. Â-ha.", "Tab\tand\nline"]) == frozenset()


@pytest.mark.parametrize(
    "fault, prompt, completion",
    [
        ("special_tokens", "a <|eot_id|> b", "x"),
        ("special_tokens", "a", "x <|im_end|>"),
        ("special_tokens", "<<SYS>> a", "x"),
        ("role_markers", "a", "Fine.\n\nHuman: and you?"),
        ("role_markers", "a", "### Response: yes"),
        ("role_markers", "a", "  User: hi"),
        ("double_bos", "<s> a", "x"),
        ("double_bos", "<|begin_of_text|>a", "x"),
        ("no_end", "a", LONG),
        ("no_end", "a", LONG + "and then,"),
        ("control_characters", "a\x00", "x"),
        ("control_characters", "a", "\x0crac{1}{2}"),
        ("control_characters", "a", "\ud83d"),
        ("mojibake", "fiancÃ©", "x"),
        ("mojibake", "a", "Itâ€™s"),
        ("mojibake", "a", "her â\x80\x94 him"),
        ("mojibake", "a", "\ufffd"),
    ],
)
def test_each_fault(fault, prompt, completion):
    assert fault in faults_of([prompt], ["Yes.", completion])
    assert fault not in faults_of(**CLEAN)


def test_not_a_fault():
    assert "role_markers" not in faults_of(
        ["Human: hi"], ["The user: a person."]
    )  # in the prompt, or inside a line
    assert "no_end" not in faults_of(["a"], ["Paris"])  # short
    assert "no_end" not in faults_of(["a"], [LONG + "end."]) and "no_end" not in faults_of(
        ["a"], [LONG + "```"]
    )


def test_what_the_row_says_of_its_end():
    assert faults_of(["a"], [LONG, "x"], [False, True]) == {"cut_off"}  # that it has no end is no news
    assert faults_of(["a"], [LONG], [True]) == frozenset()


def test_the_tokenizer_s_own_tokens():
    assert faults_of(["<s> a"], ["</s>"], special=["<s>", "</s>"], bos="<s>") == {
        "special_tokens",
        "double_bos",
    }
    assert faults_of(["BOS a"], ["x"], bos="BOS") == {"double_bos"}
    assert faults_of(["a BOS"], ["x"], bos="BOS") == frozenset()
    assert faults_of(["a"], ["<s>struck</s>"]) == frozenset()  # HTML, where no tokenizer says otherwise


def test_counts():
    faults = [{"mojibake"}, set(), {"mojibake", "no_end"}, set()]
    told = count_faults([(f"f:{number}", frozenset(one)) for number, one in enumerate(faults, 1)])
    assert list(told) == ["no_end", "mojibake"] and set(told) < set(FAULTS)
    assert (told["mojibake"].rows, told["mojibake"].share, told["mojibake"].example) == (2, 0.5, "f:1")
    assert told["no_end"].example == "f:3"
