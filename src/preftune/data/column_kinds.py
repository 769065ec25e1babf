"""What a column that no format uses seems to be, from its name and its values."""

import re
from collections.abc import Iterable

from preftune.data.label_words import NEGATIVE, NUMBERS, POSITIVE, label_word

SEEMS_PREFERENCE = "preference information"
SEEMS_ANSWER = "an answer"
SEEMS_PROMPT = "a part of the prompt"
SEEMS_REASONING = "the reasoning of the answer"
SEEMS_WEIGHT = "a weight of the row"

NO_SIGNAL = ("completions", "prompts")  # formats whose rows do not describe which answer is better
OPPOSITES = (
    ("chosen", "rejected"),
    ("chosen", "reject"),
    ("accepted", "rejected"),
    ("accepted", "refused"),
    ("accepted", "declined"),
    ("accept", "reject"),
    ("approved", "denied"),
    ("correct", "incorrect"),
    ("correct", "wrong"),
    ("right", "wrong"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("preferred", "unpreferred"),
    ("positive", "negative"),
    ("pos", "neg"),
    ("good", "bad"),
    ("good", "poor"),
    ("up", "down"),
    ("upvoted", "downvoted"),
    ("helpful", "unhelpful"),
    ("safe", "unsafe"),
    ("desirable", "undesirable"),
    ("better", "worse"),
    ("best", "worst"),
    ("winning", "losing"),
    ("winner", "loser"),
    ("win", "lose"),
    ("win", "loss"),
    ("w", "l"),
    ("selected", "unselected"),
    ("liked", "disliked"),
    ("edited", "original"),
)  # in the names of two columns: the preferred answer and the other


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PREFERENCE = _words(
    """
    rating ratings rate rated score scores label labels thumb thumbs thumbsup thumbsdown like likes liked
    dislike dislikes disliked upvote upvotes upvoted downvote downvotes downvoted vote votes winner win won loser lose
    preference preferences preferred prefer pref dispreferred better best worse worst chosen rejected reject
    selected unselected accepted accept helpful helpfulness harmless harmlessness harmful unsafe toxic toxicity
    correct correctness coherence quality feedback reward rewards rank ranks ranking grade grades stars star verdict
    judgement judgment choice safer safe good bad prob probability probabilities margin annotation annotations approved
    desirable undesirable satisfaction satisfied outcome incorrect passed failed kto swapped flipped winning losing
    """
)
_METADATA = _words(
    """
    model models source generator policy hash sha256 length len tokens lang language time date turns explanation
    rationale reason statement elaboration critique prompt
    """
)  # as the last word after one of the words above: about it, and not a preference itself
_ANSWERS = _words(
    """
    completion completions response responses answer answers output outputs messages conversation conversations
    generation generations solution solutions reply replies candidate candidates summary summaries target targets
    """
)
_PROMPTS = _words(
    """
    prompt context contexts input inputs passage passages document documents article background question query
    instruction history system system_prompt system_message system_msg system_text system_instruction
    system_instructions sys_prompt knowledge evidence dialogue dialog persona premise story post functions attachments
    initial_reason_steps prefix prefill response_prefix assistant_prefix problem user_prompt user_input
    """
)
_THOUGHTS = _words("reasoning reasoning_content thinking thoughts thought cot chain_of_thought scratchpad")
_WEIGHTS = _words("weight weights sample_weight sample_weights loss_weight")
ONE_ANSWER = ("completions", "labels", "scored")  # formats of rows of one answer
_WORDS = re.compile(r"[A-Za-z0-9]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_FLAGS, _YES_NO = frozenset(("true", "false")), frozenset(("yes", "no", "y", "n", "t", "f"))


def snake(name: str) -> str:
    """The name in lower case with underscores: "Chosen Response", chosen-response and chosenResponse are one name."""
    return re.sub(r"[\W_]+", "_", _HUMP.sub("_", name.strip())).strip("_").lower()


def words_of(name: str) -> list[str]:
    """The words of a column's name, in lower case; endings such as the 1 of response_1 are left out."""
    words = _WORDS.findall(_HUMP.sub(" ", name))
    return [word.lower().rstrip("0123456789") or word for word in words]


def kind_of(name: str, form: str) -> str:
    """What a column that is not used seems to be, from its name; "" for nothing that matters."""
    words, usual = words_of(name), snake(name)
    metadata = bool(words) and words[-1] in _METADATA
    if usual in _WEIGHTS:
        return SEEMS_WEIGHT
    if _PREFERENCE & set(words) and not metadata:
        return SEEMS_PREFERENCE
    if usual.startswith(("is_", "has_")) and form in NO_SIGNAL:
        return SEEMS_PREFERENCE
    if form in NO_SIGNAL and (_ANSWERS & set(words) or {"w", "l"} & set(words[1:])) and not metadata:
        return SEEMS_ANSWER
    if usual in _PROMPTS:
        return SEEMS_PROMPT
    if usual in _THOUGHTS:
        return SEEMS_REASONING
    return ""


def opposite(first: str, second: str) -> bool:
    """Whether two names are those of a preferred answer and of the other: pos and neg, good_reply and bad_reply."""
    left, right = snake(first).split("_"), snake(second).split("_")
    if len(left) != len(right):
        return False
    differing = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
    return len(differing) == 1 and differing[0] in OPPOSITES


def values_look_like_labels(values: Iterable[object], form: str) -> bool:
    """Whether the values of a column are labels: up and down, good and bad; or, where the format has no signal,
    true and false, 1 and 0, 1 and -1.
    """
    words = {
        label_word(value) for value in values if isinstance(value, (bool, int, float, str)) and value != ""
    }
    if not words or not words <= POSITIVE | NEGATIVE:
        return False
    both = bool(words & POSITIVE and words & NEGATIVE)
    if words <= NUMBERS:
        return both and form == "completions"
    if words <= _FLAGS and form not in NO_SIGNAL:
        return False
    return both or not words <= _FLAGS | _YES_NO
