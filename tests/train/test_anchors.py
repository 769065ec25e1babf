"""References that follow the policy."""

import math

import pytest
import torch

from preftune.policy.adapters import LoraOptions
from preftune.policy.reference import ReferenceOptions
from preftune.train.anchors import chosen_mode, follow, following_tensors
from preftune.train.loop import train
from preftune.train.progress import Reporter
from preftune.train.setup import build_job
from tests.folders import metric_rows, tiny_config

LN2 = math.log(2.0)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_reference_that_is_copied_every_two_steps(rank, tiny_folder, pairs_file, tmp_path):
    """Right after a copy policy and reference are the same, so DPO's loss is ln 2; at the steps between it is not."""
    config = tiny_config(
        tiny_folder, pairs_file, tmp_path / "run", batch_size=6, epochs=5.0, lora=LoraOptions(rank=rank),
        reference=ReferenceOptions(update_every=2), optim={"learning_rate": 0.01},
    )  # fmt: skip
    losses = [row["loss"] for row in metric_rows(train(config, quiet=True).folder) if row["phase"] == "train"]
    for step, loss in enumerate(losses, 1):
        assert (abs(loss - LN2) < 1e-6) == (step % 2 == 1), (step, loss)


@pytest.mark.parametrize("rank", [0, 2])
def test_how_far_it_moves(rank, tiny_folder, pairs_file, tmp_path):
    config = tiny_config(
        tiny_folder, pairs_file, tmp_path / "run", lora=LoraOptions(rank=rank),
        reference=ReferenceOptions(update_every=3, update_rate=0.25),
    )  # fmt: skip
    job = build_job(config, Reporter(quiet=True))
    assert job.anchors.following is not None
    moving = following_tensors(job.anchors.following, job.policy)
    before = {name: tensor.clone() for name, tensor in moving.items()}
    assert moving.keys() == job.policy.trainable().keys() and moving
    with torch.no_grad():
        for parameter in job.policy.trainable().values():
            parameter.add_(0.5)
    assert all(torch.equal(moving[name], before[name]) for name in moving)  # a copy, not the policy's own weights
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
