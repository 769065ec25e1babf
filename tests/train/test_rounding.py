"""Weights in bf16: what is rounded by chance is exact in the mean, and nothing is lost that a step adds."""

import pytest
import torch
from torch import nn

from preftune.errors import ConfigError
from preftune.model.adapters import LoraOptions
from preftune.model.reference import ReferenceOptions
from preftune.model.shard import ShardOptions
from preftune.objectives.dpo import DPO
from preftune.progress import Reporter
from preftune.train.batches import cut_step, make_score
from preftune.train.loop import train
from preftune.train.optim import OptimOptions
from preftune.train.optimizers import make_optimizer
from preftune.train.rounding import RoundedAdamW, draw_noise, round_by_chance, sum_gradients_exactly
from preftune.train.setup import build_job
from preftune.train.step import accumulate_gradient, global_weight
from tests.folders import metric_rows, tiny_config, weights_of

ALL_NOISE = torch.arange(65536, dtype=torch.int32)
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 0.1, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("value", "below", "above", "share"),
    [
        (1.0 + 2**-9, 1.0, 1.0 + 2**-7, 0.25),
        (-1.0 - 2**-9, -1.0, -1.0 - 2**-7, 0.25),
        (2.0 - 2**-10, 2.0 - 2**-7, 2.0, 0.875),
        (3 * 2.0**-130, 3 * 2.0**-130, 0.0, 0.0),  # subnormal, and bf16 has it
        (0.15625, 0.15625, 0.0, 0.0),
        (0.0, 0.0, 0.0, 0.0),
    ],
)
def test_each_neighbor_with_its_share_of_the_noise(value, below, above, share):
    found = round_by_chance(torch.full((65536,), value), ALL_NOISE)
    assert set(found.tolist()) <= {below, above} and torch.equal(found, found.bfloat16().float())
    assert (found == above).double().mean().item() == (share if share else float(above == below))


def test_the_mean_of_all_roundings_is_the_number():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 50)
    for value in values.tolist():
        found = round_by_chance(torch.full((65536,), value), ALL_NOISE)
        assert found.double().mean().item() == pytest.approx(torch.tensor(value).item(), rel=1e-9)


def test_the_noise_is_uniform_in_every_place():
    """Four of one draw: each of them has all 16 bits, each bit half of the time, and no two go together."""
    buffers = torch.zeros(60_000, dtype=torch.int64), torch.zeros(4 * 50_000 - 1, dtype=torch.int32)
    noise = draw_noise(*buffers, torch.Generator().manual_seed(0))
    assert noise is buffers[1] and not buffers[0][50_000:].any()
    assert 0 <= int(noise.min()) < 5 and 65530 < int(noise.max()) <= 65535
    bits = torch.stack([noise[: 4 * 49_000] >> k & 1 for k in range(16)], 1).view(-1, 64).double()
    assert (bits.mean(0) - 0.5).abs().max() < 5 * 0.5 / 49_000**0.5
    together = torch.corrcoef(bits.t()) - torch.eye(64)
    assert together.abs().max() < 6 / 49_000**0.5


def some(shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def low_parameter(values) -> nn.Parameter:
    parameter = nn.Parameter(values.bfloat16())
    sum_gradients_exactly([parameter])
    return parameter


def test_one_step_is_adamws_rounded_up_or_down():
    """From the same bf16 weights and moments PyTorch's AdamW in fp32 makes a number; ours is its neighbor,
    right in the mean.
    """
    start, first, second = some((4, 5), scale=0.1), some((4, 5), 1), some((4, 5), 2)
    found = []
    for seed in range(400):
        parameter = low_parameter(start)
        optimizer = RoundedAdamW([parameter], **SETTINGS, seed=seed)
        parameter.grad = first.clone()
        optimizer.step()
        before = [
            t.detach().float()
            for t in (parameter, *(optimizer.state[parameter][k] for k in ("exp_avg", "exp_avg_sq")))
        ]
        plain = nn.Parameter(before[0].clone())
        oracle = torch.optim.AdamW([plain], **{k: SETTINGS[k] for k in SETTINGS})
        oracle.state[plain] = {
            "step": torch.tensor(1.0),
            "exp_avg": before[1].clone(),
            "exp_avg_sq": before[2].clone(),
        }
        parameter.grad, plain.grad = second.clone(), second.clone()
        optimizer.step()
        oracle.step()
        state = optimizer.state[parameter]
        assert state["step"] == 2
        for low, high in (
            (parameter, plain),
            *((state[k], oracle.state[plain][k]) for k in ("exp_avg", "exp_avg_sq")),
        ):
            exact = high.detach()
            assert low.dtype == torch.bfloat16
            assert ((low.float() - exact).abs() <= exact.abs() * 2**-7).all()
            found.append(((low.float() - exact) / exact.abs().clamp(min=1e-30)).detach())
    errors = torch.stack(found).view(400, 3, -1)
    assert (errors.abs().mean((0, 2)) > 5e-4).all()  # they are rounded
    assert (errors.mean(0).abs() < 5 * errors.std(0) / 400**0.5 + 1e-7).all()  # and the errors cancel


def test_steps_far_below_the_weights_are_not_lost():
    """300 steps of 1e-5 on weights of 1: rounded to the nearest none would move."""
    size, steps, rate = 65536, 300, 1e-5
    settings = {"lr": rate, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    by_chance, nearest = low_parameter(torch.ones(size)), nn.Parameter(torch.ones(size).bfloat16())
    ours, plain = RoundedAdamW([by_chance], **settings, seed=3), torch.optim.AdamW([nearest], **settings)
    for _ in range(steps):
        by_chance.grad, nearest.grad = torch.ones(size), torch.ones(size).bfloat16()
        ours.step()
        plain.step()
    assert (nearest == 1.0).all()
    assert 1.0 - by_chance.detach().double().mean().item() == pytest.approx(
        steps * rate, rel=0.02
    )  # one sigma: 0.5%


@pytest.mark.parametrize("pieces", [7, 64, 10_000])
def test_pieces_are_of_no_matter_but_for_the_noise(pieces):
    """Weights whose every number bf16 can hold: whatever the noise, all are as AdamW has them."""
    parameter, plain = low_parameter(torch.ones(3, 50)), nn.Parameter(torch.ones(3, 50))
    settings = {"lr": 0.5, "betas": (0.5, 0.5), "eps": 1e-30, "weight_decay": 0.0}
    ours, oracle = (
        RoundedAdamW([parameter], **settings, seed=0, piece=pieces),
        torch.optim.AdamW([plain], **settings),
    )
    gradient = torch.where(some((3, 50)) > 0, 1.0, -1.0)
    parameter.grad, plain.grad = gradient.clone(), gradient.clone()
    ours.step()
    oracle.step()
    assert torch.equal(parameter.detach().float(), plain.detach())
    assert set(plain.tolist()[0]) == {0.5, 1.5}


def test_the_chances_hang_on_seed_step_and_place():
    def after(seed: int, steps: int = 1, places: int = 1) -> list[torch.Tensor]:
        parameters = [low_parameter(some((40, 40), scale=0.1)) for _ in range(places)]
        optimizer = RoundedAdamW(parameters, **SETTINGS, seed=seed)
        for _ in range(steps):
            for parameter in parameters:
                parameter.grad = torch.full((40, 40), 1e-3)
            optimizer.step()
        return [p.detach() for p in parameters]

    assert torch.equal(after(0)[0], after(0)[0])
    assert not torch.equal(after(0)[0], after(1)[0])
    one, two = after(0, places=2)
    assert not torch.equal(one, two) and torch.equal(one, after(0)[0])
    # The second step draws other noise than the first: from the same state it ends elsewhere.
    parameter = low_parameter(some((40, 40), scale=0.1))
    optimizer = RoundedAdamW([parameter], **SETTINGS, seed=0)
    ends = []
    for step in (0, 1):
        state = {"step": torch.tensor(float(step))} | {
            k: torch.zeros(40, 40).bfloat16() for k in ("exp_avg", "exp_avg_sq")
        }
        optimizer.state[parameter] = state
        with torch.no_grad():
            parameter.copy_(some((40, 40), scale=0.1))
        optimizer.param_groups[0]["lr"] = 0.0
        parameter.grad = some((40, 40), 1)
        optimizer.step()
        ends.append(state["exp_avg"].clone())
    assert not torch.equal(*ends)


def test_weights_in_fp32_get_the_plain_update():
    """A head in fp32 on weights in bf16; and a weight without gradient stays."""
    head, plain, still = nn.Parameter(some(30)), nn.Parameter(some(30)), low_parameter(some(30))
    ours, oracle = (
        RoundedAdamW([head, still], **SETTINGS, seed=0),
        torch.optim.AdamW([plain], **SETTINGS, fused=True),
    )
    for step in range(3):
        head.grad, plain.grad = some(30, step), some(30, step)
        ours.step()
        oracle.step()
    assert torch.equal(head.detach(), plain.detach())
    assert torch.equal(still.detach(), some(30).bfloat16()) and not ours.state[still]


def test_the_options_reach_the_optimizer():
    chosen = OptimOptions(
        weights="bf16", learning_rate=0.1, adam_beta1=0.5, adam_beta2=0.6, adam_epsilon=0.7, weight_decay=0.8
    )
    optimizer = make_optimizer({"w": low_parameter(some(3))}, chosen, 9)
    assert isinstance(optimizer, RoundedAdamW) and optimizer._seed == 9
    group = optimizer.param_groups[0]
    assert [group[k] for k in ("lr", "betas", "eps", "weight_decay")] == [0.1, (0.5, 0.6), 0.7, 0.8]


# --- runs ---


def test_gradients_of_a_step_are_summed_in_fp32(tiny_folder, pairs_file, tmp_path):
    """Also those that head and embedding add to `.grad` themselves: equal to the sum of what pieces give
    alone, each in bf16.
    """
    config = tiny_config(
        tiny_folder,
        pairs_file,
        tmp_path / "run",
        precision="bf16",
        objective=DPO(),
        eval_fraction=0.0,
        seed=4,
        optim={"weights": "bf16"},
    )
    job = build_job(config, Reporter(quiet=True))
    assert isinstance(job.optimizer, RoundedAdamW) and job.optimizer._seed == 4
    groups, parameters = job.source.take(1), job.policy.trainable()
    pieces = [
        piece for group in groups for piece in cut_step([group], DPO().signal, job.policy, config.layout)
    ]
    score, total = (
        make_score(job.policy, config.objective, job.anchors),
        global_weight(pieces, config.objective),
    )
    expected = {name: torch.zeros(p.shape) for name, p in parameters.items()}
    for piece in pieces:
        job.optimizer.zero_grad()
        accumulate_gradient([piece], config.objective, score, [None], total)
        for name, parameter in parameters.items():
            assert (
                parameter.dtype == torch.bfloat16
                and parameter.grad is not None
                and parameter.grad.dtype == torch.float32
            )
            expected[name] += parameter.grad
    job.optimizer.zero_grad()
    accumulate_gradient(pieces, config.objective, score, [None] * len(pieces), total)
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)


def test_a_run_learns_as_with_weights_in_fp32(tiny_folder, pairs_file, tmp_path):
    """At a rate at which a step moves a weight by less than half of what bf16 can tell apart: held-out losses
    agree.
    """
    losses = {}
    for weights in ("fp32", "bf16"):
        config = tiny_config(
            tiny_folder,
            pairs_file,
            tmp_path / weights,
            precision="bf16",
            epochs=40.0,
            optim={"weights": weights, "learning_rate": 3e-4},
        )
        result = train(config, quiet=True)
        rows = [row for row in metric_rows(result.folder) if row["phase"] == "eval"]
        losses[weights] = [row["eval_loss"] for row in rows]
        assert {t.dtype for t in weights_of(result.final).values()} == {
            torch.bfloat16 if weights == "bf16" else torch.float32
        }
    assert losses["fp32"][-1] < 0.5
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.06)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(precision="fp32"), "computes in bf16.*precision fp32"),
        (dict(lora=LoraOptions(rank=2)), "no effect on adapters"),
        (dict(shard=ShardOptions(mode="full")), "sums gradients in fp32"),
        (
            dict(reference=ReferenceOptions(update_every=2, update_rate=0.5)),
            "lost in rounding.*update_rate 0.5",
        ),
    ],
)
def test_what_cannot_train_in_bf16_is_refused(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        tiny_config(
            tmp_path,
            "pairs.jsonl",
            tmp_path / "run",
            **({"precision": "bf16", "optim": {"weights": "bf16"}} | settings),
        )
