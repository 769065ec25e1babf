"""The commands of docs/systems.md, read from the page, and the small files that they run on."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.folders import PAIRS, SCORED, write_rows

PAGE = (Path(__file__).parents[2] / "docs" / "systems.md").read_text(encoding="utf-8")

SHORT = {
    "train ON": "preftune train --source on-policy --data prompts.jsonl --output RUN",
    "train OFF": "preftune train --data pairs.jsonl --output RUN",
}
# What makes a command of the page a matter of seconds.
SMALL = {
    "train": "--max_steps 1 --batch_size 2",
    "sample": "--max_new_tokens 4 --overwrite",
    "reward": "--overwrite",
    "select": "--overwrite --rows.bad_rows skip",  # a random model may write nothing
    "iterate": "--prompts_per_round 2 --max_new_tokens 6 --batch_size 2",
    "train-reward-model": "--max_steps 1 --batch_size 2",
    "diagnose data": "--max_new_tokens 4 --samples 2 --max_prompts 4",
    "diagnose run": "--max_new_tokens 4 --samples 1",
    "lab all": "--only B1 --seeds 2 --workers 1",
}
PEOPLE = "preftune annotate"  # waits for people
MODEL_OF = ("train", "sample", "iterate", "train-reward-model")


@dataclass(frozen=True)
class Row:
    """A row of the page: the work and its commands in order."""

    work: str
    commands: tuple[str, ...]


def rows_with_commands() -> list[Row]:
    """The rows of every table but that of objectives."""
    found = []
    for section in PAGE.split("\n## ")[1:]:
        if section.startswith("Objectives"):
            continue
        for line in section.splitlines():
            cells = [cell.strip() for cell in line.split(" | ")]
            if len(cells) == 3 and (commands := commands_of(cells[2])):
                found.append(Row(work=cells[0].lstrip("| "), commands=commands))
    return found


def commands_of(cell: str) -> tuple[str, ...]:
    """The code spans of a cell that are commands, written out."""
    spans = re.findall(r"`([^`]*)`", cell)
    commands = [span for span in spans if span.startswith(("preftune ", "train ON", "train OFF"))]
    return tuple(_written_out(span) for span in commands if not span.startswith(PEOPLE))


def _written_out(span: str) -> str:
    for short, whole in SHORT.items():
        if span.startswith(short):
            on = short == "train ON" and "--reward" not in span
            return whole + span[len(short) :] + " --reward R" * on
    return span


def words_of(command: str, model: str) -> list[str]:
    """The words of a command behind "preftune", with the small model and small numbers."""
    words = shlex.split(command)[1:]
    verb = " ".join(words[:2]) if words[0] in ("diagnose", "lab") else words[0]
    words = [re.sub(r"(?<![\w:-])M(?![\w-])", model, word) for word in words]
    words = [TASTE if word == "R" else word for word in words]
    if "on-policy" in words:  # a random model solves no sums, and equal rewards teach nothing
        words = [
            word.replace("reward=maths", f"reward='{TASTE}'").replace("*maths", f"*{TASTE}") for word in words
        ]
        words = [TASTE if word == "maths" else word for word in words]
    words = [word.replace("progress(", "progress(max_new_tokens=4, ") for word in words]
    more = SMALL.get(verb, "").split()
    drawn = {"--max_new_tokens", "4"} if verb == "train" and "on-policy" in words else set()
    for place, word in enumerate(more):
        if word.startswith("--") and word not in words:
            words += [word, *more[place + 1 : place + 2]] if not _switch(more, place) else [word]
    if drawn:
        words += ["--max_new_tokens", "4"]
        words += ["--rollout.total_tokens", "200"] if "--environment" in words else []
    if verb in MODEL_OF and "--model" not in words:
        words += ["--model", model]
    return words


def _switch(words: list[str], place: int) -> bool:
    return place + 1 == len(words) or words[place + 1].startswith("--")


TASTE = "taste.py:taste"
TASTES = """
def taste(prompts, completions, **columns):
    return [sum(map(text.count, "aeiou ")) + len(text) / 100 for text in completions]
"""
GUESS = """
class Guess:
    def reset(self, row):
        return {"answer": row["answer"]}

    def step(self, state, text):
        return None, float(len(text) + text.count("e"))
"""


def write_files(folder: Path) -> None:
    """The files that the page names."""
    answers = ["It is 4.\\nSo 4.", "2 + 2\\nis 5", "No idea.", "4", "The answer\\nis 4."]
    answers = [text.replace("\\n", "\n") for text in answers]
    write_rows(folder / "pairs.jsonl", PAIRS)
    asked = [{"prompt": f"What is {k} + {4 - k}?", "answer": "4"} for k in range(4)]
    write_rows(folder / "prompts.jsonl", [{**row, "answer": "It is 4, as 2 + 2."} for row in asked])
    write_rows(folder / "heldout.jsonl", [{**row, "prompt": f"Again: {row['prompt']}"} for row in asked])
    write_rows(folder / "answers.jsonl", [{**row, "completions": answers} for row in asked])
    write_rows(folder / "scored.jsonl", SCORED)
    steps = {"completions": ["2 + 2", "is 5"], "labels": [True, False]}
    write_rows(folder / "steps.jsonl", [{"prompt": row["prompt"], **steps} for row in asked])
    code = [f"def add(a, b):\n    return a {sign} b" for sign in "+-*"]
    row = {"prompt": "Write add(a, b).", "completions": code, "tests": "assert add(1, 2) == 3"}
    write_rows(folder / "functions.jsonl", [row])
    (folder / "corpus.txt").write_text("It is the sea, and the capital of France is Paris.\n")
    (folder / "guess.py").write_text(GUESS)
    (folder / "taste.py").write_text(TASTES)


def objective_flags() -> list[str]:
    """The flags of every objective in the first table, such as `--objective gdpo --objective.link square`."""
    section = PAGE.split("## Objectives")[1].split("Not here:")[0]
    found = []
    for line in section.splitlines():
        if not line.startswith("| ") or "`" not in line:
            continue
        for span in re.findall(r"`([^`]*)`", line.split("|")[2]):
            words = re.sub(r"^(train (ON|OFF)|preftune train .*?(?=--objective)) ?", "", span).split()
            if words and not words[0].startswith("-"):
                words = ["--objective", *words]
            if "--objective" in words:
                found.append(" ".join(words))
    return found
