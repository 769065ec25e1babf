"""Objectives as functions for other people's loops: any layout of the same numbers gives the same loss."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import preftune as pt
from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES
from preftune.objectives.base import Coupled
from preftune.objectives.contracts.steps import SCORES, assemble, loss_and_gradient, random_step
from preftune.objectives.losses import compute_loss
from preftune.types import Hybrid, Labels, Pairs, Rewards
from tests.contracts.variants import variants_of
from tests.fresh import run_fresh

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "losses.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def arguments(pieces, objective, layout):
    """(leaf, what compute_loss takes of a step), with the scores of completions in one of the three layouts."""
    completions = [tokens for piece in pieces for tokens in piece.tokens]
    lengths = torch.tensor([len(one["logp"]) for one in completions])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]

    def laid_out(ragged):
        if layout == "ragged":
            return ragged
        return (
            pad_sequence(ragged, batch_first=True, padding_value=-7.0)
            if layout == "padded"
            else torch.cat(ragged)
        )

    leaf = torch.cat([one["logp"] for one in completions]).requires_grad_()
    names = [name for name in SCORES if name in objective.needs and name != "logp"]
    given = {name: laid_out([one[name] for one in completions]) for name in names}
    given |= {"padded": {"mask": mask}, "flat": {"lengths": lengths}, "ragged": {}}[layout]
    _, signal = assemble(pieces, objective)
    if isinstance(signal, Pairs | Hybrid):
        given |= {"chosen": signal.chosen, "rejected": signal.rejected}
    if isinstance(signal, Pairs):
        given["probability"] = signal.probability
    if isinstance(signal, Hybrid):
        given |= {"source": signal.source, "group": signal.group}
    if isinstance(signal, Labels):
        given["labels"] = signal.label
    if isinstance(signal, Rewards):
        given |= {"rewards": signal.reward, "group": signal.group}
    if isinstance(objective, Coupled):
        given["prompt"] = torch.tensor([piece.prompt for piece in pieces for _ in piece.tokens])
        if "mismatched" in objective.couples:
            others = [piece.mismatched for piece in pieces]
            given["mismatched"] = {name: [one[name] for one in others] for name in ("logp", *names)}
    return leaf, laid_out(list(leaf.split(lengths.tolist()))), given


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("layout", ["padded", "ragged", "flat"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_the_loss_of_training_in_every_layout(name, layout):
    objective, pieces = variants_of(name)[0], random_step(seed=3)
    wanted, gradient = loss_and_gradient(pieces, objective)
    leaf, logp, given = arguments(pieces, objective, layout)
    result = compute_loss(objective, logp, **given)
    assert torch.allclose(result.loss, wanted, rtol=0, atol=1e-12)
    if result.loss.requires_grad and objective.needs.isdisjoint(
        {"entropy", "target_logit", "value", "value_after"}
    ):
        result.loss.backward()
        own = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        assert torch.allclose(own, gradient[0], rtol=0, atol=1e-12)


def test_a_number_computed_manually():
    """DPO of one pair: h(chosen) - h(rejected) = (-1 + 2) - (-3 + 1) = 3, and -log sigma(0.5 * 3) = 0.2014."""
    result = pt.losses.dpo(
        [torch.tensor([-0.5, -0.5]), torch.tensor([-3.0])],
        ref_logp=[torch.tensor([-1.0, -1.0]), torch.tensor([-1.0])],
        beta=0.5,
    )
    assert float(result.loss) == pytest.approx(0.201413, abs=1e-6)
    assert float(result.metrics["rewards/margins"]) == pytest.approx(1.5)


def test_halves_with_a_common_denominator_add_up():
    logp, ref = -torch.rand(6, 3), -torch.rand(6, 3)
    mask = torch.ones(6, 3)
    whole = pt.losses.ipo(logp, ref_logp=ref, mask=mask, chosen=[0, 2, 4], rejected=[1, 3, 5]).loss
    parts = [
        pt.losses.ipo(
            logp[rows], ref_logp=ref[rows], mask=mask[rows], chosen=one, rejected=other, denominator=3
        ).loss
        for rows, one, other in ((slice(0, 2), [0], [1]), (slice(2, 6), [0, 2], [1, 3]))
    ]
    assert torch.allclose(whole, sum(parts))


def test_state_goes_from_call_to_call():
    """Two steps with the state of the first differ from two first steps."""
    logp = -torch.rand(4, 3)
    given = dict(ref_logp=logp - 0.3, mask=torch.ones(4, 3), labels=[1, -1, 1, -1])
    first = pt.losses.bco(logp, **given)
    assert first.state
    again, following = pt.losses.bco(logp - 1, **given), pt.losses.bco(logp - 1, state=first.state, **given)
    assert float(again.loss) != pytest.approx(float(following.loss), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x: pt.losses.dpo(x), "dpo needs ref_logp"),
        (lambda x: pt.losses.dpo(x, ref_logp=x), "padded, and the mask does not fit"),
        (lambda x: pt.losses.dpo(x, ref_logp=x, mask=x < 1, rewards=[1]), "dpo does not use rewards"),
        (lambda x: pt.losses.dpo(x, ref_logp=x, mask=x > 1), "has no tokens"),
        (lambda x: pt.losses.dpo(x[:3], ref_logp=x[:3], mask=x[:3] < 1), "got 3 completions"),
        (lambda x: pt.losses.dpo(x, ref_logp=x, mask=x < 1, beta=-1.0), "dpo: beta is out of range"),
        (lambda x: pt.losses.rloo(x, mask=x < 1, beta=0.0), "rloo needs rewards"),
        (lambda x: pt.losses.rloo(x, mask=x < 1, beta=0.0, rewards=[1.0]), "rewards has the wrong shape"),
        (lambda x: pt.losses.kto(x, ref_logp=x, mask=x < 1, labels=[1, -1, 1, 1]), "kto needs mismatched"),
        (lambda x: pt.losses.orpo(x, mask=x < 1, state={}), "orpo has no state"),
    ],
)
def test_mistakes_are_one_sentence(call, told):
    with pytest.raises(ConfigError, match=told):
        call(-torch.rand(4, 2))


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(AttributeError, match="dpo"):
        _ = pt.losses.dpoo
    assert {"dpo", "cpo_simpo"} <= set(dir(pt.losses))


def test_objectives_need_torch_alone():
    """The other dependencies cannot be imported."""
    run_fresh(
        textwrap.dedent("""
        import sys
        names = '''jaxtyping numpy transformers tokenizers fastokens peft datasets jsonargparse yaml rich matplotlib
        jinja2_ regex httpx2 tenacity safetensors gguf pandas'''.split()
        for name in names:
            sys.modules[name] = None
        import warnings
        warnings.simplefilter('ignore')  # torch without numpy
        import torch, preftune as pt
        loss = pt.losses.dpo(-torch.rand(2, 3), ref_logp=-torch.rand(2, 3), mask=torch.ones(2, 3)).loss
        assert torch.isfinite(loss)
        """)
    )


def run_example(name, **constants):
    lines = [f"{key} = {value!r}" for key, value in constants.items()]
    code = "\n".join([*lines, EXAMPLES[name]])
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:preftune", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_plain_loop_learns():
    loss, accuracy = map(float, run_example("loop").split())
    assert loss < 0.3 and accuracy == 1.0


def test_the_bandit_finds_the_best_answer():
    law = eval(run_example("bandit"))
    assert law.index(max(law)) == 1 and law[1] > 0.8
    assert len(EXAMPLES["bandit"].strip().splitlines()) <= 28  # 20 statements


def test_the_trl_trainer_trains(tiny_folder, tmp_path):
    pytest.importorskip("trl")
    told = run_example("trl", MODEL=str(tiny_folder), OUTPUT=str(tmp_path / "trl"))
    assert float(told.split()[-1]) > 0
