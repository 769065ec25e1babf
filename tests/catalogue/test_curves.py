"""Derivative curves against hand-worked ones, for every objective of the table, and as a figure."""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from preftune.catalogue import curves
from preftune.catalogue.curves import NUM_TOKENS, VALUE, CurveSet, DerivativeCurves, derivative_curves, push
from preftune.catalogue.curves_figure import write_figure
from preftune.catalogue.entries import entry
from preftune.errors import PreftuneError, StorageError
from preftune.objectives import DPO, OBJECTIVES, SFT, Coupled
from preftune.types import Coupling, Hybrid, Labels, Losses, Pairs, Rewards, StepView, TokenScores

ROOT = Path(__file__).parents[2]
WRONG_WAY = {"discopop": "with its default tau the loss rises with the margin around 0; its page says so"}
"""Objectives that at the reference push a preferred completion down, and why."""


# --- what was worked out by hand ---


@pytest.mark.parametrize("q", [0.1, 0.3, 0.8])
def test_bnf_fades_on_both_sides_of_the_reference(q):
    """1 - p above the reference and p (1 - q) / q below, over 8 tokens and 2 completions; largest at q."""
    found = derivative_curves(["bnf"], ref_prob=q, num_points=21)
    wanted = [(1 - p if p >= q else p * (1 - q) / q) / (2 * NUM_TOKENS) for p in found.probabilities]
    assert found.curves["bnf"].preferred == pytest.approx(wanted, abs=1e-12)
    assert found.curves["bnf"].dispreferred == pytest.approx([-value for value in wanted], abs=1e-12)
    assert max(found.curves["bnf"].preferred) == found.curves["bnf"].preferred[found.probabilities.index(q)]


def test_sft_pushes_by_what_is_missing():
    for p in (0.001, 0.25, 0.9):
        assert push(SFT(), 0, p, 0.3) == pytest.approx((1 - p) / 8)
        assert push(SFT(), 0, p, 0.3, "logp") == pytest.approx(1 / 8)
        assert push(SFT(), 1, p, 0.3) == 0.0


def test_dpo_at_one_point():
    """p = 0.6 against 0.3: a log-ratio of ln 2, so sigma(-0.1 ln 2) = 1 / (1 + 2^0.1) = 0.48267826, times 0.1
    times 0.4.
    """
    assert push(DPO(), 0, 0.6, 0.3) == pytest.approx(0.0193071302, abs=1e-9)
    assert push(DPO(), 1, 0.6, 0.3) == pytest.approx(-0.0206928698, abs=1e-9)
    assert push(DPO(), 0, 0.6, 0.3, "logp") == pytest.approx(0.0482678255, abs=1e-9)
    assert push(DPO(beta=2.0), 0, 0.6, 0.3) == pytest.approx(2 * 0.4 / 5)  # sigma(-2 ln 2) = 1/5


@dataclass(frozen=True, kw_only=True)
class Reads(Coupled):
    """The loss is a sum of one score over all tokens."""

    score: str
    signal: type = Labels
    couples: frozenset[str] = frozenset()
    seen: list = field(default_factory=list)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.score}) | ({"coupling"} if self.score == "coupling" else set())

    def weights(self, lengths, signal):
        return torch.ones(1)

    def __call__(self, scores: TokenScores, signal) -> Losses:
        self.seen.append((scores, signal))
        coupled = scores.coupling is not None
        values = scores.logp * scores.coupling.whole["scale"] if coupled else getattr(scores, self.score)
        return Losses(per_unit=values.sum().reshape(1), weight=torch.ones(1), metrics={})

    def initial_state(self):
        return {"scale": torch.tensor(3.0)}

    def couple(self, step: StepView, state):
        self.seen.append(step)
        return Coupling(whole={"scale": state["scale"]}), {"scale": torch.tensor(0.0)}


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_every_score_moves_as_it_should(p):
    """Derivatives of each score with respect to the target's logit, the other four tokens sharing 1 - p."""
    q, n = 0.3, 4

    def entropy(x):
        return -x * math.log(x) - (1 - x) * math.log((1 - x) / n)

    to_ref = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    wanted = {
        "logp": 1 - p,
        "target_logit": 1.0,
        "log_normalizer": p,
        "entropy": -p * (math.log(p) + entropy(p)),
        "kl_from_ref": p - q,
        "kl_to_ref": p * (math.log(p / q) - to_ref),
    }
    for score, slope in wanted.items():
        assert push(Reads(score=score), 0, p, q) == pytest.approx(-slope, abs=1e-12), score


def test_every_score_has_its_value():
    q, p = 0.3, 0.6
    reads = Reads(score="logp")
    everything = curves._every_score(
        *(torch.tensor([math.log(x * 4 / (1 - x))], dtype=torch.float64) for x in (p, q))
    )

    def entropy(x):
        return -x * math.log(x) - (1 - x) * math.log((1 - x) / 4)

    wanted = {
        "logp": math.log(p),
        "ref_logp": math.log(q),
        "behaviour_logp": math.log(q),
        "entropy": entropy(p),
        "ref_entropy": entropy(q),
        "target_logit": math.log(6.0),
        "log_normalizer": math.log(10.0),
        "log_collision": math.log(p * p + 4 * 0.1 * 0.1),
        "value": VALUE,
        "value_after": VALUE,
        "behaviour_value": VALUE,
        "contrast": 0.0,
        "ref_entropy_share": entropy(q) / math.log(5),
        "kl_to_ref": p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)),
        "kl_from_ref": q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)),
    }
    assert {name: value.item() for name, value in everything.items()} == pytest.approx(wanted, abs=1e-12)
    assert set(TokenScores.__dataclass_fields__) - set(everything) == {"lengths", "coupling", "router"}, (
        "a score without a model"
    )
    push(reads, 1, p, q)
    ((scores, signal),) = reads.seen
    moved = [i for i, value in enumerate(scores.logp.tolist()) if value != pytest.approx(math.log(q))]
    assert moved == [NUM_TOKENS + curves.PLACE] and scores.lengths.tolist() == [NUM_TOKENS] * 2
    assert scores.ref_logp is None and signal.label.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (Pairs, {"chosen": [0], "rejected": [1], "probability": None}),
        (Rewards, {"reward": [1.0, 0.0], "group": [0, 0]}),
        (Hybrid, {"chosen": [0], "rejected": [1], "source": [0, 0, 1, 2]}),
    ],
)
def test_every_signal(kind, wanted):
    reads = Reads(score="logp", signal=kind)
    push(reads, 0, 0.5, 0.3)
    ((scores, signal),) = reads.seen
    assert {
        name: value if value is None else value.tolist()
        for name in wanted
        for value in [getattr(signal, name)]
    } == wanted
    assert len(scores.lengths) == (4 if kind is Hybrid else 2)


def test_a_coupled_objective_sees_its_step_first():
    for couples in (set(), {"scores"}, {"mismatched"}):
        reads = Reads(score="coupling", couples=frozenset(couples))
        assert push(reads, 0, 0.5, 0.2) == pytest.approx(-3 * 0.5)
        step, (scores, signal) = reads.seen
        assert step.lengths.tolist() == scores.lengths.tolist() and len(set(step.prompt.tolist())) == 1
        assert step.signal is signal
        if couples == {"scores"}:
            assert torch.equal(step.scores.logp, scores.logp) and not step.scores.logp.requires_grad
        else:
            assert step.scores is None
        if couples == {"mismatched"}:
            assert step.mismatched.logp.exp().tolist() == pytest.approx([0.2] * NUM_TOKENS)
        else:
            assert step.mismatched is None


# --- the whole table ---


@pytest.fixture(scope="module")
def table() -> CurveSet:
    return derivative_curves(list(OBJECTIVES), num_points=11)


def test_every_objective_has_finite_curves(table):
    """Or learns nothing from the probability of a token."""
    assert set(table.not_drawn.values()) <= {"its loss does not depend on the probability of a token"}
    assert set(table.curves) | set(table.not_drawn) == set(OBJECTIVES)
    assert (
        len(table.probabilities) == 12
        and table.probabilities[0] == 0.001
        and table.probabilities[-1] == 0.999
    )
    for name, one in table.curves.items():
        assert all(map(math.isfinite, one.preferred + one.dispreferred)), name
        assert any(one.preferred + one.dispreferred), f"{name} pushes nothing"


def test_at_the_reference_a_preferred_token_is_pushed_up(table):
    at = table.probabilities.index(table.ref_prob)
    down = {name for name, one in table.curves.items() if one.preferred[at] < -1e-12}
    assert down == set(WRONG_WAY) & set(OBJECTIVES)


def test_logp_is_the_coefficient_of_the_log_probability(table):
    """The same divided by 1 - p, for objectives that read nothing else of the policy."""
    found = derivative_curves(["bnf", "dpo"], "logp", num_points=11)
    for name in ("bnf", "dpo"):
        pairs = zip(
            found.curves[name].dispreferred, table.curves[name].dispreferred, found.probabilities, strict=True
        )
        assert all(one == pytest.approx(other / (1 - p)) for one, other, p in pairs)


# --- what cannot be drawn ---


def reason(monkeypatch, objective, quantity="logit") -> str:
    monkeypatch.setitem(OBJECTIVES, "odd", lambda: objective)
    found = derivative_curves(["sft", "odd"], quantity, num_points=3)
    assert set(found.curves) == {"sft"} and set(found.not_drawn) == {"odd"}
    return found.not_drawn["odd"]


def test_an_objective_without_curves_says_why(monkeypatch):
    unknown = "it reads hidden_state, which a token's probability does not determine"
    assert reason(monkeypatch, Reads(score="hidden_state")) == unknown
    assert reason(monkeypatch, Reads(score="entropy"), "logp").startswith(
        "it reads entropy beside the log-probability"
    )
    assert (
        reason(monkeypatch, Reads(score="value")) == "its loss does not depend on the probability of a token"
    )

    @dataclass(frozen=True, kw_only=True)
    class Steep(Reads):
        def __call__(self, scores, signal):
            losses = super().__call__(scores, signal)
            return replace(losses, per_unit=(losses.per_unit + 1e3).exp().exp())

    assert reason(monkeypatch, Steep(score="logp")) == "its derivative is not finite at probability 0.001"

    @dataclass(frozen=True, kw_only=True)
    class Refuses(Reads):
        def __call__(self, scores, signal):
            raise PreftuneError("Two groups are wanted")

    assert reason(monkeypatch, Refuses(score="logp")) == "Two groups are wanted"


# --- the figure ---


def drawn(path: Path, count: int = 3, **changes) -> str:
    found = derivative_curves(list(OBJECTIVES)[:1], num_points=5)
    (one,) = found.curves.values()
    write_figure(replace(found, curves={f"name-{count - i:02}": one for i in range(count)}, **changes), path)
    return path.read_text(encoding="utf-8") if path.suffix == ".svg" else ""


def test_every_objective_is_a_panel_sorted_by_name(tmp_path):
    for count in (1, 3, 8, 9, 20):
        svg = drawn(tmp_path / "curves.svg", count)
        assert re.findall(r">(name-\d\d)<", svg) == [f"name-{i:02}" for i in range(1, count + 1)]
        assert "reference, 0.3" in svg and "push on the token's logit" in svg
        # Probabilities are told under the last panel of each column.
        assert len(re.findall(r">0\.5<", svg)) == min(count, 8)
    assert "log-probability" in drawn(tmp_path / "curves.svg", quantity="logp")


def test_a_flat_curve_and_a_steep_one_are_drawn(tmp_path):
    flat = DerivativeCurves(preferred=(0.0,) * 6, dispreferred=(0.0,) * 6)
    steep = DerivativeCurves(preferred=(1e30, 0.0, 0.0, 0.0, 0.0, 0.0), dispreferred=(0.0,) * 6)
    found = derivative_curves(["sft"], num_points=5)
    write_figure(replace(found, curves={"flat": flat, "steep": steep}), tmp_path / "odd.svg")
    assert "nan" not in (tmp_path / "odd.svg").read_text(encoding="utf-8")


def test_the_same_curves_give_the_same_bytes_in_every_format(tmp_path):
    for suffix in ("svg", "png", "pdf"):
        for name in ("one", "two"):
            drawn(tmp_path / f"{name}.{suffix}")
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 6, "something temporary is left"


def test_a_figure_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Cannot write the figure"):
        drawn(tmp_path / "file" / "curves.svg")
    drawn(tmp_path / "new" / "folder" / "curves.svg")


def test_the_figure_in_the_docs_shows_the_whole_table(table):
    """runs/derivative_curves.sh draws it again."""
    path = ROOT / "docs" / "figures" / "derivative-curves.svg"
    titles = set(re.findall(r">([\w-]+)</text>", path.read_text(encoding="utf-8")))
    assert set(table.curves) - titles == set(), "draw docs/figures again: runs/derivative_curves.sh"
    assert path.stat().st_size < 400_000


def test_what_the_page_says_of_the_figure(table):
    """docs/derivative_curves.md, in its order; the first of the probabilities is 0.001."""
    at, last = table.probabilities.index(table.ref_prob), len(table.probabilities) - 1
    both = {name: (one.preferred, one.dispreferred) for name, one in table.curves.items()}
    alike = {name for name in both if entry(name).uses == entry("dpo").uses or name == "bnf"}
    fading = {
        name
        for name in alike
        if all(abs(side[i]) < 0.02 * max(map(abs, side)) for side in both[name] for i in (0, last))
    }
    assert fading == {"bnf"}
    assert max(both["bnf"][0]) == both["bnf"][0][at] == pytest.approx(0.7 / 16)
    assert all(
        b / a == pytest.approx(0.5) for a, b in list(zip(both["sft"][0], both["bnf"][0], strict=True))[at:]
    )
    assert (both["dpo"][1][0], both["dpo"][1][at]) == pytest.approx((-0.0361, -0.0350), abs=5e-5)
    assert both["hinge"][0] == pytest.approx([0.05 * (1 - p) for p in table.probabilities])
    for name, share in (("simper", 0.70), ("bnf", 0.0033)):
        assert both[name][1][0] / both[name][1][at] == pytest.approx(share, rel=0.02)
    assert max(map(abs, both["orpo"][1])) < 0.07 * max(both["orpo"][0])
    assert all(0 < low < high for high, low in zip(*both["rwr"], strict=True))
    assert max(map(abs, both["apo-down"][0])) < 0.01 * max(map(abs, both["apo-down"][1]))
    assert max(map(abs, (*both["dpop"][1], *both["dpop"][0][at + 1 :]))) < 0.02 * max(both["dpop"][0])
