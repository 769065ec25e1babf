"""A server that draws for a run: before every draw it gets the policy's adapter as it is."""

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from preftune.errors import storage_error
from preftune.model.policy import Policy
from preftune.sampling.client import ServerOptions
from preftune.sampling.server_adapters import load_adapter, unload_adapter


class Follower:
    """Keeps a server at the adapter of a policy that trains.

    Every version has a name and a folder of its own: servers may keep what they computed under a name. The
    folders are below the run folder, so the server must see the same disk; only the newest stays.
    """

    def __init__(self, server: ServerOptions, policy: Policy, folder: Path):
        self.server, self.policy, self.folder = server, policy, folder.absolute()
        self._name: str | None = None

    def follow(self, weights: Mapping[str, Tensor] | None = None) -> ServerOptions:
        """Hand the adapter over; returns the options that draw from it. `weights` are its own where the
        policy has only shards.
        """
        name = f"preftune-{uuid.uuid4().hex}"
        try:
            self.policy.peft_model.save_pretrained(
                self.folder / name, save_embedding_layers=False, state_dict=weights
            )
        except OSError as error:
            raise storage_error("write the adapter for the server", self.folder / name, error) from error
        followed = load_adapter(self.server, name, self.folder / name)
        if self._name is not None:
            unload_adapter(self.server, self._name)
            shutil.rmtree(self.folder / self._name, ignore_errors=True)
        self._name = name
        return followed
