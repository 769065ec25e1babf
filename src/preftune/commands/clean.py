"""The command `clean`: remove what processes that were killed left in a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError
from preftune.storage import locked_folder, remove_leftovers
from preftune.terminal import clean_terminal


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Remove temporary files and folders of killed processes. The next run in a folder does so, too.

    Args:
        folder: a run folder, or the output of `iterate` or `compare`.
        json: print the removed paths as JSON.
    """

    folder: str
    json: bool = False

    def __post_init__(self) -> None:
        if not Path(self.folder).is_dir():
            raise ConfigError("There is no such folder", got=self.folder, expected="a run folder")


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(CleanConfig, arguments, "preftune clean", positional="folder")
    root = Path(settings.folder)
    ours = {"config.yaml", "iterate.yaml", "compare.yaml"}
    runs = [root, *(path.parent for name in sorted(ours) for path in root.rglob(name))]
    if not any((root / name).is_file() for name in ours):
        raise ConfigError(
            f"{root} is not a run folder",
            got="no config.yaml in it",
            expected="a run folder, or the output of iterate or compare",
        )
    removed: list[str] = []
    with locked_folder(root):
        for folder in dict.fromkeys(runs):
            places = (
                [folder, folder / "checkpoints", folder.parent]
                if folder != root
                else [root, root / "checkpoints"]
            )
            removed += [str(place / name) for place in places for name in remove_leftovers(place)]
    if settings.json:
        print_json({"removed": removed})
        return 0
    for path in removed:
        print(clean_terminal(f"removed {path}"))
    if not removed:
        print("nothing to remove")
    return 0
