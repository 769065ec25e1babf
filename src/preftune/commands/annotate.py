"""The command `annotate`: a local page on which people choose between two completions, blind and by keyboard."""

import json
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.cli.checks import READING_OPTIONS, check_seed, refuse_idle_rows
from preftune.cli.settings import parse_settings
from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.errors import ConfigError, DataError, StorageError, check_range, storage_error
from preftune.selection.judgements import (
    HumanChoice,
    Question,
    agreements,
    is_swapped,
    make_question,
    pair_rows,
    standing_choices,
)
from preftune.storage import write_jsonl
from preftune.terminal import clean_terminal
from preftune.types import Record

PAGE_FOLDER = Path(__file__).parent
HOST = "127.0.0.1"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """Judge pairs of completions on a local page; writes pairs that `train` reads. Needs starlette and uvicorn.

    Args:
        data: rows with at least two completions of a prompt: the output of `sample`, or pairs.
        output: the pairs, {prompt, chosen, rejected}; every judgement is kept in OUTPUT.judgements.jsonl, and the
            same command continues there.
        annotator: who judges; several people judge the same data one after another, each under a name.
        port: of the page on this machine; 0 takes a free one.
        seed: of the side on which a completion is shown.
        rows: how the data file is read.
    """

    data: str
    output: str = "annotations.jsonl"
    annotator: str = "me"
    port: int = 0
    seed: int = 0
    rows: DataOptions = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_range(self, "[0, 65535]", "port")
        if not self.annotator.strip():
            raise ConfigError("annotator is empty", expected="a name")
        refuse_idle_rows(self.rows, READING_OPTIONS, "texts that people read")


class Judging:
    """The questions of one person, and the log of everybody's judgements."""

    def __init__(self, config: AnnotateConfig, questions: Sequence[Question]):
        self.config, self.questions = config, questions
        self.path = Path(f"{config.output}.judgements.jsonl")
        self.log = _read_log(self.path)
        known = {one.id for one in questions}
        if self.log and not known & {row["question"] for row in self.log}:
            raise StorageError(
                f"{self.path} holds judgements of other data", got=str(self.path), do="Name another --output"
            )

    def mine(self) -> dict[str, HumanChoice]:
        judged, known = standing_choices(self.log), {one.id for one in self.questions}
        return {
            q: choice for (who, q), choice in judged.items() if who == self.config.annotator and q in known
        }

    def current(self) -> Question | None:
        mine = self.mine()
        return next((one for one in self.questions if one.id not in mine), None)

    def state(self) -> dict[str, Any]:
        one = self.current()
        shown = None
        if one is not None:
            sides = (one.first, one.second)
            left, right = sides[::-1] if is_swapped(one, self.config.annotator, self.config.seed) else sides
            shown = {"id": one.id, "prompt": shown_prompt(one.prompt), "left": left, "right": right}
        return {
            "annotator": self.config.annotator,
            "done": len(self.mine()),
            "total": len(self.questions),
            "question": shown,
            "agreement": "; ".join(self.agreement_lines()),
        }

    def agreement_lines(self) -> list[str]:
        lines = []
        for one in agreements(standing_choices(self.log)):
            kappa = "" if one.kappa is None else f", Cohen's kappa {one.kappa:.2f}"
            names = " and ".join(one.people)
            lines.append(f"{names} agree on {one.share:.0%} of {one.num_questions} questions{kappa}")
        return lines

    def judge(self, question: str, choice: str) -> None:
        """`choice` is of the page: left, right, tie or skip."""
        one = next((one for one in self.questions if one.id == question), None)
        if one is None or choice not in ("left", "right", "tie", "skip"):
            raise DataError("This judgement cannot be read", got=f"{question} {choice}")
        if choice in ("left", "right"):
            swapped = is_swapped(one, self.config.annotator, self.config.seed)
            choice = "second" if (choice == "left") == swapped else "first"
        self._append(question, choice)

    def undo(self) -> None:
        mine = self.mine()
        if mine:
            self._append(list(mine)[-1], "undo")

    def _append(self, question: str, choice: str) -> None:
        row = {"annotator": self.config.annotator, "question": question, "choice": choice}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise storage_error("write the judgement", self.path, error) from error
        self.log.append(row)
        write_jsonl(
            Path(self.config.output), pair_rows(self.questions, standing_choices(self.log)), "write the pairs"
        )


def _read_log(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{key: str(row[key]) for key in ("annotator", "question", "choice")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is damaged", got=str(error), do="Remove the line that cannot be read"
        ) from error


def questions_of(records: Sequence[Record]) -> list[Question]:
    """The first two different completions of each record."""
    found: dict[str, Question] = {}
    for record in records:
        several = record.completions or record.columns.get("completions")  # of `sample`, without a signal
        several = several if isinstance(several, list | tuple) else ()
        texts = list(dict.fromkeys(one for one in several if isinstance(one, str)))
        if len(texts) >= 2:
            prompt = (
                record.prompt
                if isinstance(record.prompt, str)
                else [turn.as_dict() for turn in record.prompt]
            )
            one = make_question(prompt, texts[0], texts[1])
            found.setdefault(one.id, one)
    if not found:
        raise DataError(
            "No row has two different completions of a prompt",
            got=f"{len(records)} rows",
            do="Make some with: preftune sample --prompts FILE --num_completions 2 --output FILE",
        )
    return list(found.values())


def shown_prompt(prompt: object) -> str:
    """Turns as lines with the role in front; a single turn of the user as its text."""
    if not isinstance(prompt, list):
        return str(prompt)
    turns = [turn for turn in prompt if isinstance(turn, Mapping)]
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def make_app(judging: Judging) -> Any:
    """The page and its three calls. Requests from other sites have another host, or cannot send JSON."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    def file(name: str, kind: str) -> Any:
        content = (PAGE_FOLDER / name).read_text(encoding="utf-8")

        async def answer(request: Request) -> Response:
            return Response(content, media_type=kind, headers=HEADERS)

        return answer

    async def state(request: Request) -> Response:
        return JSONResponse(judging.state(), headers=HEADERS)

    async def change(request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":
            return PlainTextResponse("JSON is expected", 415)
        try:
            body = await request.json()
            if request.url.path == "/undo":
                judging.undo()
            else:
                judging.judge(str(body["question"]), str(body["choice"]))
        except (ValueError, KeyError, TypeError, OSError) as error:
            return PlainTextResponse(str(error), 400)
        return JSONResponse(judging.state(), headers=HEADERS)

    return Starlette(
        routes=[
            Route("/", file("annotate.html", "text/html")),
            Route("/annotate.js", file("annotate.js", "text/javascript")),
            Route("/state", state),
            Route("/judge", change, methods=["POST"]),
            Route("/undo", change, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(AnnotateConfig, arguments, "preftune annotate", positional="data")
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError(
            "annotate needs the packages starlette and uvicorn",
            got=str(error),
            do="Install them with: pip install 'preftune[annotate]'",
        ) from error
    records = load_records(settings.data, settings.rows, passed=True).records
    judging = Judging(settings, questions_of(records))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, settings.port))
        except OSError as error:
            raise ConfigError("The port cannot be used", got=f"{settings.port}: {error.strerror}") from error
        listener.listen()  # a browser that is opened at once waits for the server
        print(f"page    http://{HOST}:{listener.getsockname()[1]}  (Ctrl-C stops the command)", flush=True)
        server = uvicorn.Server(uvicorn.Config(make_app(judging), log_level="warning", ws="none"))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    rows = pair_rows(judging.questions, standing_choices(judging.log))
    lines = [f"judged  {len(judging.mine())} of {len(judging.questions)} by {settings.annotator}"]
    lines += [*judging.agreement_lines(), f"pairs   {len(rows)} in {settings.output}"]
    lines += (
        [f"next    preftune train --data {settings.output} --objective dpo --output runs/dpo"] if rows else []
    )
    print(clean_terminal("\n".join(lines)))
    return 0
