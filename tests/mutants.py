"""Change the objectives one small thing at a time and see whether the tests notice. Not collected by pytest.

    python tests/mutants.py [objective ...] [--per-file N] [--seed S] [--parallel 2]

Each mutant is one change in one file of `preftune/objectives`, in a temporary copy of the package, under the
contract suite and the literal tests that concern the file. Without names all files are mutated, helpers
included. Survivors are listed with their line; those of `EQUIVALENT` change nothing that a test could see,
and the reason stands there.
"""

import argparse
import ast
import copy
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = ROOT / "src" / "preftune" / "objectives"
LIMIT_S = 300  # of one run of pytest; a mutant that exceeds it counts as killed

_ONE_AXIS = "the tensor has one axis, so 0 and -1 are the same"
_SAME_SHAPE = "both index the same number of pairs, and only shape and device are read"
_NO_GRADIENT = "under no_grad there is nothing to detach"
EQUIVALENT = {
    ("group_max", "constant - 1 in `0`"): _ONE_AXIS,
    ("_damped_sum", "constant - 1 in `0`"): _ONE_AXIS,
    ("logistic", "constant - 1 in `0`"): "without smoothing the second term is 0 times a finite number",
    ("group_sum", "constant - 1 in `0`"): _ONE_AXIS,
    ("pair_weights", ".chosen -> .rejected in `signal.chosen`"): _SAME_SHAPE,
    ("weights", ".chosen -> .rejected in `signal.chosen`"): _SAME_SHAPE,
    ("odds_weight", "drop .detach() in `ref_logp.detach()`"): "the reference's logp comes detached",
    ("_log_mean_exp", "constant - 1 in `0`"): _ONE_AXIS,
    ("is_demonstration", "constant - 1 in `0.0`"): "every temperature that is not above 0 is the hard form",
    ("potential", "GtE -> Gt in `p >= q`"): "at p = q both forms are 0",
    ("label_metrics", "drop .detach() in `value.detach()`"): _NO_GRADIENT,
}
"""(function, the mutant's description) -> why no test can tell; such mutants are not run."""

SWAPS = {  # names that stand for neighboring ideas
    "sum_tokens": "mean_tokens",
    "mean_tokens": "sum_tokens",
    "log_ratio": "mean_log_ratio",
    "mean_log_ratio": "log_ratio",
    "chosen": "rejected",
    "rejected": "chosen",
    "first": "second",
    "second": "first",
    "on": "off",
    "off": "on",
}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
DROPPED_METHODS = ("detach", "clamp", "square", "exp", "log")
DROPPED_FUNCTIONS = ("logsigmoid", "bounded_exp", "bounded_expm1", "log_odds", "abs")


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    what: str
    source: str
    function: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.function, self.what


# --- what can be changed ---


def mutations(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], ast.AST]]]:
    """(description, change) of a node; the change works on a copy of it and returns what takes its place."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        other = OPERATORS[type(node.op)]
        yield f"{type(node.op).__name__} -> {other.__name__}", lambda n: _with(n, op=other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "drop minus", lambda n: n.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        for other in COMPARISONS[type(node.ops[0])]:
            yield f"{type(node.ops[0]).__name__} -> {other.__name__}", lambda n, o=other: _with(n, ops=[o()])
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        for what, value in (("+ 1", node.value + 1), ("- 1", node.value - 1), ("* 1.01", node.value * 1.01)):
            if value != node.value and not (type(node.value) is int and what == "* 1.01"):
                yield f"constant {what}", lambda n, v=value: _with(n, value=v)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} -> {other.__name__}", lambda n: _with(n, op=other())
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield "negate condition", lambda n: _with(n, test=ast.UnaryOp(op=ast.Not(), operand=n.test))
    elif isinstance(node, ast.Call):
        yield from _call_mutations(node)
    elif isinstance(node, ast.Name) and node.id in SWAPS and isinstance(node.ctx, ast.Load):
        yield f"{node.id} -> {SWAPS[node.id]}", lambda n: _with(n, id=SWAPS[n.id])
    elif isinstance(node, ast.Attribute) and node.attr in SWAPS:
        yield f".{node.attr} -> .{SWAPS[node.attr]}", lambda n: _with(n, attr=SWAPS[n.attr])


def _call_mutations(node: ast.Call) -> Iterator[tuple[str, Callable[[ast.AST], ast.AST]]]:
    if isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED_METHODS:
        yield f"drop .{node.func.attr}()", lambda n: n.func.value
    if isinstance(node.func, ast.Name) and node.func.id in DROPPED_FUNCTIONS:
        yield f"drop {node.func.id}()", lambda n: n.args[0]
    if (
        len(node.args) == 2
        and isinstance(node.func, ast.Name)
        and node.func.id in ("binary_kl", "density_ratio_loss")
    ):
        yield f"swap arguments of {node.func.id}", lambda n: _with(n, args=n.args[::-1])
    if isinstance(node.func, ast.Name) and node.func.id.startswith("check_"):
        yield f"drop {node.func.id}", lambda n: ast.Constant(value=None)


def _with(node: ast.AST, **changes: object) -> ast.AST:
    for name, value in changes.items():
        setattr(node, name, value)
    return node


def mutants_of(path: Path) -> list[Mutant]:
    """Every single change of a file's defaults, assignments and function bodies; annotations and messages
    stay.
    """
    tree = ast.parse(path.read_text())
    found, count = [], len(list(_places(tree)))
    for place in range(count):
        _, _, node = list(_places(tree))[place]
        for number, (what, _) in enumerate(mutations(node)):
            changed = copy.deepcopy(tree)
            parent, field, target = list(_places(changed))[place]
            _, change = list(mutations(target))[number]
            new = change(target)
            if isinstance(field, tuple):
                getattr(parent, field[0])[field[1]] = new
            else:
                setattr(parent, field, new)
            source = ast.unparse(ast.fix_missing_locations(changed))
            what = f"{what} in `{ast.unparse(node)[:60]}`".replace("\n", " ")
            line = getattr(node, "lineno", 0)
            found.append(Mutant(path.name, line, what, source, function=_function_at(tree, line)))
    return found


def _function_at(tree: ast.AST, line: int) -> str:
    """The function that holds a line; of a module or class body the empty name."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return next((f.name for f in functions if f.lineno <= line <= (f.end_lineno or 0)), "")


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, str | tuple[str, int], ast.AST]]:
    """(parent, field, node) of everything that computes, in a fixed order."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for position, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not _is_message(child):
                yield tree, (name, position) if isinstance(value, list) else name, child
                yield from _places(child)


def _is_message(node: ast.AST) -> bool:
    return isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Assert))


# --- whether it is noticed ---


def tests_of(file: str, names: dict[str, str]) -> list[list[str]]:
    """Arguments of two runs of pytest: literal tests, which notice most, then contracts, of the file's
    objectives.
    """
    own = [name for name, where in names.items() if where == file]
    if not own:
        return [["tests/objectives"], ["tests/contracts"]]
    literal = [f"tests/objectives/test_{Path(file).stem}.py", "tests/objectives/test_settings.py"]
    wanted = " or ".join(f"-{name}- or [{name}]" for name in own)
    return [literal, ["tests/contracts", f"-k={wanted}"]]


def _child(package: str, arguments: list[str]) -> None:
    """Run pytest against a copy of the package; torch was imported before the fork, preftune was not."""
    os.chdir(ROOT)
    sys.path[:0] = [package, str(ROOT)]
    with open(os.devnull, "w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments])))


def is_killed(mutant: Mutant, names: dict[str, str]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            OBJECTIVES.parents[1], folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        (Path(folder) / "preftune" / "objectives" / mutant.file).write_text(mutant.source)
        return any(_fails(folder, arguments) for arguments in tests_of(mutant.file, names))


def _fails(package: str, arguments: list[str]) -> bool:
    process = multiprocessing.get_context("fork").Process(target=_child, args=(package, arguments))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode != 0


def objective_files() -> dict[str, str]:
    """Name in the table -> file that defines its class."""
    table = ast.parse((OBJECTIVES / "table.py").read_text())
    classes = {alias.name for node in table.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    return {
        name: path.name
        for path in sorted(OBJECTIVES.glob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for name in _declared_name(node)
    }


def _declared_name(node: ast.ClassDef) -> list[str]:
    """The name of an objective; none of a base class."""
    return [
        line.value.value
        for line in node.body
        if isinstance(line, ast.Assign)
        and [ast.unparse(target) for target in line.targets] == ["name"]
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "objective", nargs="*", help="names of the table, or files such as links.py; default: all"
    )
    parser.add_argument("--per-file", type=int, help="a random sample of this many mutants of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=2)
    options = parser.parse_args()
    names = objective_files()
    files = [names.get(name, name) for name in options.objective] or sorted(
        path.name for path in OBJECTIVES.glob("*.py") if path.name != "__init__.py"
    )
    unknown = [file for file in files if not (OBJECTIVES / file).is_file()]
    if unknown:
        parser.error(f"no such objective or file: {', '.join(unknown)}")
    chosen: list[Mutant] = []
    for file in dict.fromkeys(files):
        found = [m for m in mutants_of(OBJECTIVES / file) if m.key not in EQUIVALENT]
        sample = random.Random(options.seed).sample(found, min(options.per_file or len(found), len(found)))
        chosen += sample
    import torch  # before the forks, so that each is spared it; pytest's plugins must not be there yet

    torch.set_num_threads(1)
    with ThreadPoolExecutor(options.parallel) as pool:
        sound = [Mutant(file, 0, "", (OBJECTIVES / file).read_text()) for file in dict.fromkeys(files)]
        for mutant, dead in zip(sound, pool.map(lambda mutant: is_killed(mutant, names), sound), strict=True):
            if dead:
                print(f"{mutant.file}: its tests fail without any mutation")
                return 2
        killed = list(pool.map(lambda mutant: is_killed(mutant, names), chosen))
    for file in dict.fromkeys(mutant.file for mutant in chosen):
        here = [dead for mutant, dead in zip(chosen, killed, strict=True) if mutant.file == file]
        print(f"{file:24} {sum(here):4} of {len(here):4} killed")
    for mutant, dead in zip(chosen, killed, strict=True):
        if not dead:
            print(f"survived  {mutant.file}:{mutant.line}  {mutant.what}")
    print(f"killed {sum(killed)} of {len(killed)}: {100 * sum(killed) / max(1, len(killed)):.1f}%")
    return 0 if all(killed) else 1


if __name__ == "__main__":
    sys.exit(main())
