"""Weights that a running vLLM server takes: adapters by name, or all weights in place."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.errors import ModelError
from preftune.sampling.client import ServerOptions, endpoint_of
from preftune.sampling.http_client import HttpClient, Refused

_ADAPTERS = "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
_ALL_WEIGHTS = "VLLM_SERVER_DEV_MODE=1 (vLLM 0.32 or newer)"


def load_adapter(server: ServerOptions, name: str, folder: Path) -> ServerOptions:
    """Have a running vLLM load a peft adapter under a name, and return the options that sample from it.

    `folder` is read by the server. Give every version a separate name: a server may keep what it computed
    under a name. The server must have been started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
    """
    asyncio.run(
        _post(
            server,
            _ADAPTERS,
            folder,
            ("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}),
        )
    )
    return replace(server, model=name)


def unload_adapter(server: ServerOptions, name: str) -> None:
    """Have a running vLLM forget an adapter; one that it does not know (any more) is no error."""
    with suppress(_Unknown):
        asyncio.run(_post(server, _ADAPTERS, None, ("/v1/unload_lora_adapter", {"lora_name": name})))


def load_weights(server: ServerOptions, version: str, folder: Path) -> None:
    """Have a running vLLM replace all weights by those of a folder in Hugging Face layout, which it reads.

    Requests that run are finished first; new requests wait. `weights_version` then returns `version`. The
    server must have been started with VLLM_SERVER_DEV_MODE=1.
    """
    asyncio.run(_replace(server, version, folder))


async def _replace(server: ServerOptions, version: str, folder: Path) -> None:
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    await _post(server, _ALL_WEIGHTS, None, ("/pause?mode=wait", {}))
    try:
        await _post(
            server,
            _ALL_WEIGHTS,
            folder,
            ("/collective_rpc", reload),
            ("/reset_prefix_cache", {}),
            ("/update_weight_version", {"new_version": version}),
        )
    finally:
        await _post(server, _ALL_WEIGHTS, None, ("/resume", {}))


def weights_version(server: ServerOptions) -> str:
    """The version that the last `load_weights` named; another one after the server was started again."""

    async def ask() -> str:
        async with HttpClient(endpoint_of(server)) as client:
            return await client.request("/weight_info", None, lambda content: str(content["weight_version"]))

    return asyncio.run(ask())


class _Unknown(ModelError):
    """The server knows the request, and not what the request names."""


async def _post(
    server: ServerOptions, start: str, folder: Path | None, *requests: tuple[str, dict[str, Any]]
) -> None:
    """Requests one after the other; `start` is how a server must be started that takes them."""
    async with HttpClient(endpoint_of(server)) as client:
        for path, body in requests:
            try:
                await client.send(path, body)
            except Refused as refusal:
                if refusal.status not in (404, 405):
                    raise
                if "NotFoundError" in refusal.detail:  # vLLM has the path, and not what the body names
                    raise _Unknown(
                        "The server does not find the weights that it should load",
                        got=f"status {refusal.status} for {path}",
                        expected="a server that reads the same disk" if folder is None else f"{folder}",
                        do="Start the server where it sees the run folder under the same path",
                    ) from refusal
                raise ModelError(
                    "The server does not take weights while it runs",
                    got=f"status {refusal.status} for {path}",
                    expected="vLLM",
                    do=f"Start it with {start}",
                ) from refusal
