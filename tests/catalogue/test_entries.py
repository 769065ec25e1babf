"""The table of objectives as facts: each equals what the class, the docstring or the page states."""

import re
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import pytest

import preftune
from preftune.catalogue import entries as catalogue
from preftune.catalogue.entries import Uses, entries, entry
from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES, Objective
from preftune.objectives.checks import check_positive
from preftune.types import Hybrid, Labels, Pairs, Rewards, TokenScores

ROOT = Path(__file__).parents[2]
names = pytest.mark.parametrize("name", OBJECTIVES)


@names
def test_facts_are_those_of_the_class(name):
    found, objective = entry(name), OBJECTIVES[name]()
    assert found.name == name
    assert (
        found.uses.signal
        == {Pairs: "pairs", Labels: "labels", Rewards: "rewards", Hybrid: "hybrid"}[objective.signal]
    )
    assert set(found.uses.needs) == objective.needs
    assert found.uses.coupled == ("coupling" in objective.needs)
    assert [(h.name, h.default) for h in found.hyper_parameters] == [
        (f.name, f.default) for f in fields(objective)
    ]
    for field in fields(objective):
        assert field.default is not MISSING


@names
def test_every_hyper_parameter_has_a_meaning_in_the_docstring_and_a_note_on_the_page(name):
    assert [h.name for h in entry(name).hyper_parameters if not (h.meaning and h.note)] == []


@names
def test_the_paper_is_that_of_the_page(name):
    found = entry(name)
    assert found.page == (ROOT / "docs" / "objectives" / f"{name}.md").read_text(encoding="utf-8")
    assert found.page.startswith(f"# {name}: {found.title}\n") and found.title
    assert found.citation
    assert not re.search(r"[\[\]`\\]|  |,,| ,", found.paper + found.citation)
    assert len(found.citation) <= len(found.paper)
    if found.url is not None:
        assert found.url.startswith("https://") and f"]({found.url})" in found.page
    assert found.verified == ("formula not verified against the paper" not in " ".join(found.page.split()))


def test_one_entry_by_hand():
    found = entry("hinge")
    assert found.title == "RSO's hinge on log-ratios"
    assert found.paper == (
        "Liu et al., Statistical Rejection Sampling Improves Preference Optimization (RSO), ICLR 2024, arXiv 2309.06657"
    )
    assert found.citation == "Liu et al., ICLR 2024, arXiv 2309.06657"
    assert found.url == "https://arxiv.org/abs/2309.06657"
    assert found.formula == "checked against public implementations, not against the paper"
    assert found.verified
    assert found.uses == Uses(
        signal="pairs", needs=("ref_logp",), reference=True, on_policy=False, coupled=False
    )
    assert found.as_dict()["page"] == "docs/objectives/hinge.md"
    assert not entry("gdpo").verified
    assert entry("ln-dpo").url is None and entry("bnf").formula is None


def test_several_papers_stand_in_one_line():
    assert (
        entry("rpo").citation
        == "Liu et al., NeurIPS 2024, arXiv 2405.16436; Pang et al., NeurIPS 2024, arXiv 2404.19733"
    )
    assert entry("rpo").url == "https://arxiv.org/abs/2405.16436"


def test_a_signal_that_depends_on_a_setting_shows():
    (variation,) = entry("bnf").variations
    assert (variation.setting, variation.value, variation.uses.signal) == ("reduction", "pair_min", "pairs")
    assert (
        entry("bnf").learns_from("labels")
        and entry("bnf").learns_from("pairs")
        and not entry("bnf").learns_from("rewards")
    )
    assert entry("dpo").variations == ()


@dataclass(frozen=True, kw_only=True)
class Changing(Objective):
    """What a class could do.

    Text that looks like an argument: nothing: at all.

    Args:
        pull: strength of the pull; at 0 there is
            no reference: none.
        ratio: at 0, the default, the samples' own probabilities do not matter.
        steps: a whole number.
        width: > 0.
        both: a switch.
        kind: which one.
        scale: by default the step's own.
    """

    pull: float = 0.1
    ratio: float = 0.0
    steps: int = 2
    width: float = 1.0
    both: bool = False
    kind: Literal["a", "b", "c"] = "a"
    scale: float | None = None

    def __post_init__(self) -> None:
        check_positive("changing", width=self.width)

    @property
    def needs(self) -> frozenset[str]:
        wanted = {
            "kl_to_ref": self.pull > 0,
            "behaviour_logp": self.ratio > 0,
            "coupling": self.both,
            "value": self.scale is not None,
        }
        return frozenset(name for name, needed in wanted.items() if needed)

    @property
    def signal(self) -> type:
        return Hybrid if self.kind == "c" else Rewards

    def weights(self, lengths, signal):
        raise AssertionError("facts are read without a call")

    __call__ = weights


def test_every_kind_of_setting_is_tried(monkeypatch):
    paper = r"Nobody, *A Q\*-Test of [x](https://e.org/a) `y`* (T), ACL 2020."
    page = f"# changing: a test\n\n{paper}\n\n| | |\n|---|---|\n| learns from | rewards |\n\n## Equation\n"
    monkeypatch.setitem(OBJECTIVES, "changing", Changing)  # type: ignore[arg-type]
    monkeypatch.setattr(catalogue, "page_of", lambda name: page)
    found = entry("changing")
    usual = Uses(signal="rewards", needs=("kl_to_ref",), reference=True, on_policy=False, coupled=False)
    assert found.uses == usual
    assert {(v.setting, v.value): v.uses for v in found.variations} == {
        ("pull", "0"): replace(usual, needs=(), reference=False),
        ("ratio", "above 0"): replace(usual, needs=("behaviour_logp", "kl_to_ref"), on_policy=True),
        ("both", "true"): replace(usual, needs=("coupling", "kl_to_ref"), coupled=True),
        ("scale", "given"): replace(usual, needs=("kl_to_ref", "value")),
        ("kind", "c"): replace(usual, signal="hybrid", on_policy=True),
    }
    meanings = {h.name: h.meaning for h in found.hyper_parameters}
    assert meanings["pull"] == "strength of the pull; at 0 there is no reference: none."
    assert set(meanings) == {"pull", "ratio", "steps", "width", "both", "kind", "scale"}
    assert found.paper == "Nobody, A Q*-Test of x y (T), ACL 2020" and found.citation == "Nobody, ACL 2020"
    assert (found.url, found.formula) == ("https://e.org/a", None)


def test_every_score_is_of_the_reference_of_the_sampling_policy_or_of_neither(monkeypatch):
    found = {}
    for need in TokenScores.__dataclass_fields__:
        monkeypatch.setattr(Changing, "needs", frozenset({need}))
        uses = catalogue._uses(Changing())
        found[need] = (uses.reference, uses.on_policy)
    assert {need for need, (reference, _) in found.items() if reference} == {
        need for need in found if "ref" in need
    }
    assert {need for need, (_, on_policy) in found.items() if on_policy} == {
        need for need in found if "behaviour" in need
    }
    assert {"ref_logp", "kl_from_ref", "kl_to_ref", "behaviour_logp"} <= set(found)


def test_a_name_that_is_near_is_told():
    for wrong, near in (("bfn", "bnf"), ("DPO", "dpo"), ("sim-po", "simpo")):
        with pytest.raises(
            ConfigError, match=rf"no such objective; got {wrong}\. Did you mean .*\b{near}\b.*\?"
        ):
            entry(wrong)
    with pytest.raises(ConfigError, match=r"`preftune objectives` lists them"):
        entry("zzzzzz")


def test_a_page_that_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "pageless", OBJECTIVES["dpo"])
    with pytest.raises(ConfigError, match="The page of pageless is not installed"):
        entry("pageless")


def test_all_entries_are_there_in_order():
    assert list(entries()) == list(OBJECTIVES)


def test_the_pages_go_into_a_wheel():
    """`pages` is a link that a build follows; the packages' data name its files."""
    pages = Path(preftune.__file__).parent / "pages"
    assert pages.resolve() == ROOT / "docs"
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")} - {
        Path("dev")
    }
    for folder in folders:
        assert f'"{(Path("pages") / folder / "*.md").as_posix()}"' in listed, folder
