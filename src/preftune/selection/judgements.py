"""Judgements of people on pairs of completions: an append-only log, what remains after undo, and agreement."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

HumanChoice = Literal["first", "second", "tie", "skip"]
HUMAN_CHOICES: tuple[HumanChoice, ...] = get_args(HumanChoice)


@dataclass(frozen=True, kw_only=True)
class Question:
    """Two completions of a prompt; `id` follows from the texts, so that a log fits the same data again."""

    id: str
    prompt: object  # text, or turns as chat APIs write them
    first: str
    second: str


def make_question(prompt: object, first: str, second: str) -> Question:
    text = json.dumps([prompt, first, second], sort_keys=True)
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return Question(id=digest, prompt=prompt, first=first, second=second)


def is_swapped(question: Question, annotator: str, seed: int) -> bool:
    """Whether the second completion is on the left: random, and the same after a restart."""
    return hashlib.blake2b(f"{seed}/{annotator}/{question.id}".encode(), digest_size=1).digest()[0] % 2 == 1


def standing_choices(log: Iterable[Mapping[str, str]]) -> dict[tuple[str, str], HumanChoice]:
    """(annotator, question) -> choice, in the order of judgement; a row with choice "undo" takes one back."""
    found: dict[tuple[str, str], HumanChoice] = {}
    for row in log:
        key = (row["annotator"], row["question"])
        found.pop(key, None)
        if row["choice"] in HUMAN_CHOICES:
            found[key] = row["choice"]  # type: ignore[assignment]
    return found


def majority(choices: Iterable[HumanChoice]) -> HumanChoice | None:
    """What most people chose of first and second; a tie where neither has more; None without a judgement."""
    counts = Counter(choice for choice in choices if choice != "skip")
    if not counts:
        return None
    first, second = counts["first"], counts["second"]
    if max(first, second) <= counts["tie"] and first != second:
        return "tie"
    return "tie" if first == second else "first" if first > second else "second"


def pair_rows(
    questions: Sequence[Question], judged: Mapping[tuple[str, str], HumanChoice]
) -> list[dict[str, object]]:
    """Rows {prompt, chosen, rejected} of the questions with a majority, which train reads."""
    by_question: dict[str, list[HumanChoice]] = {}
    for (_, question), choice in judged.items():
        by_question.setdefault(question, []).append(choice)
    rows = []
    for one in questions:
        choice = majority(by_question.get(one.id, []))
        if choice in ("first", "second"):
            sides = (one.first, one.second) if choice == "first" else (one.second, one.first)
            rows.append({"prompt": one.prompt, "chosen": sides[0], "rejected": sides[1]})
    return rows


@dataclass(frozen=True, kw_only=True)
class PairAgreement:
    """How often two people agree on the questions that both answered.

    `kappa` is Cohen's: agreement beyond what their shares of first, second and tie would give by chance; None where
    chance alone gives full agreement.
    """

    people: tuple[str, str]
    num_questions: int
    share: float
    kappa: float | None


def agreements(judged: Mapping[tuple[str, str], HumanChoice]) -> list[PairAgreement]:
    """Of every two people with questions in common; skipped questions do not count."""
    by_person: dict[str, dict[str, HumanChoice]] = {}
    for (person, question), choice in judged.items():
        if choice != "skip":
            by_person.setdefault(person, {})[question] = choice
    people, found = sorted(by_person), []
    for place, one in enumerate(people):
        for other in people[place + 1 :]:
            common = [q for q in by_person[one] if q in by_person[other]]
            if common:
                choices = [(by_person[one][q], by_person[other][q]) for q in common]
                found.append(_agreement((one, other), choices))
    return found


def _agreement(people: tuple[str, str], choices: Sequence[tuple[str, str]]) -> PairAgreement:
    count = len(choices)
    share = sum(a == b for a, b in choices) / count
    left, right = Counter(a for a, _ in choices), Counter(b for _, b in choices)
    chance = sum(left[one] * right[one] for one in left) / count**2
    kappa = None if chance == 1 else (share - chance) / (1 - chance)
    return PairAgreement(people=people, num_questions=count, share=share, kappa=kappa)
