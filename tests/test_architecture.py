"""Imports go one way, every public module says what lives in it, and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "moecli"
# From left to right: a module imports from a rank to its left, or from its own package.
LINE = (
    "errors, types | plan | kernels | routing | gates, experts, families, heads | routers | mixture | losses | config | "
    "compatibility | parts | models | tasks | record | training | analysis | plots, report | run | "
    "sweep, interop, diagnosis, bench | replicate | testing | cli"
)
ORDER = [rank.split(", ") for rank in LINE.split(" | ")]
RANK = {name: number for number, rank in enumerate(ORDER) for name in rank}
OUTSIDE = {"__init__", "__main__"}  # the package's front door and `python -m moecli` may reach everything
FEWEST = 70  # modules: a glob that finds fewer looks in the wrong place
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    """moecli/routers/hash.py -> routers, moecli/plan.py -> plan."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(tree: ast.Module, file: Path) -> Iterator[tuple[str, int]]:
    """(imported part of moecli, line) of every import, also those inside functions and for type checkers."""
    for node in ast.walk(tree):
        for name in imported(node, file):
            if name.startswith("moecli."):
                yield name.split(".")[1], node.lineno


def imported(node: ast.AST, file: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, f"{file}:{node.lineno}: write imports in full, from moecli..."
    if node.module == "moecli":
        return [f"moecli.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
    return [node.module or ""]


def violations(file: Path) -> list[str]:
    own = part_of(file)
    return [
        f"{file.relative_to(PACKAGE.parent)}:{line} imports {other}, which is not to the left of {own}"
        for other, line in own_imports(ast.parse(file.read_text(encoding="utf-8")), file)
        if other != own and RANK[other] >= RANK[own]
    ]


def test_imports_go_one_way():
    checked = [file for file in MODULES if part_of(file) not in OUTSIDE]
    assert len(checked) >= FEWEST
    assert {part_of(file) for file in checked} <= RANK.keys(), "a new part: give it a place in ORDER and CONTRIBUTING"
    assert not [found for file in checked for found in violations(file)]


@pytest.mark.parametrize(
    "line",
    [
        "from moecli.routers.hash import Hash",
        "import moecli.run",
        "from moecli import config",
        "def f(): import moecli.cli",
    ],
)
def test_the_check_sees_every_form_of_import(line, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "moecli")
    file = tmp_path / "moecli" / "gates" / "bad.py"
    file.parent.mkdir(parents=True)
    file.write_text(f"{line}\nfrom moecli.routing import Tokens\nfrom moecli.gates.gate import Gate\n")
    assert len(violations(file)) == 1


def test_contributing_shows_the_same_order():
    text = " ".join((PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert LINE in text


def test_every_public_module_has_a_docstring():
    public = [file for file in MODULES if not file.name.startswith("__")]
    assert len(public) >= FEWEST - 20
    assert not [str(file) for file in public if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))]


def test_the_median_function_is_under_ten_lines():
    lengths = [
        node.end_lineno - node.lineno + 1
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(lengths) >= 400
    assert median(lengths) < 10
