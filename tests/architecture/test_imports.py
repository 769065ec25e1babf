"""Dependencies point one way, a public name has one meaning, and nothing grows too large."""

import ast
import importlib
import textwrap
from collections import defaultdict
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import preftune
from tests.fresh import run_fresh

ROOT = Path(preftune.__file__).parent
LAYERS = (
    {"errors", "types", "terminal", "time_limit"},
    {"health", "stats", "storage", "progress", "spec"},
    {"objectives", "text", "data"},
    {"advice", "cli", "model", "report", "selection"},
    {"catalogue", "measures", "sampling"},
    {"rewards"},
    {"environments"},
    {"train"},
    {"diagnosis", "lab", "rounds"},
    {"race"},
    {"commands"},
    {"api"},
    {"__main__"},
)
"""From the bottom up. A module may import its own layer and the layers below; there is no exception."""

MAX_ROOT_MODULES = 9
MAX_LINES = 400  # of a file, as the formatter writes it
MAX_FUNCTION_LINES = 60

MODULES = {
    ".".join(("preftune", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


class RunsOnly(ast.NodeTransformer):
    """Leaves out what only a type checker reads."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else node


def imported(path: Path, runs_only: bool = False) -> set[str]:
    """Modules that a file imports, anywhere in it; with `runs_only`, without those for a type checker alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(RunsOnly().visit(tree) if runs_only else tree):
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


def arrows() -> dict[str, set[str]]:
    """Room -> the other rooms whose modules it imports."""
    found: dict[str, set[str]] = {room(module): set() for module in MODULES if room(module)}
    for module, path in MODULES.items():
        others = {room(other) for other in imported(path) & set(MODULES)}
        if room(module):
            found[room(module)] |= others - {"", room(module)}
    return found


def test_imports_go_downward_only():
    wrong = [
        f"{above} imports {below}"
        for above, others in arrows().items()
        for below in others
        if LAYER_OF[below] > LAYER_OF[above]
    ]
    assert not wrong


def test_rooms_have_no_import_cycle():
    tuple(TopologicalSorter(arrows()).static_order())  # raises CycleError


def test_few_modules_stand_at_the_root():
    root = [path.name for path in ROOT.glob("*.py") if not path.name.startswith("__")]
    assert len(root) <= MAX_ROOT_MODULES, root


def test_every_room_has_a_layer():
    assert {room(module) for module in MODULES} - {""} == set(LAYER_OF)


@pytest.mark.parametrize("names", [("errors",), ("terminal",), ("report",), ("cli.main",), ("data.options",)])
def test_light_modules_import_nothing_heavy(names):
    heavy = {"torch", "transformers", "peft", "datasets"}
    for module, path in MODULES.items():
        if any(module == f"preftune.{name}" or module.startswith(f"preftune.{name}.") for name in names):
            reached, queue = set(), [path]
            while queue:
                for other in imported(queue.pop(), runs_only=True) - reached:
                    reached.add(other)
                    if other in MODULES:
                        queue.append(MODULES[other])
            assert not {other.split(".")[0] for other in reached} & heavy, module


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module):
    importlib.import_module(module)


def test_objectives_are_pure():
    """They see numbers, never a model, a file or a layout."""
    allowed = {"preftune.objectives", "preftune.types", "preftune.errors", "preftune.spec"}
    for module, path in MODULES.items():
        if room(module) == "objectives":
            ours = {other for other in imported(path) & set(MODULES)}
            assert all(
                any(other == name or other.startswith(f"{name}.") for name in allowed) for other in ours
            ), module


def test_advice_is_pure():
    """It sees numbers and the table of objectives: no model, no file, no tensor."""
    for module, path in MODULES.items():
        if room(module) == "advice":
            others = imported(path)
            rooms = {room(other) for other in others & set(MODULES)}
            assert rooms <= {"", "advice", "errors", "types", "objectives", "spec"}, module
            assert not {"torch", "numpy", "pathlib"} & {other.split(".")[0] for other in others}, module


def test_selections_are_pure():
    """They see rewards: no record, no tokens, no torch. `apply` alone turns them into groups."""
    shared = {"preftune.errors", "preftune.spec"}
    pure = {f"preftune.selection.{name}" for name in ("rules", "rejection", "choices", "length_penalty")}
    for module in pure:
        ours = {
            ".".join(other.split(".")[:3])
            for other in imported(MODULES[module])
            if other.startswith("preftune.")
        }
        assert {name for name in ours if ".".join(name.split(".")[:2]) not in shared} <= pure, module
        assert not {"torch", "transformers"} & {other.split(".")[0] for other in imported(MODULES[module])}


def test_health_checks_see_numbers_alone():
    """No torch, no model, no file: a history of numbers goes in, and training as well as a report may call."""
    for module, path in MODULES.items():
        if room(module) == "health":
            others = imported(path)
            assert all(room(other) == "health" for other in others & set(MODULES)), module
            libraries = {other.split(".")[0] for other in others}
            assert not {"torch", "numpy", "pathlib", "os", "io"} & libraries, module


def test_the_laboratory_knows_no_model_library_and_no_data():
    """It shares the step and the objectives with training, and nothing that loads a model or a data file."""
    allowed = {
        "lab",
        "types",
        "errors",
        "storage",
        "stats",
        "text",
        "objectives",
        "spec",
        "report",
        "advice",
        "measures",
    }
    for module, path in MODULES.items():
        if room(module) == "lab":
            others = imported(path)
            libraries = {other.split(".")[0] for other in others}
            assert not libraries & {"transformers", "datasets", "peft"}, module
            ours = {other for other in others & set(MODULES) if room(other)}
            assert {room(other) for other in ours} <= allowed | {"train"}, module
            training = {other for other in ours if room(other) == "train"}
            assert training <= {"preftune.train", "preftune.train.step"}, module


def test_nothing_grows_too_large():
    large = []
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MAX_LINES:
            large.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {MAX_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    large.append(
                        f"{path.relative_to(ROOT)}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
                    )
    assert not large


def test_the_formatter_has_no_exceptions():
    comment = "# fmt" + ": skip"
    files = [path for folder in ("src", "tests") for path in (ROOT.parents[1] / folder).rglob("*.py")]
    assert [str(path) for path in files if comment in path.read_text(encoding="utf-8")] == []


MAX_WHOLE_SETTINGS = 5
"""Functions that take all settings of a run; the others take the sections, or the plan, that they need."""


def takers_of_all_settings(text: str) -> list[str]:
    """Functions with a parameter that is a TrainConfig, or may be one."""
    takers = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            hints = [ast.unparse(argument.annotation) for argument in arguments if argument.annotation]
            takers += [node.name] if any("TrainConfig" in hint for hint in hints) else []
    return takers


def test_settings_do_not_travel():
    takers = [
        name for path in MODULES.values() for name in takers_of_all_settings(path.read_text(encoding="utf-8"))
    ]
    assert len(takers) <= MAX_WHOLE_SETTINGS, takers


def test_a_function_that_takes_all_settings_is_noticed():
    source = "def f(c: TrainConfig): ...\ndef g(*, c: 'TrainConfig | None'): ...\ndef h(c: Other) -> TrainConfig: ..."
    assert takers_of_all_settings(source) == ["f", "g"]


def test_the_layers_are_the_design_s():
    order = ["types", "objectives", "model", "sampling", "rewards", "train", "race", "commands"]
    assert all(LAYER_OF[lower] < LAYER_OF[upper] for lower, upper in pairwise(order))


SHARED = {"run"}  # of each module in commands/


def public_names(text: str) -> set[str]:
    """Functions, classes and constants of a module's top level; imported names and type variables do not count."""
    names: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and "TypeVar(" not in ast.unparse(node):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
            }
    return {name for name in names if not name.startswith("_")}


def defined_twice(texts: dict[str, str]) -> dict[str, list[str]]:
    modules = defaultdict(list)
    for module, text in texts.items():
        for name in public_names(text) - SHARED:
            modules[name].append(module)
    return {name: where for name, where in modules.items() if len(where) > 1}


def test_no_public_name_is_defined_twice():
    texts = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
    assert defined_twice(texts) == {}


def test_a_second_meaning_is_noticed():
    one, other = (
        "def merge(): ...\nA, B = 1, 2\nT = TypeVar('T')",
        "class merge: ...\nB: int = 3\nT = TypeVar('T')",
    )
    assert defined_twice({"one": one, "other": other}) == {"merge": ["one", "other"], "B": ["one", "other"]}
    assert not defined_twice(
        {"one": "def run(): ...\n_A = 1", "other": "from x import merge\ndef run(): ...\n_A = 2"}
    )


def test_nothing_of_one_system_is_needed_to_import():
    """As on Windows and macOS: no Unix module and no /proc. Other packages are imported before these are taken away."""
    run_fresh(
        textwrap.dedent(f"""
        import sys
        import datasets, gguf, matplotlib.pyplot, pandas, peft, psutil, rich, torch, transformers, jsonargparse, httpx2
        def refuse(event, arguments):
            if event == "open" and str(arguments[0]).startswith(("/proc", "/sys")):
                raise FileNotFoundError(arguments[0])
        for name in ("resource", "fcntl", "termios", "tty", "pty", "pwd", "grp"):
            sys.modules[name] = None
        sys.addaudithook(refuse)
        import importlib
        for name in {sorted(set(MODULES) - {"preftune.__main__"})}:
            importlib.import_module(name)
        """)
    )
