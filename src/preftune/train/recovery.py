"""From whatever a process that ended left in a run folder to where the run continues."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError, DataError, StorageError, storage_error
from preftune.progress import Reporter
from preftune.storage import folder_damage, locked_folder, remove, remove_leftovers
from preftune.train.checkpoint import CheckpointState, Counters, checkpoints, read_state
from preftune.train.identity import (
    MANIFEST,
    Identity,
    changed_entries,
    check_identity,
    check_settings,
    read_manifest,
    write_manifest,
)
from preftune.train.processes import Processes
from preftune.train.runlog import RunFolder, check_output


@dataclass(frozen=True, kw_only=True)
class Start:
    """A verified checkpoint, and sentences about others that are damaged."""

    path: Path
    state: CheckpointState
    notes: tuple[str, ...]


def claim_new(stack: ExitStack, output: str) -> None:
    """Lock a new run folder until the stack closes, before any other work."""
    check_output(output)
    stack.enter_context(locked_folder(Path(output)))
    check_output(output)  # another process may have used and left it meanwhile
    remove_leftovers(Path(output))


def claim_old(stack: ExitStack, run: RunFolder) -> None:
    """Lock a run folder until the stack closes, and remove what a killed process left half-written."""
    if not (run.path / "config.yaml").is_file():
        raise ConfigError(
            f"{run.path} is not a run folder",
            got="no config.yaml in it",
            expected="a folder made by --output",
        )
    stack.enter_context(locked_folder(run.path))
    try:
        remove_leftovers(run.path)
        remove_leftovers(run.checkpoints)
    except OSError as error:
        raise storage_error("clean the run folder", run.path, error) from error


def check_final(run: RunFolder) -> None:
    """The files of final/ must be as they were written, as far as it has digests."""
    if damage := folder_damage(run.final):
        raise StorageError(
            f"The model {run.final} is damaged",
            got=damage,
            do=f"Delete {run.final}; preftune train --resume {run.path} then makes it again from the latest checkpoint",
        )


def check_end(counters: Counters, num_steps: int) -> None:
    """The checkpoint must not be beyond the end of the run."""
    if counters.step > num_steps:
        raise ConfigError(
            "The checkpoint is beyond the end of the run",
            got=f"step {counters.step}, and {num_steps} steps by the settings in config.yaml",
            expected=f"at least {counters.step} steps",
            do="Raise epochs, max_steps or max_samples in config.yaml",
        )


def latest_start(run: RunFolder, skip_damaged: bool) -> Start | None:
    """The latest checkpoint, verified; with `skip_damaged` the latest one that is whole, and the damaged ones
    are set aside. None if there is no checkpoint: the run starts again.
    """
    notes: list[str] = []
    for path in reversed(checkpoints(run.checkpoints)):
        try:
            state = read_state(path)
        except StorageError as error:
            if not skip_damaged:
                raise
            aside = path.with_name(f"damaged-{path.name}")
            try:
                remove(aside)
                path.rename(aside)
            except OSError as cause:
                raise storage_error("set the damaged checkpoint aside", path, cause) from error
            notes.append(f"{path.name} is damaged and was renamed to {aside.name}")
            continue
        if skip_damaged and not notes:
            raise ConfigError(
                "--skip-damaged has no effect: the latest checkpoint is whole",
                got=str(path),
                do="Leave it out",
            )
        return Start(path=path, state=state, notes=tuple(notes))
    if skip_damaged and not notes:
        raise ConfigError("--skip-damaged has no effect: the run has no checkpoint", do="Leave it out")
    return None


def manifest_of(
    run: RunFolder,
    settings: Mapping[str, Any],
    start: Start | None,
    allowed: frozenset[str],
    report: Reporter,
) -> Mapping[str, Any] | None:
    """The manifest of a run that is resumed, compared with today's settings; None, with a note, if it has none."""
    manifest = read_manifest(run)
    if manifest is not None:
        check_settings(run.path, manifest, settings, allowed)
        return manifest
    if allowed - {"log"}:
        raise ConfigError(
            "--allow-changed has no effect: the run has no manifest to compare with",
            got=", ".join(sorted(allowed)),
            do="Leave it out",
        )
    if start is not None:
        report.note(
            f"{run.path} has no {MANIFEST}: an older version started it, and whether its data, model or settings "
            "have changed cannot be told"
        )
    return None


@dataclass(kw_only=True)
class Comparison:
    """The identity of a run: the same in all processes and, if it is resumed, the same as before.

    `before` is the manifest of a run that is resumed, if it has one; `allowed` names what may have changed.
    """

    processes: Processes
    report: Reporter
    folder: Path
    before: Mapping[str, Any] | None = None
    allowed: frozenset[str] = frozenset()
    _identity: Identity | None = None
    _entry: dict[str, Any] = field(default_factory=dict)

    def check(self, identity: Identity) -> None:
        """Called once the inputs are loaded, before anything expensive is computed from them."""
        self._identity = identity
        for rank, inputs in enumerate(self.processes.gather(dict(identity.inputs))):
            if differing := list(changed_entries(dict(identity.inputs), inputs)):
                raise DataError(
                    f"Processes {self.processes.rank} and {rank} have other {', '.join(differing)}",
                    got=f"other content of {differing[0]}",
                    expected="the same files on every host",
                    do="Copy them anew, or use a disk that all hosts share",
                )
        if self.before is None:
            return
        before = self.before
        self._entry, notes = self.processes.from_main(
            lambda: check_identity(self.folder, before, identity, self.allowed)
        )
        for note in notes:
            self.report.note(note)

    def record(self, run: RunFolder, step: int = 0, repaired: tuple[str, ...] = ()) -> None:
        """Write the manifest of a new run, or of a resumed one with what has changed."""
        assert self._identity is not None
        earlier = [] if self.before is None else list(self.before["resumed"])
        if self._entry or repaired:
            earlier.append({"step": step, **self._entry, "repaired": list(repaired)})
        elif self.before is not None:
            return
        write_manifest(run, self._identity, earlier)
