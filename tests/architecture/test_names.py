"""A public name has one meaning in the package."""

import ast
from collections import defaultdict
from pathlib import Path

import preftune

ROOT = Path(preftune.__file__).parent
SHARED = {"run"}  # of a command: each module in commands/ has one


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
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
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
