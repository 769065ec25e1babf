"""Dependencies point one way, every module is there, and nothing grows too large."""

import ast
import importlib
from itertools import pairwise
from pathlib import Path

import pytest

import preftune

ROOT = Path(preftune.__file__).parent
LAYERS = (
    {"errors", "types", "stats", "calibration", "storage", "terminal"},
    {"objectives", "report", "diagnose"},
    {"data"},
    {"policy"},
    {"onpolicy"},
    {"train"},
    {"evaluation", "demo", "catalogue", "lab"},
    {"config", "verbs"},
    {
        "commands",
        "handbook",
        "rewarding",
        "selecting",
        "reward_training",
        "merging",
        "laboratory",
        "diagnosing",
    },
    {"iterating", "comparing"},
    {"advising"},
    {"cli"},
    {"__main__"},
)
"""From the bottom up. A module may import its own layer and those below."""

EXCEPTIONS = {
    ("evaluation", "verbs"): "EvalConfig, which is the verb's own settings",
    ("demo", "verbs"): "DemoConfig, likewise",
    ("commands", "cli"): "print_json, the one way to print JSON",
    ("handbook", "cli"): "likewise",
    ("rewarding", "cli"): "likewise",
    ("selecting", "cli"): "likewise",
    ("iterating", "cli"): "likewise",
    ("comparing", "cli"): "likewise",
    ("reward_training", "cli"): "likewise",
    ("merging", "cli"): "likewise",
    ("laboratory", "cli"): "likewise",
    ("diagnosing", "cli"): "likewise",
    ("advising", "cli"): "likewise",
}
MODULES = {
    ".".join(("preftune", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def test_imports_go_downward_only():
    wrong = []
    for module, path in MODULES.items():
        for other in sorted(imported(path) & set(MODULES)):
            mine, theirs = room(module), room(other)
            if mine and theirs and LAYER_OF[theirs] > LAYER_OF[mine] and (mine, theirs) not in EXCEPTIONS:
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_every_room_has_a_layer():
    assert {room(module) for module in MODULES} - {""} == set(LAYER_OF)


@pytest.mark.parametrize("names", [("errors",), ("terminal",), ("report",), ("cli",), ("data.options",)])
def test_light_modules_import_nothing_heavy(names):
    heavy = {"torch", "transformers", "peft", "datasets"}
    for module, path in MODULES.items():
        if any(module == f"preftune.{name}" or module.startswith(f"preftune.{name}.") for name in names):
            reached, queue = set(), [path]
            while queue:
                for other in imported(queue.pop()) - reached:
                    reached.add(other)
                    if other in MODULES:
                        queue.append(MODULES[other])
            assert not {other.split(".")[0] for other in reached} & heavy, module


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    importlib.import_module(module)


def test_objectives_are_pure():
    """They see numbers, never a model, a file or a layout."""
    allowed = {"preftune.objectives", "preftune.types", "preftune.errors"}
    for module, path in MODULES.items():
        if room(module) == "objectives":
            ours = {other for other in imported(path) & set(MODULES)}
            assert all(
                any(other == name or other.startswith(f"{name}.") for name in allowed) for other in ours
            ), module


def test_advice_is_pure():
    """It sees numbers and the table of objectives: no model, no file, no tensor."""
    for module in ("preftune.advice.evidence", "preftune.advice.advice", "preftune.advice.rules"):
        others = imported(MODULES[module])
        assert {room(other) for other in others & set(MODULES)} <= {
            "",
            "diagnose",
            "errors",
            "types",
            "objectives",
        }, module
        assert not {"torch", "numpy", "pathlib"} & {other.split(".")[0] for other in others}, module


def test_selections_are_pure():
    """They see rewards: no record, no tokens, no torch."""
    pure = {f"preftune.onpolicy.{name}" for name in ("select", "choices", "length_penalty", "explore")}
    for module in pure:
        ours = {
            ".".join(other.split(".")[:3])
            for other in imported(MODULES[module])
            if other.startswith("preftune.")
        }
        assert {name for name in ours if not name.startswith("preftune.errors")} <= pure, module
        assert not {"torch", "transformers"} & {other.split(".")[0] for other in imported(MODULES[module])}


def test_health_is_judged_from_numbers_alone():
    """No torch, no model, no file: a history of numbers goes in, and training as well as a report may ask."""
    names = {"health", "health_pairs", "health_samples", "health_steps", "history", "verdict"}
    for module in {f"preftune.diagnose.{name}" for name in names}:
        ours = {other for other in imported(MODULES[module]) if other.startswith("preftune.")}
        assert all(room(other) == "diagnose" for other in ours), module
        assert not {"torch", "numpy", "pathlib", "os", "io"} & {
            other.split(".")[0] for other in imported(MODULES[module])
        }, module


def test_the_laboratory_knows_no_model_library_and_no_data():
    """It shares the step and the objectives with training, and nothing that loads a model or a file of
    preferences.
    """
    allowed = {"lab", "types", "errors", "storage", "stats", "objectives", "report", "diagnose"}
    for module, path in MODULES.items():
        if room(module) == "lab":
            others = imported(path)
            assert not {other.split(".")[0] for other in others} & {"transformers", "datasets", "peft"}, (
                module
            )
            ours = {other for other in others & set(MODULES) if room(other)}
            assert {room(other) for other in ours} <= allowed | {"train"}, module
            assert {other for other in ours if room(other) == "train"} <= {
                "preftune.train",
                "preftune.train.step",
            }, module


def test_nothing_grows_too_large():
    large = []
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > 400:
            large.append(f"{path.relative_to(ROOT)}: {lines} lines, at most 400")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    large.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines, at most 60")
    assert not large


def test_the_layers_are_the_design_s():
    order = [
        "types",
        "objectives",
        "data",
        "policy",
        "onpolicy",
        "train",
        "evaluation",
        "config",
        "commands",
        "cli",
    ]
    assert all(LAYER_OF[lower] < LAYER_OF[upper] for lower, upper in pairwise(order))
