"""Whether a server's log-probabilities change as the policy's do."""

import numpy as np
import pytest

from preftune.sampling.following import compare_changes

RANDOM = np.random.default_rng(0)
BEFORE = -RANDOM.exponential(2.0, 200)


def rounding(size: float) -> np.ndarray:
    return size * RANDOM.standard_normal(200)


def test_by_hand():
    found = compare_changes(
        np.array([-1.0, -2.0]), np.array([-0.9, -2.2]), np.array([-1.01, -2.02]), np.array([-0.91, -2.12])
    )
    assert found.share == pytest.approx((0.1 * 0.1 + 0.2 * 0.1) / (0.01 + 0.04))
    assert found.change == pytest.approx(np.sqrt((0.01 + 0.04) / 2))
    assert found.noise == pytest.approx(np.sqrt((0.0001 + 0.0004) / 2))
    assert found.conclusive and not found.stale and not found.repeats


@pytest.mark.parametrize("noise", [1e-5, 0.05], ids=["fp32", "bf16"])
@pytest.mark.parametrize("change", [1e-3, 1.0], ids=["small step", "large step"])
def test_a_server_that_follows_is_never_called_stale(noise, change):
    now = BEFORE + rounding(change)
    found = compare_changes(BEFORE, now, BEFORE + rounding(noise), now + rounding(noise))
    assert not found.stale and found.conclusive == (change > 3 * noise)


@pytest.mark.parametrize("noise", [1e-5, 0.05], ids=["fp32", "bf16"])
def test_a_server_that_repeats_itself_is_stale_also_below_its_rounding(noise):
    server, now = BEFORE + rounding(noise), BEFORE + rounding(1e-3)
    found = compare_changes(BEFORE, now, server, server)
    assert found.stale and found.share == 0.0
    close = compare_changes(BEFORE, now, BEFORE + rounding(noise), now + rounding(noise))
    assert abs(np.mean(np.abs(server - now)) - noise * 0.8) < 0.2 * noise + 1e-3  # the gap shows nothing
    assert not close.stale


def test_a_server_that_repeats_itself_while_nothing_changed_is_fine():
    server = BEFORE + rounding(0.05)
    found = compare_changes(BEFORE, BEFORE, server, server)
    assert not found.stale and not found.conclusive


def test_a_stale_server_that_computes_with_noise_is_noticed_once_the_policy_has_moved():
    now = BEFORE + rounding(1.0)
    found = compare_changes(BEFORE, now, BEFORE + rounding(0.05), BEFORE + rounding(0.05))
    assert found.stale and abs(found.share) < 0.1
