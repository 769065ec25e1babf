"""What the site shows differently from the pages."""

import pytest

pytest.importorskip("mkdocs")
from mkdocs_hooks import with_symbols


def test_equations_have_greek_letters_and_names_stay():
    text = "    L = -log sigma(beta D^2) * w,  w <= 1"
    assert with_symbols(text) == "    L = -log σ(β D²) · w,  w ≤ 1"
    kept = [
        "# beta-dpo",
        "| beta | 0.1 |",
        "`beta` and `x <= 1`",
        "[page](beta.md) beta-dpo",
        "    preftune sigma",
    ]
    assert [with_symbols(line) for line in kept] == kept
