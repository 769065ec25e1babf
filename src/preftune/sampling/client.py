"""Settings of an OpenAI-compatible server that draws completions."""

from dataclasses import dataclass, fields
from typing import Literal

from preftune.errors import check_range, refuse_idle
from preftune.sampling.http_client import Endpoint, check_url, read_key


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """An OpenAI-compatible server.

    Args:
        url: where it is, for example http://localhost:8000; empty is no server.
        model: its name for the model; the first that it lists when empty.
        api: "tokens" sends token ids to /v1/completions (vLLM, SGLang, llama.cpp), "transformers" messages to
            /v1/chat/completions with a generation configuration (`transformers serve`), "chat" messages
            alone; "auto" tries them in this order.
        logprobs: what the server's log-probabilities are of: "raw" the model as it is, "processed" the
            distribution drawn from.
        concurrency: requests at a time.
        timeout_s: seconds that a request may take from connecting to the last byte of its answer; then it is
            tried again.
        retries: how often a request is tried again.
        backoff_s: seconds before the first retry; each further retry waits twice as long, with jitter, a minute
            at most.
        api_key_env: the environment variable that holds the key, if the server wants one.
    """

    url: str = ""
    model: str = ""
    api: Literal["auto", "tokens", "transformers", "chat"] = "auto"
    logprobs: Literal["raw", "processed"] = "raw"
    concurrency: int = 16
    timeout_s: float = 600.0
    retries: int = 5
    backoff_s: float = 1.0
    api_key_env: str = ""

    def __post_init__(self) -> None:
        if not self.url:
            refuse_idle(
                self,
                "without a server",
                *(option.name for option in fields(self)),
                prefix="server.",
                expected="server.url",
                do="Add --server.url URL or leave it out",
            )
            return
        check_url("server.url", self.url)
        check_range(self, "[1, inf)", "concurrency", prefix="server.")
        check_range(self, "[0, inf)", "retries", "backoff_s", prefix="server.")
        check_range(self, "(0, inf)", "timeout_s", prefix="server.")


def endpoint_of(options: ServerOptions, retries: int | None = None) -> Endpoint:
    """The address without /v1, with the key that the environment holds now; `retries` replaces the options'."""
    return Endpoint(
        url=options.url.rstrip("/").removesuffix("/v1"),
        api_key=read_key(options.api_key_env, "server.api_key_env"),
        concurrency=options.concurrency,
        timeout_s=options.timeout_s,
        retries=options.retries if retries is None else retries,
        backoff_s=options.backoff_s,
    )
