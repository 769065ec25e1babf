"""Two steps that are one: the half step is taken back, and the full step starts where it started."""

import copy

import pytest
import torch

from preftune.cli.settings import settings_from_run
from preftune.errors import ConfigError
from preftune.model.reference import ReferenceOptions
from preftune.objectives.grpo import GRPO
from preftune.objectives.ipo import IPO
from preftune.sampling.sample import SampleOptions
from preftune.train.checkpoint import checkpoints
from preftune.train.loop import resume, train
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.optim import HalfStep, OptimOptions
from preftune.train.optimizers import make_optimizer
from preftune.train.options import TrainConfig
from tests.folders import metric_rows, same_bits, timeless, tiny_config, weights_of, write_rows

PROMPTS = [{"prompt": f"Say {word}."} for word in ("sea", "poem", "tea", "snow", "blue", "Paris")]
REWARD = """
def vowels(prompts, completions, **columns):
    return [sum(c in 'aeiou' for c in text) / max(len(text), 1) for text in completions]
"""


@pytest.fixture
def config(tiny_folder, tmp_path):
    rewards = tmp_path / "taste.py"
    rewards.write_text(REWARD)
    prompts = write_rows(tmp_path / "prompts.jsonl", PROMPTS)

    def made(name="run", **settings):
        chosen = {
            "source": "on-policy",
            "reward": f"{rewards}:vowels",
            "objective": IPO(),
            "batch_size": 3,
            "max_steps": 4,
            "epochs": 9.0,
            "eval_fraction": 0.0,
            "sampling": SampleOptions(num_completions=3, max_new_tokens=6),
            "optim": {"extragradient": True},
        } | settings
        return tiny_config(tiny_folder, prompts, tmp_path / name, **chosen)

    return made


def test_a_rotation_is_only_damped_by_the_extragradient():
    """min over x, max over y of x y: plain gradient steps move away from the saddle point, extragradient
    steps towards it.

    With plain steps of size h the squared distance grows by 1 + h^2 a step; with (x, y) -> z - h F(z - h
    F(z)) it becomes (1 - h^2)^2 + h^2 of what it was.
    """
    point = torch.nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([point], lr=0.1)
    half = HalfStep(optimizer)

    def field(at: torch.Tensor) -> torch.Tensor:
        return torch.stack([at[1], -at[0]])

    half.keep()
    point.grad = field(point.detach())
    optimizer.step()
    gradient = field(point.detach())
    half.put_back()
    assert point.tolist() == [1.0, 1.0]
    point.grad = gradient
    optimizer.step()
    assert float(point.detach().square().sum()) == pytest.approx(2 * ((1 - 0.01) ** 2 + 0.01), rel=1e-12)


def test_moments_are_put_back_too():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer({"w": parameter}, OptimOptions(learning_rate=0.1))
    parameter.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizer.step()
    before, moments = parameter.detach().clone(), copy.deepcopy(optimizer.state_dict())
    half = HalfStep(optimizer)
    half.keep()
    parameter.grad = torch.tensor([5.0, 5.0, 5.0])
    optimizer.step()
    half.put_back()
    after = optimizer.state_dict()["state"][0]
    assert torch.equal(parameter, before)
    assert all(
        torch.equal(after[name], moments["state"][0][name]) for name in ("step", "exp_avg", "exp_avg_sq")
    )


def test_a_run_saves_whole_steps_alone_and_resumes(config, tmp_path):
    train(config("whole", save_every=2, keep_checkpoints=9, max_steps=6), quiet=True)
    assert [path.name for path in checkpoints(tmp_path / "whole" / "checkpoints")] == [
        "step-000002",
        "step-000004",
    ]
    whole = weights_of(tmp_path / "whole" / "final")
    plain = config("plain", optim={}, max_steps=6)
    train(plain, quiet=True)
    assert not same_bits(whole, weights_of(tmp_path / "plain" / "final"))
    rows = timeless(metric_rows(tmp_path / "whole"))
    (tmp_path / "whole" / "final").rename(tmp_path / "kept")
    (tmp_path / "whole" / "status.json").write_text('{"state": "interrupted", "step": 4, "message": ""}')
    resume(settings_from_run(TrainConfig, tmp_path / "whole"), quiet=True)
    assert (
        same_bits(weights_of(tmp_path / "whole" / "final"), whole)
        and timeless(metric_rows(tmp_path / "whole")) == rows
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "offline", "reward": None}, "samples of each half step"),
        ({"collect": CollectOptions(epochs=2)}, "samples of each half step"),
        ({"collect": CollectOptions(lag=1)}, "samples of each half step"),
        ({"objective": GRPO()}, "makes ratios wrong"),
        ({"max_steps": 3}, "max_steps is odd"),
        ({"save_every": 1}, "save_every is odd"),
        ({"reference": ReferenceOptions(update_every=3)}, "update_every is odd"),
    ],
)
def test_what_does_not_go_with_it_is_refused(config, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**settings)
