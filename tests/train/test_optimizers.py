"""Every optimizer trains, continues from a checkpoint bit for bit, or is refused in one sentence."""

import importlib.util
import sys

import pytest
import torch

from preftune.errors import ConfigError
from preftune.model.adapters import LoraOptions
from preftune.model.shard import ShardOptions
from preftune.progress import Reporter
from preftune.train.checkpoint import Counters, load_checkpoint, save_checkpoint
from preftune.train.checks import check_shards
from preftune.train.loop import train
from preftune.train.optim import OPTIMIZERS, OptimOptions
from preftune.train.optimizers import averaged_weights, hidden_matrices, make_optimizer, set_learning_rate
from preftune.train.setup import build_job
from tests.folders import metric_rows, same_bits, tiny_config

HAVE_TORCHAO = importlib.util.find_spec("torchao") is not None
NAMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "adamw-8bit" and not HAVE_TORCHAO, reason="torchao is not installed"
        ),
    )
    for name in OPTIMIZERS
]


def options(name, **others):
    return OptimOptions(name=name, learning_rate=0.01, schedule="constant", **others)


@pytest.fixture(autouse=True)
def eager():
    """torchao compiles its step; its arithmetic is the same without."""
    with torch.compiler.set_stance("force_eager"):
        yield


def start():
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.big": (64, 128), "model.small": (3, 5), "model.norm": (7,), "value_head.weight": (1, 5)}
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()
    }


def step(parameters, optimizer, number):
    generator = torch.Generator().manual_seed(number)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    set_learning_rate(optimizer, 0.01 / number)
    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_continues_bit_for_bit(name, tmp_path):
    matrices = frozenset({"model.big", "model.small"})
    whole, parts = start(), start()
    optimizer = make_optimizer(whole, options(name), matrices=matrices)
    for number in range(1, 6):
        step(whole, optimizer, number)
    optimizer = make_optimizer(parts, options(name), matrices=matrices)
    for number in range(1, 4):
        step(parts, optimizer, number)
    extra = {"reference": {}, "estimators": {}, "source": {}}
    path = save_checkpoint(tmp_path, parts, optimizer, Counters(step=3), 1, extra)
    resumed = start()
    optimizer = make_optimizer(resumed, options(name), matrices=matrices)
    load_checkpoint(path, resumed, optimizer, {})
    assert same_bits(resumed, parts)
    for number in range(4, 6):
        step(resumed, optimizer, number)
    assert same_bits(resumed, whole)
    assert not any(torch.equal(resumed[name], value) for name, value in start().items())


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns(name, rank, tiny_folder, pairs_file, tmp_path):
    optim = {"name": name, "learning_rate": 3e-3}
    config = tiny_config(
        tiny_folder, pairs_file, tmp_path / "run", optim=optim, lora=LoraOptions(rank=rank), epochs=4.0
    )
    losses = [row["loss"] for row in metric_rows(train(config, quiet=True).folder) if row["phase"] == "train"]
    assert losses[-1] < losses[0] - 1e-3


def test_muon_takes_the_matrices_inside_the_model(tiny_folder, pairs_file, tmp_path):
    job = build_job(tiny_config(tiny_folder, pairs_file, tmp_path / "run"), Reporter(quiet=True))
    names = hidden_matrices(job.policy.model, job.policy.trainable())
    assert any("q_proj" in name for name in names) and any("down_proj" in name for name in names)
    assert not any("embed" in name or "norm" in name or "head" in name for name in names)


def test_weights_of_an_evaluation_are_an_average_and_training_goes_on_unchanged():
    parameters = start()
    optimizer = make_optimizer(parameters, options("schedule-free"))
    for number in range(1, 4):
        step(parameters, optimizer, number)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    with averaged_weights(optimizer):
        assert not same_bits(before, parameters)
    assert same_bits(before, parameters)
    step(parameters, optimizer, 4)  # in training mode again
    plain = start()
    with averaged_weights(make_optimizer(plain, options("adamw"))):
        assert same_bits(plain, start())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("adamw_torch", "adamw"),
        ("adamw_torch_fused", "adamw"),
        ("adamw_8bit", "adamw-8bit"),
        ("paged_adamw_8bit", "adamw-8bit"),
        ("schedule_free_adamw", "schedule-free"),
        ("Muon", "muon"),
    ],
)
def test_familiar_names(given, expected):
    assert options(given).name == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion"}, "optim.name is no optimizer .* got lion; expected adamw, adamw-8bit"),
        ({"name": "adafacto"}, "Did you mean adafactor"),
        ({"name": "schedule-free"}, "in place of a schedule; got optim.schedule linear; expected constant"),
        ({"name": "adafactor", "adam_beta1": 0.8}, "adam_beta1 has no effect on adafactor"),
        ({"name": "muon", "weights": "bf16"}, "weights has no effect with optim.name muon"),
        (
            {"name": "adamw-8bit", "extragradient": True},
            "extragradient has no effect with optim.name adamw-8bit",
        ),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigError, match=message):
        OptimOptions(**settings)


def test_shards_take_adamw_alone():
    check_shards(OptimOptions(), ShardOptions(mode="full"))
    with pytest.raises(ConfigError, match=r"optim\.name muon does not work on a model in shards"):
        check_shards(OptimOptions(name="muon"), ShardOptions(mode="full"))


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("adamw-8bit", "torchao.optim", "torchao"), ("schedule-free", "schedulefree", "schedulefree")],
)
def test_what_to_install(name, module, package, tiny_folder, pairs_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    config = tiny_config(tiny_folder, pairs_file, tmp_path / "run", optim={"name": name})
    with pytest.raises(ConfigError, match=f"needs the package {package}.*pip install {package}"):
        train(config, quiet=True)
    assert not (tmp_path / "run").exists()
