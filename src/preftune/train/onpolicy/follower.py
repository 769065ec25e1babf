"""A server that samples for a run: before every draw it gets the policy's weights as they are, and proves that it
uses them.
"""

import asyncio
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from preftune.data.fit import take_completions
from preftune.errors import PreftuneError, ServerError, TrainingError, storage_error
from preftune.model.layout import LayoutOptions
from preftune.model.policy import Policy, adapter_weights, score_groups
from preftune.model.shard import full_tensors
from preftune.progress import Reporter
from preftune.sampling.client import ServerOptions, endpoint_of
from preftune.sampling.following import compare_changes
from preftune.sampling.http_client import HttpClient, Refused, Silent
from preftune.sampling.server_scores import score_on_server
from preftune.sampling.server_weights import load_adapter, load_weights, unload_adapter, weights_version
from preftune.train.processes import ALONE, Processes
from preftune.types import Group

T = TypeVar("T")

PREFIX = "preftune-"
_PROBE_TOKENS = 256  # completion tokens of the probe, at least one completion
_MOST_RESTARTS = 3  # of the server in one draw
_POLL_S = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Probe:
    """Tokens whose log-probabilities show which weights a server has, with those of an earlier version."""

    group: Group
    policy: np.ndarray
    server: np.ndarray


class Follower:
    """Keeps a server at the weights of a policy that trains: at its adapter, or at all weights where no adapter
    trains.

    Every version has a name and a separate folder: servers may keep what they computed under a name. The
    folders are below the run folder, so the server must see the same disk; only the newest stays, until
    `close`.
    """

    def __init__(
        self,
        server: ServerOptions,
        policy: Policy,
        folder: Path,
        report: Reporter | None = None,
        processes: Processes = ALONE,
        restart_s: float = 0.0,
    ):
        self.server, self.policy, self.folder = server, policy, folder.absolute()
        self.processes, self.restart_s = processes, restart_s
        self._report = Reporter(quiet=True) if report is None else report
        self._name: str | None = None
        self._current = server  # the options that sample from the newest version
        self._probe: _Probe | None = None
        self._due, self._served = True, False  # whether the next draw makes a probe; whether one has worked
        self._followed: float | None = (
            None  # share of the policy's change that the server showed at the last draw
        )

    @property
    def _sends_adapter(self) -> bool:
        return self.policy.peft_model is not None

    def draw(self, work: Callable[[ServerOptions], T]) -> T:
        """The result of `work` with a server that has the policy's weights; by all processes.

        A server that was started again gets the weights again, and `work` is repeated.
        """
        weights = _weights_of(self.policy, self.processes.is_main)
        scored = None if self._probe is None else self._scored(self._probe.group)
        return self.processes.from_main(lambda: self._draw(weights, scored, work))

    def _draw(
        self, weights: dict[str, Tensor] | None, scored: np.ndarray | None, work: Callable[[ServerOptions], T]
    ) -> T:
        for attempt in range(_MOST_RESTARTS + 1):
            try:
                self._follow(weights)
                self._verify(scored)
                result = work(self._current)
                if self._sends_adapter or weights_version(self.server) == self._name:
                    self._served = True
                    return result
                lost: ServerError = ServerError("The server lost the weights", got="a restart in a draw")
            except Silent as error:
                lost = error
            except Refused as error:
                if error.status != 404:
                    raise
                lost = error  # it does not know the adapter any more
            if attempt == _MOST_RESTARTS or not self._served:
                raise lost
            self._wait(lost)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, lost: ServerError) -> None:
        """Until the server answers; the error if it does not in time."""
        deadline = time.monotonic() + self.restart_s
        self._report.note(
            f"the server is gone or was started again; waiting up to {self.restart_s:g} s for it to draw again"
        )
        while not _answers(self.server):
            if time.monotonic() > deadline:
                raise lost
            time.sleep(_POLL_S)

    def _follow(self, weights: dict[str, Tensor] | None) -> None:
        """Hand the weights over. `weights` are those of a policy that is in shards."""
        name = f"{PREFIX}{uuid.uuid4().hex}"
        if self._name is None:
            self._forget_earlier()
        try:
            if self._sends_adapter:
                self.policy.peft_model.save_pretrained(
                    self.folder / name, save_embedding_layers=False, state_dict=weights
                )
            else:
                self.policy.model.save_pretrained(self.folder / name, state_dict=weights)
        except OSError as error:
            raise storage_error("write the weights for the server", self.folder / name, error) from error
        previous, self._name = self._name, name
        if self._sends_adapter:
            self._current = load_adapter(self.server, name, self.folder / name)
        else:
            load_weights(self.server, name, self.folder / name)
        if previous is not None:
            self._forget(previous)

    def _forget(self, name: str) -> None:
        if self._sends_adapter:
            unload_adapter(self.server, name)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def _forget_earlier(self) -> None:
        """What a run that was killed left on the server and on disk."""
        for left in self.folder.glob(f"{PREFIX}*"):
            self._forget(left.name)

    def close(self) -> None:
        """The server forgets the last adapter, and its folder goes; a server that is gone does not matter."""
        if self._name is None or not self.processes.is_main:
            return
        with suppress(PreftuneError):
            self._forget(self._name)
        shutil.rmtree(self.folder / self._name, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()
        self._name = None

    # --- the proof ---

    def metrics(self) -> dict[str, float]:
        """`sampler_follows` of the last draw, where the policy had changed enough to tell."""
        return {} if self._followed is None else {"sampler_follows": self._followed}

    def _scored(self, group: Group) -> np.ndarray:
        """The policy's log-probabilities of a group's completions; by all processes."""
        return np.concatenate(score_groups(self.policy, [group], LayoutOptions())[0])

    def probe(self, groups: Sequence[Group]) -> None:
        """Keep tokens of the latest draw to see at later versions whether the server follows; by all processes."""
        if not self.processes.any(self._due and self.processes.is_main):
            return
        self._due = False
        group = _few(groups)
        policy = self._scored(group)

        server = self.processes.from_main(lambda: score_on_server(self._current, group))
        if server is None:
            self._report.note(
                "the server gives no prompt_logprobs: only the size of sampler_gap shows whether it follows"
            )
        self._probe = None if server is None else _Probe(group=group, policy=policy, server=server)

    def _verify(self, scored: np.ndarray | None) -> None:
        """An error if the server has earlier weights; `scored` are the policy's log-probabilities of the probe."""
        self._followed = None
        if self._probe is None or scored is None:
            return
        told = score_on_server(self._current, self._probe.group)
        if told is None:
            return
        found = compare_changes(self._probe.policy, scored, self._probe.server, told)
        if found.stale:
            raise TrainingError(
                "The server does not follow the policy: it samples from earlier weights",
                got=f"{found.share:.2f} of the policy's change of {found.change:.2g} nats per token",
                expected="about 1",
                do=f"Check what answers at {self.server.url}: a single vLLM that was started to take "
                f"{'adapters' if self._sends_adapter else 'weights'}, no cache or second replica",
            )
        if found.conclusive:
            self._followed, self._due = found.share, True


def _few(groups: Sequence[Group]) -> Group:
    """The first completions of the first prompt, of at most _PROBE_TOKENS tokens together."""
    group = groups[0]
    sizes = np.cumsum([len(ids) for ids in group.completions])
    count = max(1, int((sizes <= _PROBE_TOKENS).sum()))
    return take_completions(group, range(count), ())


def _weights_of(policy: Policy, keep: bool) -> dict[str, Tensor] | None:
    """The weights to send of a policy in shards, put together by all processes for those with `keep`; None of a
    policy that is whole.
    """
    if policy.shards is None or policy.peft_model is not None:
        return adapter_weights(policy, keep)
    return full_tensors(policy.model.state_dict(keep_vars=True), keep)


def _answers(server: ServerOptions) -> bool:
    """Whether the server answers a request for its models."""

    async def ask() -> None:
        async with HttpClient(endpoint_of(server, retries=0)) as client:
            await client.request("/v1/models", None, lambda content: content["data"])

    try:
        asyncio.run(ask())
    except ServerError:
        return False
    return True
