"""`preftune objectives` and `preftune curves`: what they print, write and refuse."""

import json
import re
import time

import pytest

from preftune.catalogue.entries import entries
from preftune.cli.main import main
from preftune.objectives import OBJECTIVES
from tests.fresh import run_fresh

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def run(capsys, *words: str) -> str:
    assert main(list(words)) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


def refused(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    return told.err


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Output as a terminal of a given width shows it, without colors."""

    def shown(width: int, *words: str) -> str:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(width))
        return ANSI.sub("", run(capsys, *words))

    return shown


def test_piped_the_table_has_a_line_for_each_objective(capsys):
    heading, rule, *lines = run(capsys, "objectives").splitlines()
    assert heading.split() == ["name", "signal", "ref", "on-policy", "hyperparameters", "paper"] and set(
        rule
    ) == {"─"}
    rows, notes = lines[: len(OBJECTIVES)], lines[len(OBJECTIVES) :]
    for row, (name, one) in zip(rows, entries().items(), strict=True):
        assert row.startswith(f"{name} ") and row.rstrip().endswith(one.citation)
        assert row.startswith(f"{name} *") != one.verified
        assert all(f"{parameter.name} " in row for parameter in one.hyper_parameters)
    assert notes[0].startswith(f"{len(OBJECTIVES)} objectives. `preftune objectives NAME`")
    assert notes[-1] == "* formula not verified against the paper"
    (bnf,) = (row for row in rows if row.startswith("bnf "))
    assert re.split(r" {2,}", bnf)[1:4] == ["labels; pairs (reduction pair_min)", "yes", "no"]
    (dpo,) = (row for row in rows if row.startswith("dpo "))
    assert re.split(r" {2,}", dpo.strip()) == [
        "dpo",
        "pairs",
        "yes",
        "no",
        "beta 0.1, label_smoothing 0",
        "Rafailov et al., NeurIPS 2023, arXiv 2305.18290",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_table_fits_a_terminal(terminal, width):
    """Nothing is cut off: a cell's lines put together are what belongs there."""
    heading, *lines = terminal(width, "objectives").splitlines()
    if width < 100:
        assert heading.strip() == "hyper-"
        heading = lines.pop(0)
    table = lines[1 : next(i for i, line in enumerate(lines) if " objectives. " in line)]
    assert max(map(len, table)) <= width
    starts = [heading.index(word) for word in re.split(r" {2,}", heading.strip())]
    assert len(starts) == (6 if width >= 100 else 5)
    rows: list[list[str]] = []
    for line in table:
        cells = [
            line[start:end].replace(" ", "") for start, end in zip(starts, [*starts[1:], None], strict=True)
        ]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [before + more for before, more in zip(rows[-1], cells, strict=True)]
    for cells, (name, one) in zip(rows, entries().items(), strict=True):
        settings = ",".join(f"{h.name}{shown(h.default)}" for h in one.hyper_parameters)
        wanted = [
            name + "*" * (not one.verified),
            None,
            "yes" if one.uses.reference else "no",
            None,
            settings,
            one.citation,
        ]
        for cell, want in zip(cells, wanted, strict=False):
            assert want is None or cell.startswith(want.replace(" ", "")), (name, cell)


def shown(default: object) -> str:
    return (
        "none"
        if default is None
        else f"{default:g}"
        if isinstance(default, float)
        else str(default).replace(" ", "")
    )


def test_filters(capsys):
    def names(*words: str) -> set[str]:
        return {one["name"] for one in json.loads(run(capsys, "objectives", *words, "--json"))}

    table = {name: one for name, one in entries().items()}
    assert names("--signal", "pairs") == {name for name, one in table.items() if one.learns_from("pairs")}
    assert "bnf" in names("--signal", "pairs") & names("--signal", "labels")
    assert names("--reference", "false") == {name for name, one in table.items() if not one.uses.reference}
    assert names("--on_policy", "true") == {name for name, one in table.items() if one.uses.on_policy}
    assert names("--signal", "labels", "--reference", "false") >= {"sft"}
    assert names() == set(table)


def test_filters_of_the_printed_table(capsys):
    shown = run(capsys, "objectives", "--signal", "labels", "--reference", "no")
    assert "\nsft " in shown and "\ndpo " not in shown
    assert ("not verified" in shown) == (" * " in shown)


def test_the_table_as_data(capsys):
    found = json.loads(run(capsys, "objectives", "--json"))
    assert [one["name"] for one in found] == list(OBJECTIVES)
    bnf = next(one for one in found if one["name"] == "bnf")
    assert bnf | {"hyper_parameters": 0} == {
        "name": "bnf",
        "title": "bidirectional negative feedback",
        "signal": "labels",
        "needs": ["ref_logp"],
        "reference": True,
        "on_policy": False,
        "coupled": False,
        "variations": [
            {
                "setting": "reduction",
                "value": "pair_min",
                "signal": "pairs",
                "needs": ["ref_logp"],
                "reference": True,
                "on_policy": False,
                "coupled": False,
            }
        ],
        "paper": "Mao et al., As Simple as Fine-tuning: LLM Alignment via Bidirectional Negative Feedback Loss, ICLR 2025, "
        "arXiv 2410.04834",
        "url": "https://arxiv.org/abs/2410.04834",
        "learning_rates": {
            "default": 2e-6,
            "low": 1e-7,
            "high": 2e-5,
            "default_with_lora": 2e-5,
            "source": bnf["learning_rates"]["source"],
        },
        "formula": None,
        "verified": True,
        "page": "docs/objectives/bnf.md",
        "hyper_parameters": 0,
    }
    (parameter,) = bnf["hyper_parameters"]
    assert (parameter["name"], parameter["default"]) == ("reduction", "sequence_mean")
    assert parameter["meaning"].startswith("what n is.") and parameter["note"].startswith(
        "n: sequence_mean is the"
    )


def test_a_page(capsys, terminal):
    page = entries()["dpo"].page
    assert run(capsys, "objectives", "dpo") == page
    wanted = json.loads(json.dumps(entries()["dpo"].as_dict() | {"text": page}))
    assert json.loads(run(capsys, "objectives", "dpo", "--json")) == wanted
    drawn = terminal(72, "objectives", "dpo")
    assert (
        "dpo: direct preference optimization" in drawn
        and "#" not in drawn
        and "https://arxiv.org/abs/2305.18290" in drawn
    )
    assert max(map(len, drawn.splitlines())) <= 72
    assert "formula not verified against the paper" in run(capsys, "objectives", "gdpo")


def test_objectives_refuses(capsys):
    assert "Unknown objective 'bfn'. Did you mean bnf?" in refused(capsys, "objectives", "bfn")
    assert "signal has no effect on one page" in refused(capsys, "objectives", "bnf", "--signal", "pairs")
    assert "reference has no effect on one page" in refused(
        capsys, "objectives", "bnf", "--reference", "false"
    )
    assert "Invalid value for signal; got stars; expected pairs, labels, rewards, hybrid" in refused(
        capsys, "objectives", "--signal", "stars"
    )
    assert "Unexpected argument" in refused(capsys, "objectives", "bnf", "dpo")


def test_looking_up_loads_no_model_library():
    code = (
        "import sys, preftune.cli.main\n"
        "assert preftune.cli.main.main(['objectives']) == 0\n"
        "assert not {'transformers', 'peft', 'datasets'} & set(sys.modules)"
    )
    start = time.monotonic()
    run_fresh(code)
    assert time.monotonic() - start < 20  # 2 to 3 s alone on a core


def test_curves_of_some(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "curves", "sft") == "1 objective in derivative-curves.png\n"
    assert (tmp_path / "derivative-curves.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(
        run(
            capsys,
            "curves",
            "sft",
            "--output",
            "new/c.svg",
            "--ref_prob",
            "0.5",
            "--quantity",
            "logp",
            "--json",
        )
    )
    assert found["figure"] == "new/c.svg" and (tmp_path / "new" / "c.svg").is_file()
    assert (found["quantity"], found["ref_prob"], found["not_drawn"]) == ("logp", 0.5, {})
    assert set(found["curves"]) == {"sft"}
    assert found["curves"]["sft"]["preferred"] == pytest.approx([1 / 8] * len(found["probabilities"]))
    assert found["curves"]["sft"]["dispreferred"] == [0.0] * len(found["probabilities"])
    assert 0.5 in found["probabilities"] and found["probabilities"] == sorted(found["probabilities"])


def test_curves_of_all_unless_some_are_named(monkeypatch, tmp_path, capsys):
    from preftune.commands import curves as curves_command

    asked = []

    def record(names, quantity, ref_prob):
        asked.append((list(names), quantity, ref_prob))
        return curves_command_curves(["sft"], quantity, ref_prob)

    curves_command_curves = curves_command.derivative_curves
    monkeypatch.setattr(curves_command, "derivative_curves", record)
    output = str(tmp_path / "c.png")
    run(capsys, "curves", "--output", output)
    again = ("--output", output, "--overwrite")
    run(capsys, "curves", "dpo", "bnf", *again, "--ref_prob", "0.1")
    run(capsys, "curves", "--objectives", "[dpo]", *again, "--quantity", "logp")
    assert asked == [(list(OBJECTIVES), "logit", 0.3), (["dpo", "bnf"], "logit", 0.1), (["dpo"], "logp", 0.3)]


def test_what_cannot_be_drawn_is_told(monkeypatch, tmp_path, capsys):
    from preftune.objectives.sft import SFT

    class Odd(SFT):
        needs = frozenset({"entropy"})

    monkeypatch.setitem(OBJECTIVES, "odd", Odd)
    output = str(tmp_path / "c.png")
    shown = run(capsys, "curves", "--objectives", "[odd, sft]", "--quantity", "logp", "--output", output)
    assert shown.startswith("odd is not drawn: it reads entropy") and shown.endswith(
        f"1 objective in {output}\n"
    )
    (tmp_path / "c.png").unlink()
    assert "None of these objectives has a curve; got odd: it reads entropy" in refused(
        capsys, "curves", "--objectives", "[odd]", "--quantity", "logp", "--output", output
    )
    assert not (tmp_path / "c.png").exists()


def test_curves_refuses(tmp_path, capsys):
    for words, told in (
        (["bfn"], "Did you mean bnf?"),
        (["bnf", "dpo", "bnf"], "An objective is given twice; got bnf"),
        (["--ref_prob", "0"], "ref_prob is out of range"),
        (["--ref_prob", "1.0"], "ref_prob is out of range"),
        (["--output", "c.gif"], "The kind of the figure is unknown"),
        (["--output", str(tmp_path / "none")], "The kind of the figure is unknown"),
        (["--quantity", "p"], "quantity"),
    ):
        assert told in refused(capsys, "curves", *words), words
    folder = tmp_path / "c.png"
    folder.mkdir()
    assert "output is the figure's file" in refused(capsys, "curves", "bnf", "--output", str(folder))
