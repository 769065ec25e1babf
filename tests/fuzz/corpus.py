"""Malformed inputs of every reader: written by hand (corpus.jsonl), and made from valid documents by seeded changes."""

import csv
import gzip
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

Expected = Literal["refused", "read", "either"]

HANDWRITTEN = Path(__file__).with_name("corpus.jsonl")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An input of one reader. `expected` is "either" where a reading is right if it agrees with another reader."""

    target: str
    name: str
    content: bytes
    expected: Expected = "either"


def corpus() -> list[Entry]:
    """All entries in a fixed order; the same ones on every machine."""
    return [*handwritten(), *_damaged_files(), *_other_values(), *_flags(), *_rewards(), *_judge_answers()]


def handwritten() -> Iterator[Entry]:
    """A line of corpus.jsonl is {target, expected, text or hex}. With `repeat` [n, piece], the input is the text
    `before`, n times the piece, and the text.
    """
    for number, line in enumerate(HANDWRITTEN.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        count, piece = row.get("repeat", (0, ""))
        content = (
            bytes.fromhex(row["hex"])
            if "hex" in row
            else (row.get("before", "") + piece * count + row["text"]).encode("utf-8", "surrogatepass")
        )
        yield Entry(target=row["target"], name=f"line {number}", content=content, expected=row["expected"])


# --- documents ---

PAIRS = [
    {"prompt": "Where is the sea?", "chosen": "In the west, as ever.", "rejected": "No idea."},
    {"prompt": "Why is snow white?", "chosen": "It scatters all light.", "rejected": "Ünknown."},
    {"prompt": "Say tea.", "chosen": "Tea.", "rejected": "Coffee, perhaps?"},
]
SCORED = {"prompt": "Hi", "completions": ["a", "b"], "rewards": [1.0, 2.0]}
DIALOGUE = {
    "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "no"}],
}
LABEL = {"prompt": "Hi", "completion": "yes", "label": True}
PROBLEM = {
    "name": "made",
    "policy": "mlp",
    "size": 20,
    "reward": {"kind": "bump", "centre": 7, "width": 3},
    "reference": {"kind": "tanh_cauchy", "location": -0.7, "scale": 0.4},
    "data": {"law": {"kind": "reference"}},
}
COUNTERS = {
    "step": 3,
    "num_tokens": 96,
    "prompts_seen": 12,
    "samples_drawn": 0,
    "reward_queries": 0,
    "seconds": 1.5,
}
STATE = {"counters": COUNTERS, "logs": {"metrics.jsonl": {"num_bytes": 0, "digest": ""}}, "digests": {}}
MANIFEST = {
    "inputs": {"data": "00ff"},
    "settings": {"seed": 0, "optim.learning_rate": 1e-3},
    "environment": {"python": "3.11.7"},
    "resumed": [],
}
TOKENS_REPLY = {
    "choices": [
        {
            "text": "ABC",
            "finish_reason": "stop",
            "token_ids": [42, 43, 44],
            "logprobs": {"tokens": ["A", "B", "C"], "token_logprobs": [-0.1, -0.2, -0.3]},
        }
    ]
}
CHAT_REPLY = {"choices": [{"message": {"role": "assistant", "content": "Score: 7"}, "finish_reason": "stop"}]}
METRICS = [
    {"step": step, "loss": 0.7 - step / 100, "grad_norm": 1.0, "learning_rate": 1e-3, "step_time": 0.1}
    for step in (1, 2, 3)
]

NONSENSE: tuple[Any, ...] = (
    None,
    "text",
    "",
    [],
    {},
    [{}],
    {"a": None},
    float("nan"),
    float("inf"),
    -1,
    0,
    1e308,
    10**30,
    True,
    "\ud800",
    "x" * 5000,
    [[["deep"]]],
    "1e400",
    "${HOME}",
    "../../etc/passwd",
    "\x1b[31m\u202e",
)


def file_documents() -> dict[str, bytes]:
    """Target -> a valid file of that kind."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PAIRS).encode()
    table = io.StringIO()
    writer = csv.DictWriter(table, list(PAIRS[0]))
    writer.writeheader()
    writer.writerows(PAIRS)
    return {
        "data.jsonl": lines,
        "data.json": json.dumps({"data": PAIRS}, ensure_ascii=False).encode(),
        "data.csv": table.getvalue().encode(),
        "data.jsonl.gz": gzip.compress(lines, mtime=0),
        "data.parquet": _parquet(),
        "data.arrow": _arrow(),
        "lab": yaml.safe_dump(PROBLEM).encode(),
        "config train": b"objective: dpo\nepochs: 2\noptim:\n  learning_rate: 0.001\nbatch_size: 4\n",
        "state": _sealed(STATE),
        "manifest": _sealed(MANIFEST),
        "reply tokens": json.dumps(TOKENS_REPLY).encode(),
        "reply chat": json.dumps(CHAT_REPLY).encode(),
        "log": "".join(json.dumps(row) + "\n" for row in METRICS).encode(),
    }


def _sealed(content: object) -> bytes:
    from preftune.storage import sealed

    return sealed(content).encode()  # type: ignore[arg-type]


def _parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), out)
    return out.getvalue()


def _arrow() -> bytes:
    import pyarrow

    table, out = pyarrow.Table.from_pylist(PAIRS), io.BytesIO()
    with pyarrow.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


# --- changes ---

PER_FILE = 40  # damaged versions of each file


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Cut, a zeroed or doubled part, flipped bits, foreign bytes."""
    place = chance.randrange(len(content))
    end = min(len(content), place + chance.randint(1, 40))
    kind = chance.choice(["cut", "zeroed", "doubled", "flipped", "flips", "inserted", "dropped", "swapped"])
    changed = bytearray(content)
    if kind == "cut":
        return content[:place]
    if kind == "zeroed":
        changed[place:end] = bytes(end - place)
    elif kind == "doubled":
        changed[place:place] = changed[place:end]
    elif kind in ("flipped", "flips"):
        for _ in range(1 if kind == "flipped" else 8):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif kind == "inserted":
        pieces = (
            b"\x00",
            b"\xff\xfe",
            b'"',
            b"{",
            b"]",
            b"\n\n",
            b"\xed\xa0\x80",
            b"1e999",
            b",,,",
            b": &a *a",
        )
        changed[place:place] = chance.choice(pieces)
    elif kind == "dropped":
        del changed[place:end]
    else:
        changed[place:end] = bytes(reversed(changed[place:end]))
    return bytes(changed)


def _damaged_files() -> Iterator[Entry]:
    for target, content in file_documents().items():
        chance = random.Random(target)
        for number in range(PER_FILE):
            yield Entry(target=target, name=f"damage {number}", content=damaged(content, chance))


def paths_of(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The place of every value inside a document."""
    if path:
        yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from paths_of(child, (*path, key))


def replaced(document: Any, path: tuple, value: object) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def _other_values() -> Iterator[Entry]:
    """Each value of a document in turn replaced by values of other kinds."""
    documents = [
        ("data.jsonl", PAIRS[0], 6),
        ("data.jsonl", SCORED, 6),
        ("data.jsonl", DIALOGUE, 4),
        ("data.jsonl", LABEL, 6),
        ("lab", PROBLEM, 8),
        ("state", STATE, 8),
        ("manifest", MANIFEST, 6),
        ("reply tokens", TOKENS_REPLY, 8),
        ("reply chat", CHAT_REPLY, 8),
        ("log", METRICS[0], 8),
    ]
    for place, (target, document, count) in enumerate(documents):
        chance = random.Random(place)
        for path in paths_of(document):
            for value in chance.sample(NONSENSE, count):
                changed = replaced(document, path, value)
                if target == "lab":
                    content = yaml.safe_dump(changed, allow_unicode=False).encode("utf-8", "replace")
                elif target in ("state", "manifest"):
                    content = _sealed(changed)
                else:
                    content = json.dumps(changed).encode()
                name = f"{'.'.join(map(str, path))} = {str(value)[:20]!r}"
                yield Entry(target=target, name=name, content=content)


COMMANDS = (
    "sample",
    "iterate",
    "eval",
    "reward",
    "select",
    "inspect",
    "merge",
    "export",
    "train-reward-model",
)


def _flags() -> Iterator[Entry]:
    """Each setting of a command with a value of another kind, as a flag and in YAML."""
    from preftune.cli.outline import outline_of

    for command, count in (("train", 3), *((name, 1) for name in COMMANDS)):
        outline, chance = outline_of(command.replace("-", "_")), random.Random(command)
        assert outline is not None
        for setting in outline.settings:
            for value in chance.sample(NONSENSE, count):
                if chance.random() < 0.5:
                    words = [command, f"--{setting.name}", value if isinstance(value, str) else str(value)]
                    content, target = json.dumps(words).encode(), "flags"
                else:
                    section, _, leaf = setting.name.rpartition(".")
                    tree = {section: {leaf: value}} if section else {leaf: value}
                    content, target = yaml.safe_dump(tree).encode("utf-8", "replace"), f"config {command}"
                yield Entry(target=target, name=f"{setting.name} = {str(value)[:20]!r}", content=content)


def _rewards() -> Iterator[Entry]:
    """What a reward function may return, as an expression; three completions were given."""
    good = ["1.0", "2", "None", "numpy.float32(0.5)", "torch.tensor(1.5)", "True", "fractions.Fraction(1, 3)"]
    bad = ["nan", "inf", "-inf", "'1'", "['1']", "{}", "10**400", "torch.tensor([1., 2.])", "object()", "1j"]
    bad += ["b'1'", "numpy.array([])", "torch.tensor(float('nan'))", "Broken()", "decimal.Decimal('NaN')"]
    chance = random.Random("rewards")
    for number in range(60):
        parts = [chance.choice(good if number % 3 == 0 or place else bad) for place in range(3)]
        chance.shuffle(parts)
        wanted: Expected = "read" if number % 3 == 0 else "refused"
        text = f"[{', '.join(parts)}]"
        yield Entry(target="reward", name=text[:60], content=text.encode(), expected=wanted)


def _judge_answers() -> Iterator[Entry]:
    """Answers of a judge; a score counts only if the last line holds it and nothing else."""
    chance = random.Random("judge")
    pieces = [
        "Score: 7",
        "score",
        ":",
        " " * 400,
        "7/10",
        "*",
        "#",
        "\n",
        "1e9",
        "-3",
        "nan",
        "Better: A",
        "₇",
        "x",
    ]
    for number in range(40):
        answer = "".join(chance.choice(pieces) for _ in range(chance.randint(1, 9)))
        yield Entry(target="judge", name=f"answer {number}", content=answer.encode())
