"""The notebooks of the site run from the first cell to the last, on a tiny model."""

import json
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("agg")
FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
LEAVES = {
    "first_run": "runs/first/report.html",
    "compare_methods": "runs/race/comparison.html",
    "own_reward": "runs/reward/report.html",
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_notebook_runs(name, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict = {"__name__": "__main__"}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert 'MODEL = "smollm2-135m-instruct"' in cells[0]
    for number, cell in enumerate(cells):
        code = cell.replace('MODEL = "smollm2-135m-instruct"', f"MODEL = {str(tiny_folder)!r}")
        exec(compile(code, f"{name}, cell {number}", "exec"), names)
    assert (tmp_path / LEAVES[name]).is_file()


def test_every_notebook_is_run_and_linked():
    assert set(NOTEBOOKS) == set(LEAVES)
    page = (FOLDER.parent / "quickstart.md").read_text(encoding="utf-8")
    assert all(f"(notebooks/{name}.ipynb)" in page for name in NOTEBOOKS)
