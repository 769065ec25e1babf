"""The reference's numbers: the same from the cache, live and with the adapter off; never stale, never damaged
unseen.
"""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from preftune.errors import ModelError, TrainingError
from preftune.model.adapters import LoraOptions
from preftune.model.reference import ReferenceOptions, ReferenceStore
from preftune.objectives.dpo import DPO
from preftune.progress import Reporter
from preftune.train.loop import train
from preftune.train.setup import build_job
from preftune.types import Group
from tests.data.tokenizers_for_tests import CHATML, word_tokenizer
from tests.folders import metric_rows, save_tiny_model, timeless, tiny_config


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shards(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.scores"))


def test_cache_live_and_adapter_off_agree(tiny_folder, pairs_file, tmp_path, cache):
    rows = {}
    for mode in ("cache", "live", "adapter"):
        config = tiny_config(
            tiny_folder,
            pairs_file,
            tmp_path / mode,
            lora=LoraOptions(rank=2),
            reference=ReferenceOptions(mode=mode),
            optim={"learning_rate": 0.01},
        )
        rows[mode] = timeless(metric_rows(train(config, quiet=True).folder))
    first = rows["cache"][1]
    assert first["loss"] == pytest.approx(math.log(2.0), abs=1e-6) and first[
        "rewards/margins"
    ] == pytest.approx(0, abs=1e-4)
    assert rows["cache"][-1]["eval_rewards/margins"] > 0.1
    for mode in ("live", "adapter"):
        for one, two in zip(rows["cache"], rows[mode], strict=True):
            assert one.keys() == two.keys()
            for name, value in one.items():
                if isinstance(value, float):
                    scale = max(1.0, abs(one.get("logps/chosen", one.get("eval_logps/chosen", 1.0))))
                    assert two[name] / scale == pytest.approx(value / scale, rel=1e-5, abs=1e-6), (mode, name)


def notes_of(config, capsys) -> str:
    build_job(config, Reporter(quiet=False))
    return capsys.readouterr().err


def test_a_second_run_takes_everything_from_the_cache(tiny_folder, pairs_file, tmp_path, cache, capsys):
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run")
    assert "8 groups computed, 0 from the cache" in notes_of(config, capsys)
    found = {path: path.stat().st_mtime_ns for path in cache.rglob("*.scores")}
    again = notes_of(config, capsys)
    assert "0 groups computed, 8 from the cache" in again
    assert "matrix products" not in again
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.scores")} == found
    # Other weights are another reference, and so is another precision.
    other = save_tiny_model(tmp_path / "other", seed=1)
    assert "8 groups computed, 0 from the cache" in notes_of(
        tiny_config(other, pairs_file, tmp_path / "run"), capsys
    )
    low = tiny_config(tiny_folder, pairs_file, tmp_path / "run", precision="bf16")
    assert "8 groups computed, 0 from the cache" in notes_of(low, capsys)


def test_a_stale_cache_is_refused(tiny_folder, pairs_file, tmp_path, cache):
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run")
    job = build_job(config, Reporter(quiet=True))
    (shard,) = shards(cache)
    groups = [*job.source.groups, *job.eval_groups]
    logps = [ReferenceStore(shard.parent).get(group) for group in groups]
    shard.unlink()
    ReferenceStore(shard.parent).add(groups, [[one * np.float32(1.01) for one in each] for each in logps])
    with pytest.raises(
        TrainingError, match=r"The cached reference differs from the model .*Delete .*references"
    ):
        build_job(config, Reporter(quiet=True))


@pytest.mark.parametrize("damage", ["cut", "empty", "no shard", "index", "values", "zeroed"])
def test_a_damaged_shard_is_computed_again(damage, tiny_folder, pairs_file, tmp_path, cache, capsys):
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run")
    build_job(config, Reporter(quiet=True))
    (shard,) = shards(cache)
    whole = shard.read_bytes()
    content = bytearray(whole)
    if damage in ("cut", "empty"):
        content = content[: len(content) // 2 if damage == "cut" else 0]
    elif damage == "no shard":
        content = b"something else"
    elif damage == "zeroed":
        content[-100:] = bytes(100)
    else:
        content[20 if damage == "index" else -20] ^= 4
    shard.write_bytes(content)
    told = notes_of(config, capsys)
    assert f"{shard.name} in the cache was damaged" in told and "8 groups computed" in told
    assert shards(cache)[0].read_bytes() == whole


def test_many_shards_need_one_descriptor(tmp_path):
    """And another user's cache, which cannot be written, is read and added to for this process alone."""
    groups = [
        Group(prompt=np.array([k, 1], dtype=np.int32), completions=(np.array([2, k], dtype=np.int32),))
        for k in range(300)
    ]
    store = ReferenceStore(tmp_path)
    for k, group in enumerate(groups):
        store.add([group], [[np.array([k, -k], dtype=np.float32)]])
    before = len(os.listdir("/proc/self/fd"))
    again = ReferenceStore(tmp_path)
    assert all(group in again for group in groups)
    assert [again.get(group)[0].tolist() for group in groups] == [[k, -k] for k in range(300)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_another_model_as_reference(tiny_folder, pairs_file, tmp_path, cache):
    other = save_tiny_model(tmp_path / "other", seed=1)
    losses = {}
    for mode in ("cache", "live"):
        config = tiny_config(
            tiny_folder,
            pairs_file,
            tmp_path / mode,
            objective=DPO(),
            reference=ReferenceOptions(mode=mode, model=str(other)),
        )
        losses[mode] = [
            row["loss"] for row in metric_rows(train(config, quiet=True).folder) if row["phase"] == "train"
        ]
    assert losses["cache"] == pytest.approx(losses["live"], rel=1e-6)
    assert abs(losses["cache"][0] - math.log(2.0)) > 1e-3  # the policy does not start at its reference


def test_full_tuning_and_adapters_share_a_cache(tiny_folder, pairs_file, tmp_path, cache):
    """The start is the same model: what was computed for one rank serves another, and full fine-tuning."""
    for name, lora in (("full", LoraOptions()), ("two", LoraOptions(rank=2)), ("four", LoraOptions(rank=4))):
        build_job(tiny_config(tiny_folder, pairs_file, tmp_path / name, lora=lora), Reporter(quiet=True))
    assert len(shards(cache)) == 1


def test_a_reference_of_another_tokenizer_is_refused(tiny_folder, pairs_file, tmp_path):
    folder = save_tiny_model(tmp_path / "words")
    word_tokenizer(CHATML, eos="<|im_end|>").save_pretrained(folder)
    config = tiny_config(
        tiny_folder, pairs_file, tmp_path / "run", reference=ReferenceOptions(model=str(folder))
    )
    with pytest.raises(ModelError, match="different tokenizers"):
        build_job(config, Reporter(quiet=True))
