"""The command `chat`: talk to a model, or to two models at once."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preftune.cli.checks import check_seed, refuse_idle_rows
from preftune.cli.model_settings import Precision
from preftune.cli.settings import parse_settings
from preftune.data.options import DataOptions
from preftune.errors import PreftuneError
from preftune.model.whole_model import LoadOptions, quiet_transformers
from preftune.sampling.engine import choose_engine
from preftune.sampling.sample import SampleOptions, load_sampler, sample
from preftune.storage import write_jsonl
from preftune.terminal import clean_terminal
from preftune.types import Message, Record

CHAT_HELP = """\
/help           this list
/system TEXT    set the system prompt and start again; without TEXT, remove it
/undo           take back the last question and its answer
/reset          start again
/save FILE      write the conversation as JSON lines
/exit           end the chat; so do exit, quit, an empty line and Ctrl-D"""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk to a model. Answers appear as they are sampled; /help lists the commands.

    Args:
        model: a run folder, its final/, or any name that `train` takes.
        compare: a second model, which answers every question too.
        system: the system prompt.
        seed: of the samples.
        precision: "fp32" or "bf16".
        device: "auto" takes a GPU if there is one.
        sampling: how answers are sampled.
        rows: the chat template.
        loading: what may be loaded in addition to plain tensors.
    """

    model: str = "smollm2-135m-instruct"
    compare: str | None = None
    system: str | None = None
    seed: int = 0
    precision: Precision = "fp32"
    device: str = "auto"
    sampling: SampleOptions = field(
        default_factory=lambda: SampleOptions(max_new_tokens=512, temperature=0.7)
    )
    rows: DataOptions = field(default_factory=DataOptions)
    loading: LoadOptions = field(default_factory=LoadOptions)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        refuse_idle_rows(self.rows, ("template", "chat_template", "chat_template_kwargs"), "a chat")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The text of a turn, and whether the model ended it itself."""

    text: str
    ended: bool


Partner = Callable[[Sequence[Message], int, Callable[[str], None]], Answer | None]
"""(turns, seed, show) -> the next turn; `show` gets the text as it comes; None where nothing is answered."""


def run(arguments: Sequence[str]) -> int:
    quiet_transformers()
    settings = parse_settings(ChatConfig, arguments, "preftune chat")
    if settings.compare is None:
        return hold_chat({"": load_partner(settings, settings.model)}, settings.seed, settings.system)
    names = (settings.model, settings.compare)
    partners = {f"[{name}] ": load_partner(settings, name) for name in names}
    return hold_chat(partners, settings.seed, settings.system)


def load_partner(settings: ChatConfig, name: str) -> Partner:
    """A model in this process, which shows its answer token by token."""
    model, renderer = load_sampler(name, settings.loading, settings.precision, settings.device, settings.rows)
    engine = choose_engine(model)[0]

    def answer(turns: Sequence[Message], seed: int, show: Callable[[str], None]) -> Answer:
        shown = ""

        def stream(ids: np.ndarray) -> None:
            nonlocal shown
            text = str(renderer.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
            if not text.endswith("\ufffd") and text.startswith(shown):  # a character may take several tokens
                show(text[len(shown) :])
                shown = text

        prompt = renderer.render(Record(prompt=tuple(turns), completions=(), origin="chat")).prompt
        [[drawn]] = sample(model, renderer, [prompt], settings.sampling, seed, engine=engine, stream=stream)
        if drawn.text.startswith(shown):
            show(drawn.text[len(shown) :])
        return Answer(text=drawn.text, ended=drawn.ended)

    return answer


def hold_chat(partners: Mapping[str, Partner], seed: int, system: str | None) -> int:
    """Turn by turn on standard input. Each partner has a separate history; keys are printed before answers."""
    print("chat: write and press Enter; /help lists the commands", file=sys.stderr)
    histories: dict[str, list[Message]] = {name: _start(system) for name in partners}
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line or line in ("/exit", "/quit", "exit", "quit"):
            return 0
        if line.startswith("/"):
            histories = _obey(line, histories)
            continue
        for name, partner in partners.items():
            turns = [*histories[name], Message(role="user", content=line)]
            print(clean_terminal(name), end="", flush=True)
            try:
                answer = partner(turns, seed + len(turns), _show)
            except PreftuneError as error:
                print(f"\n{clean_terminal(str(error))}", file=sys.stderr)
                continue
            if answer is None:
                print("the server withholds its answer; that question is left out", file=sys.stderr)
                continue
            print("" if answer.ended else " [cut off by max_new_tokens]", flush=True)
            histories[name] = [*turns, Message(role="assistant", content=answer.text)]


def _show(text: str) -> None:
    print(clean_terminal(text), end="", flush=True)


def _start(system: str | None) -> list[Message]:
    return [Message(role="system", content=system)] if system else []


def _obey(line: str, histories: dict[str, list[Message]]) -> dict[str, list[Message]]:
    """The histories after a command such as /reset."""
    command, _, rest = line.partition(" ")
    first = next(iter(histories.values()))
    system = first[0].content if first and first[0].role == "system" else None
    if command == "/help":
        print(CHAT_HELP, file=sys.stderr)
    elif command == "/reset":
        return {name: _start(system) for name in histories}
    elif command == "/system":
        return {name: _start(rest.strip() or None) for name in histories}
    elif command == "/undo":
        return {
            name: turns[:-2] if turns and turns[-1].role == "assistant" else turns
            for name, turns in histories.items()
        }
    elif command == "/save" and rest.strip():
        rows = [
            {"model": name.strip(" []"), "messages": [turn.as_dict() for turn in turns]}
            for name, turns in histories.items()
        ]
        _save(Path(rest.strip()), rows)
    else:
        print(f"unknown command {clean_terminal(command)}; /help lists the commands", file=sys.stderr)
    return histories


def _save(path: Path, rows: list[dict[str, object]]) -> None:
    shown = clean_terminal(str(path))
    if path.exists():
        print(f"{shown} exists already; name another file", file=sys.stderr)
        return
    try:
        write_jsonl(path, rows, "write the conversation")
    except PreftuneError as error:
        print(clean_terminal(str(error)), file=sys.stderr)
    else:
        print(f"written to {shown}", file=sys.stderr)
