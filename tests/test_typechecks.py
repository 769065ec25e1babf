"""What the suite checks of every call: types by beartype, and by jaxtyping that the sizes of arrays agree."""

import ast
from pathlib import Path

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from preftune.model.scoring import Head, head_logits
from preftune.train.checkpoint import Counters, checkpoint_folder
from preftune.train.rounding import round_by_chance
from preftune.types import Labels
from tests.typechecks import checked

SOURCES = sorted((Path(__file__).parents[1] / "src" / "preftune").rglob("*.py"))


def test_types_of_arguments_and_of_fields():
    with pytest.raises(BeartypeCallHintViolation):
        checkpoint_folder("a string", 3)  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintViolation):
        Counters(step="three")  # type: ignore[arg-type]


def test_types_of_results():
    def two() -> str:
        return 2  # type: ignore[return-value]

    from beartype import beartype

    with pytest.raises(BeartypeCallHintViolation):
        checked(typechecker=beartype)(two)()


def test_checks_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert Counters(step="three").step == "three"  # type: ignore[arg-type]
    Labels(label=torch.ones(2, 2))


def test_arrays_whose_sizes_do_not_agree():
    with pytest.raises(TypeCheckError):
        round_by_chance(torch.ones(3), torch.ones(4, dtype=torch.int32))
    with pytest.raises(TypeCheckError):
        head_logits(torch.ones(3), Head(weight=torch.ones(5, 4)))
    with pytest.raises(TypeCheckError):
        Labels(label=torch.ones(2, 2))


def test_no_annotation_hides_its_arrays_in_a_string():
    """Such a one would be checked by type alone."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg | ast.FunctionDef):
                annotation = node.annotation if isinstance(node, ast.arg) else node.returns
                if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
                    assert not any(name in annotation.value for name in ("Float[", "Int[", "Bool[")), (
                        path,
                        node.lineno,
                    )
