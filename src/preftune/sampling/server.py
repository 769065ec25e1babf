"""Completions drawn by an OpenAI-compatible server: one request each, many at a time, what is drawn kept in a
journal.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from preftune.data.render import Renderer
from preftune.errors import ConfigError, ServerError
from preftune.sampling.client import ServerOptions, endpoint_of
from preftune.sampling.distribution import uniforms
from preftune.sampling.http_client import HttpClient, Refused, Withheld, run_all
from preftune.sampling.journal import journal_writer, read_journal
from preftune.sampling.prefix import behind
from preftune.sampling.replies import ROW, Api, first_model, reply_reader
from preftune.sampling.sample import DrawnTurn, SampleOptions, check_keys
from preftune.sampling.sampled import Sampled, completion_text
from preftune.types import Message, Record

_PATHS = {"tokens": "/v1/completions", "transformers": "/v1/chat/completions", "chat": "/v1/chat/completions"}


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """What completions are drawn of: tokens, and the record that they come from, which a server of text
    needs.
    """

    tokens: np.ndarray
    record: Record | None
    turn: DrawnTurn | None = None  # of a completion that is drawn turn by turn

    def options(self, options: SampleOptions) -> SampleOptions:
        """With the budget of the turn."""
        return options if self.turn is None else replace(options, max_new_tokens=self.turn.budget)

    def seed(self, seed: int, key: int, sample: int) -> int:
        """Seed of one completion: 31 bits, which every server accepts."""
        turn = self.turn or DrawnTurn(budget=1)
        return int(uniforms(seed, key, turn.number + sample, 1, turn.place)[0] * 2**31)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One completion to draw."""

    prompt: int
    sample: int
    path: str
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        """Names the draw in a journal: nothing drawn with other settings, prompts or models is taken for it."""
        return hashlib.sha256(json.dumps([self.path, self.body], sort_keys=True).encode()).hexdigest()


def sample_server(
    server: ServerOptions,
    renderer: Renderer,
    records: Sequence[Record],
    options: SampleOptions,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    keys: Sequence[int] | None = None,
    given: Sequence[np.ndarray] | None = None,
    journal: Path | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> list[list[Sampled]]:
    """`num_completions` completions of each record's prompt, in the records' order; the server's model is the
    renderer's.

    With the api "tokens" the server gets the prompt's tokens and tells those it drew, with their
    log-probabilities; these fill `logp` or `behaviour_logp`, as `server.logprobs` states, and both where
    temperature and truncation leave the two the same. Otherwise completions come as text: their tokens are
    the renderer's, and log-probabilities are None. A stop text may be cut off by the server. The server gets
    a seed for each completion; whether it draws the same again is up to it.

    With `given` tokens completions continue each prompt and these, which takes the api "tokens".

    With a `journal` (JSON lines), every completion is written to it as it comes, and what it holds of an
    earlier call with the same prompts and settings is not drawn again. A completion that the server withholds
    (content filter) is left out, and `note` gets the count. Raises ServerError when the server refuses or
    stays silent.
    """
    tokens = behind([renderer.render(record).prompt for record in records], given)
    if given is not None:
        server = _of_tokens(server, "A beginning of completions has no place in a chat")
    prompts = [
        _Prompt(tokens=ids, record=record if given is None else None)
        for ids, record in zip(tokens, records, strict=True)
    ]
    keys = range(len(records)) if keys is None else keys
    check_keys(keys, len(records))
    return asyncio.run(_sample(server, renderer, prompts, options, seed, progress, keys, journal, note))


def sample_server_tokens(
    server: ServerOptions,
    renderer: Renderer,
    prompts: Sequence[np.ndarray],
    options: SampleOptions,
    seed: int,
    keys: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    turns: Sequence[DrawnTurn] | None = None,
    journal: Path | None = None,
) -> list[list[Sampled]]:
    """Sample prompts given as tokens, through the api "tokens"; a server that returns text only is refused. `turns`
    are given where a prompt holds earlier turns of a completion.
    """
    server, notes = _of_tokens(server, "Prompts of tokens have no place in a chat"), []
    parts = [None] * len(prompts) if turns is None else turns
    asked = [_Prompt(tokens=ids, record=None, turn=turn) for ids, turn in zip(prompts, parts, strict=True)]
    drawn = asyncio.run(
        _sample(server, renderer, asked, options, seed, progress, keys, journal, notes.append)
    )
    if not all(drawn):
        raise ServerError("The server draws nothing for a prompt", got=notes[0], do="Leave the prompt out")
    return drawn


def _of_tokens(server: ServerOptions, refusal: str) -> ServerOptions:
    if server.api not in ("auto", "tokens"):
        raise ConfigError(refusal, got=f"server.api {server.api}", expected="tokens")
    return replace(server, api="tokens")


def _check_api(server: ServerOptions, renderer: Renderer) -> None:
    """Refuse what a chat of the server cannot hold."""
    if renderer.mode == "plain" and server.api in ("transformers", "chat"):
        raise ConfigError(
            "A plain-text prompt has no place in a chat",
            got=f"server.api {server.api}",
            expected="tokens",
            do="Use a server that takes token ids, or template chat",
        )
    if renderer.replaced and server.api in ("transformers", "chat"):
        raise ConfigError(
            "A server's chat uses its own template: rows.chat_template has no effect on it",
            got=f"server.api {server.api}",
            expected="tokens",
            do="Use a server that takes token ids, or leave rows.chat_template out",
        )


async def _sample(
    server, renderer, prompts, options, seed, progress, keys, journal, note
) -> list[list[Sampled]]:
    _check_api(server, renderer)
    async with HttpClient(endpoint_of(server)) as client:
        model = server.model or await client.request("/v1/models", None, first_model)
        server = replace(server, model=model)
        if not prompts:
            return []
        api, body_of = await _find_api(client, server, renderer, prompts[0], options)
        requests = [
            _Request(
                prompt=p, sample=k, path=_PATHS[api], body=body | {"seed": prompt.seed(seed, keys[p], k)}
            )
            for p, prompt in enumerate(prompts)
            for body in [body_of(prompt, prompt.options(options))]
            for k in range(options.num_completions)
        ]
        rows = read_journal(journal)
        missing = [request for request in requests if request.digest not in rows]
        done = len(requests) - len(missing)
        progress(done, len(requests))
        with journal_writer(journal) as write:

            async def work(request: _Request) -> None:
                try:
                    row = await client.request(
                        request.path, request.body, reply_reader(api, renderer, options)
                    )
                except Withheld as reason:
                    row = dict.fromkeys(ROW) | {"withheld": str(reason)}
                rows[request.digest] = row
                write({"request": request.digest, "prompt": request.prompt, "sample": request.sample, **row})
                nonlocal done
                done += 1
                progress(done, len(requests))

            await run_all(server.concurrency, missing, work)
    drawn: list[list[Sampled]] = [[] for _ in prompts]
    withheld = Counter()
    for request in requests:
        row = rows[request.digest]
        if row["withheld"]:
            withheld[row["withheld"]] += 1
        else:
            drawn[request.prompt].append(_sampled(row, prompts[request.prompt], renderer, options, server))
    for reason, count in withheld.items():
        note(f"the server withholds {count} of {len(requests)} completions ({reason}); they are left out")
    return drawn


BodyOf = Callable[[_Prompt, SampleOptions], dict[str, Any]]
"""From a prompt to the body of a request for one completion of it, without the seed."""


async def _find_api(
    client: HttpClient, server: ServerOptions, renderer: Renderer, prompt: _Prompt, options: SampleOptions
) -> tuple[Api, BodyOf]:
    """The most exact api that the server takes, and how it wants to be queried; found by drawing a single token
    where there is a choice.
    """
    if server.api in ("tokens", "transformers"):
        named: Api = server.api
        return named, lambda prompt, options: _body(named, server.model, renderer, prompt, options)
    chats = renderer.mode == "chat" and not renderer.replaced
    apis: tuple[Api, ...] = ("tokens", "transformers", "chat") if chats else ("tokens",)
    if server.api == "chat":
        apis = ("chat",)
    refusals = []
    single = replace(options, max_new_tokens=1)
    for api in apis:
        for change in _CHANGES if api == "chat" else (_as_is,):

            def body_of(
                prompt: _Prompt, options: SampleOptions, api: Api = api, change=change
            ) -> dict[str, Any]:
                return change(_body(api, server.model, renderer, prompt, options), options)

            try:
                body = body_of(prompt, single) | {"seed": 0}
                await client.request(_PATHS[api], body, reply_reader(api, renderer, single))
            except Withheld:
                pass
            except Refused as refusal:
                refusals.append(f"api {api}: {refusal}")
                continue
            return api, body_of
    raise ServerError(
        "The server takes no request for a completion",
        got=" ".join(refusals),
        expected="an OpenAI-compatible server that has the model",
    )


def _as_is(body: dict[str, Any], options: SampleOptions) -> dict[str, Any]:
    return body


def _renamed_budget(body: dict[str, Any], options: SampleOptions) -> dict[str, Any]:
    """Newer models of OpenAI know the budget by another name."""
    body = dict(body)
    return body | {"max_completion_tokens": body.pop("max_tokens")}


def _fixed_distribution(body: dict[str, Any], options: SampleOptions) -> dict[str, Any]:
    """Reasoning models refuse temperature and top_p; the distribution is theirs, which is that of 1."""
    if options.temperature != 1 or options.top_p != 1:
        raise ServerError(
            "The server refuses the settings of sampling",
            got=f"temperature {options.temperature:g}, top_p {options.top_p:g}",
            expected="the values that the server fixes",
            do="Set --sampling.temperature 1 and --sampling.top_p 1, or choose another model",
        )
    body = _renamed_budget(body, options)
    return {name: value for name, value in body.items() if name not in ("temperature", "top_p")}


_CHANGES = (_as_is, _renamed_budget, _fixed_distribution)
"""Dialects of the chat api, tried in this order."""


# --- requests ---


def _body(
    api: Api, model: str, renderer: Renderer, prompt: _Prompt, options: SampleOptions
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
    }
    stop = [*options.stop, *renderer.stop_texts]
    if stop:
        body["stop"] = stop
    if api == "tokens":
        body["prompt"] = prompt.tokens.tolist()
        # What is off is said, too: servers take what is left open from the model's own recommendations.
        body |= {
            "top_k": options.top_k or -1,
            "min_p": options.min_p,
            "repetition_penalty": 1.0,
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stop_token_ids": list(renderer.stop_ids),
            "include_stop_str_in_output": bool(stop),
        }
        return body
    assert prompt.record is not None, "a chat is asked with text"
    text = prompt.record.prompt
    turns = (Message(role="user", content=text),) if isinstance(text, str) else text
    body["messages"] = [
        {key: value for key, value in turn.as_dict().items() if key != "weight"} for turn in turns
    ]
    body |= prompt.record.template_columns()
    if renderer.chat.defaults:
        body["chat_template_kwargs"] = {**renderer.chat.defaults, **body.get("chat_template_kwargs", {})}
    if api == "transformers":
        greedy, ends = options.temperature == 0, list(renderer.stop_ids)
        drawn = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
        body["generation_config"] = json.dumps(
            {"do_sample": not greedy, "max_new_tokens": options.max_new_tokens, "repetition_penalty": 1.0}
            | {"eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": renderer.end_of_turn}
            | ({} if greedy else drawn | ({"min_p": options.min_p} if options.min_p else {}))
        )
    elif options.top_k or options.min_p:
        body |= {"top_k": options.top_k or -1, "min_p": options.min_p}
    return body


# --- answers ---


def _sampled(
    row: dict[str, Any], prompt: _Prompt, renderer: Renderer, options: SampleOptions, server: ServerOptions
) -> Sampled:
    if row["token_ids"] is None:
        if prompt.record is None:
            raise ServerError(
                "The server returns no token ids",
                got="text alone",
                expected="return_token_ids, as vLLM has it",
            )
        return Sampled(
            token_ids=_tokens_of(row, prompt.record, renderer), text=row["text"], ended=row["ended"]
        )
    ids, values = list(row["token_ids"]), row["logprobs"]
    by_text = row["stop_text"] or any(text in row["text"] for text in (*options.stop, *renderer.stop_texts))
    added = renderer.tokenizer.added_tokens_decoder
    if row["ended"] and not by_text and not (ids and ids[-1] in added and added[ids[-1]].special):
        ids.append(renderer.end_of_turn)  # some servers leave it out, and its log-probability in or out
    token_ids = np.array(ids, dtype=np.int32)
    logp = None if values is None or len(values) != len(ids) else np.array(values, dtype=np.float32)
    same = options.temperature == 1 and not options.truncated
    return Sampled(
        token_ids=token_ids,
        text=completion_text(token_ids, renderer),
        ended=row["ended"],
        behaviour_logp=logp if same or server.logprobs == "processed" else None,
        logp=logp if same or server.logprobs == "raw" else None,
    )


def _tokens_of(row: dict[str, Any], record: Record, renderer: Renderer) -> np.ndarray:
    """The tokens that training would see for the text."""
    if not row["text"] and not row["ended"]:
        return np.zeros(0, dtype=np.int32)
    answered = Record(
        prompt=record.prompt, completions=(row["text"],), ended=(row["ended"],), origin=record.origin
    )
    return renderer.render(answered).completions[0]
