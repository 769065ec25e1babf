"""Adapters that a running vLLM server loads and unloads."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.errors import ModelError
from preftune.sampling.client import ServerOptions, endpoint_of
from preftune.sampling.http_client import HttpClient, Refused


def load_adapter(server: ServerOptions, name: str, folder: Path) -> ServerOptions:
    """Have a running vLLM load a peft adapter under a name, and return the options that draw from it.

    `folder` is read by the server. Give every version a name of its own: a server may keep what it computed
    under a name. The server must have been started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
    """
    asyncio.run(_adapter(server, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}))
    return replace(server, model=name)


def unload_adapter(server: ServerOptions, name: str) -> None:
    """Have a running vLLM forget an adapter."""
    asyncio.run(_adapter(server, "/v1/unload_lora_adapter", {"lora_name": name}))


async def _adapter(server: ServerOptions, path: str, body: dict[str, Any]) -> None:
    async with HttpClient(endpoint_of(server)) as client:
        try:
            await client.send(path, body)
        except Refused as refusal:
            if refusal.status not in (404, 405):
                raise
            raise ModelError(
                "The server does not load adapters while it runs",
                got=f"status {refusal.status} for {path}",
                expected="vLLM",
                do="Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
            ) from refusal
