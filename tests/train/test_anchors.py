"""References that follow the policy, the contrast of two models, the scalar head."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from preftune.model.adapters import LoraOptions
from preftune.model.load import load_model, resolve_model
from preftune.model.policy import score_groups
from preftune.model.reference import ReferenceOptions
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.objectives.tis_dpo import TISDPO
from preftune.progress import Reporter
from preftune.train.anchors import chosen_mode, follow, following_tensors
from preftune.train.loop import train
from preftune.train.setup import build_job
from tests.folders import metric_rows, save_tiny_model, tiny_config

LN2 = math.log(2.0)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_reference_that_is_copied_every_two_steps(rank, tiny_folder, pairs_file, tmp_path):
    """Right after a copy policy and reference are the same, so DPO's loss is ln 2; at the steps between it is
    not.
    """
    config = tiny_config(
        tiny_folder,
        pairs_file,
        tmp_path / "run",
        batch_size=6,
        epochs=5.0,
        lora=LoraOptions(rank=rank),
        reference=ReferenceOptions(update_every=2),
        optim={"learning_rate": 0.01},
    )
    losses = [row["loss"] for row in metric_rows(train(config, quiet=True).folder) if row["phase"] == "train"]
    for step, loss in enumerate(losses, 1):
        assert (abs(loss - LN2) < 1e-6) == (step % 2 == 1), (step, loss)


@pytest.mark.parametrize("rank", [0, 2])
def test_how_far_it_moves(rank, tiny_folder, pairs_file, tmp_path):
    config = tiny_config(
        tiny_folder,
        pairs_file,
        tmp_path / "run",
        lora=LoraOptions(rank=rank),
        reference=ReferenceOptions(update_every=3, update_rate=0.25),
    )
    job = build_job(config, Reporter(quiet=True))
    assert job.anchors.following is not None
    moving = following_tensors(job.anchors.following, job.policy)
    before = {name: tensor.clone() for name, tensor in moving.items()}
    assert moving.keys() == job.policy.trainable().keys() and moving
    with torch.no_grad():
        for parameter in job.policy.trainable().values():
            parameter.add_(0.5)
    assert all(
        torch.equal(moving[name], before[name]) for name in moving
    )  # a copy, not the policy's own weights
    follow(job.anchors.following, job.policy, 2, config.reference)
    assert all(torch.equal(moving[name], before[name]) for name in moving)
    follow(job.anchors.following, job.policy, 3, config.reference)
    for name in moving:
        torch.testing.assert_close(moving[name], before[name] + 0.125, rtol=1e-5, atol=1e-6)


def test_what_mode_auto_comes_to():
    auto = ReferenceOptions()
    assert chosen_mode(auto, frozenset({"ref_logp"}), has_adapter=True) == "cache"
    assert chosen_mode(auto, frozenset({"kl_from_ref"}), has_adapter=False) == "live"
    assert chosen_mode(auto, frozenset({"kl_from_ref"}), has_adapter=True) == "adapter"
    assert chosen_mode(ReferenceOptions(model="m"), frozenset({"kl_from_ref"}), has_adapter=True) == "live"
    assert chosen_mode(ReferenceOptions(update_every=1), frozenset({"ref_logp"}), has_adapter=True) == "live"
    assert chosen_mode(ReferenceOptions(mode="live"), frozenset({"ref_logp"}), has_adapter=True) == "live"


def test_a_contrast_is_between_the_two_models_named(tiny_folder, pairs_file, tmp_path):
    """And the numbers of a run change when the two change places."""
    good, bad = (save_tiny_model(tmp_path / name, seed=seed) for name, seed in (("good", 1), ("bad", 2)))
    losses = {}
    for name, (positive, negative) in {"one": (good, bad), "other": (bad, good)}.items():
        options = ReferenceOptions(contrast_positive=str(positive), contrast_negative=str(negative))
        config = tiny_config(tiny_folder, pairs_file, tmp_path / name, objective=TISDPO(), reference=options)
        job = build_job(config, Reporter(quiet=True))
        part = job.source.take(1)[:1]
        assert job.anchors.contrast is not None
        apart = [
            score_groups(
                replace(job.policy, model=load_model(resolve_model(str(m)), config.loading)),
                part,
                config.layout,
            )
            for m in (positive, negative)
        ]
        for found, a, b in zip(job.anchors.contrast(part)[0], apart[0][0], apart[1][0], strict=True):
            np.testing.assert_allclose(found, a - b, rtol=1e-4, atol=1e-5)
        losses[name] = [
            row["loss"] for row in metric_rows(train(config, quiet=True).folder) if row["phase"] == "train"
        ]
    assert losses["one"] != losses["other"]


def test_the_scalar_head_trains_and_is_saved(tiny_folder, pairs_file, tmp_path):
    """Bradley-Terry starts at rewards of 0, so at ln 2, learns, and its head goes on from a checkpoint bit
    for bit.
    """
    config = tiny_config(
        tiny_folder,
        pairs_file,
        tmp_path / "run",
        objective=BradleyTerry(centring=0.0),
        epochs=20.0,
        save_every=1,
        keep_checkpoints=99,
        optim={"learning_rate": 0.01},
    )
    done = train(config, quiet=True)
    losses = [row["loss"] for row in metric_rows(done.folder) if row["phase"] == "train"]
    assert losses[0] == pytest.approx(LN2, abs=1e-6)
    assert losses[-1] < 0.1
    head = load_file(done.folder / "final" / "model.safetensors")["score.weight"]
    assert head.abs().max() > 0.01
    saved = load_file(sorted((done.folder / "checkpoints").glob("step-*"))[-1] / "policy.safetensors")
    assert saved["value_head.weight"].shape == head.shape
