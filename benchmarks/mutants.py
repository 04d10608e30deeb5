"""Do the property tests notice a wrong line?  Mutants of routing mathematics, drawn by a fixed seed, killed or not.

    python benchmarks/mutants.py --number 150 --seed 0 --jobs 2

Each mutant changes one place of plan.py, routing.py, routers/ or losses/ in a copy of the tree; a child forked from a
process that holds torch already runs the tests there and stops at the first failure.  Prints one line for each mutant,
and the diffs of those that survive.  A mutant that runs out of time counts as killed.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MUTATED = ("moecli/plan.py", "moecli/routing.py", "moecli/routers/*.py", "moecli/losses/*.py")
KILLERS = {  # by the beginning of a file's name: the tests that see it, the quickest killers first
    "moecli/losses/(blend|expected|joint|nll)": ["families/objectives", "losses"],
    "moecli/losses": ["properties/terms", "properties/policies", "losses"],
    "moecli/routers/(hash|oracle|replay)": ["properties/tables", "properties/weights", "properties/capacity"],
    "moecli/routers/(balanced|sinkhorn|expert)": [
        "properties/transport",
        "properties/weights",
        "properties/equivariance",
    ],
    "moecli/routers/(sigmoid)": ["properties/weights", "properties/layers", "properties/gradients"],
    "moecli/routers/catch_up": ["routers/catch_up", "properties/weights", "properties/policies"],
    "moecli/routers": ["properties/weights", "properties/policies", "properties/gradients", "properties/equivariance"],
    "moecli/routing": ["properties/capacity", "properties/weights", "routing"],
    "moecli/plan": ["properties/weights", "properties/capacity", "plan", "mixture"],
}
LAST = [  # what only survivors come to
    "tests/test_config.py::test_a_default_in_yaml_that_the_constructor_has_too_is_the_same",
    "tests/test_contract.py::test_claims_hold_in_both_directions",
]
LIMIT = 240  # seconds for the tests of one mutant

SWAPS = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.BitAnd: "|", ast.BitOr: "&",
}  # fmt: skip
NAMES = {"min": "max", "minimum": "maximum", "clamp_min": "clamp_max", "amin": "amax", "ceil": "floor"}
NAMES |= {after: before for before, after in NAMES.items()}


@dataclass(frozen=True)
class Mutant:
    """``file`` with the characters ``start`` to ``stop`` replaced."""

    file: str
    start: int
    stop: int
    text: str
    kind: str

    def source(self) -> str:
        old = (ROOT / self.file).read_text(encoding="utf-8")
        return old[: self.start] + self.text + old[self.stop :]

    def diff(self) -> str:
        old = (ROOT / self.file).read_text(encoding="utf-8")
        first = old.count("\n", 0, self.start)
        last = old.count("\n", 0, self.stop)
        before = old.splitlines()[first : last + 1]
        after = self.source().splitlines()[first : first + len(before) + self.text.count("\n") - (last - first)]
        return "\n".join([f"{self.file}:{first + 1} ({self.kind})", *(f"  - {x.strip()}" for x in before),
                          *(f"  + {x.strip()}" for x in after)])  # fmt: skip


class Finder:
    """All mutants of one file."""

    def __init__(self, file: str):
        self.file = file
        self.text = (ROOT / file).read_text(encoding="utf-8")
        starts = [0]
        for line in self.text.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self.starts = starts

    def place(self, line: int, column: int) -> int:
        start = self.starts[line - 1]
        return start + len(self.text[start:].encode()[:column].decode())

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.place(node.lineno, node.col_offset), self.place(node.end_lineno, node.end_col_offset)

    def between(self, left: ast.AST, right: ast.AST, old: type, kind: str) -> Iterator[Mutant]:
        """Another operator between two operands, where exactly one stands."""
        start, stop = self.span(left)[1], self.span(right)[0]
        symbol = {v: k for k, v in {"<": "<=", ">": ">=", "==": "!=", "+": "-", "*": "/", "&": "|"}.items()}
        symbol |= {v: k for k, v in symbol.items()}
        new = SWAPS[old]
        was = symbol[new]
        at = self.text.find(was, start, stop)
        if at >= 0:
            yield Mutant(self.file, at, at + len(was), new, kind)

    def replaced(self, node: ast.AST, text: str, kind: str) -> Iterator[Mutant]:
        yield Mutant(self.file, *self.span(node), text, kind)

    def all(self) -> Iterator[Mutant]:
        tree = ast.parse(self.text)
        skipped = set(unexecuted(tree))
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
                yield from self.between(node.left, node.comparators[0], type(node.ops[0]), "comparison")
            elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
                yield from self.between(node.left, node.right, type(node.op), "operator")
            elif isinstance(node, ast.AugAssign) and type(node.op) in SWAPS:
                yield from self.between(node.target, node.value, type(node.op), "operator")
            elif isinstance(node, ast.UnaryOp):
                yield from self.unary(node)
            elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                yield from self.replaced(node, repr(node.value + 1), "constant + 1")
                yield from self.replaced(node, f"({node.value - 1!r})", "constant - 1")
            elif isinstance(node, ast.keyword) and node.arg == "descending":
                yield from self.replaced(node.value, "False", "descending")
            elif isinstance(node, ast.Call):
                yield from self.call(node)
            if isinstance(node, ast.FunctionDef | ast.For | ast.While | ast.If):
                yield from self.removals(node.body)

    def unary(self, node: ast.UnaryOp) -> Iterator[Mutant]:
        inner = ast.get_source_segment(self.text, node.operand)
        if isinstance(node.op, ast.Not | ast.Invert):
            yield from self.replaced(node, f"({inner})", "dropped not")
        elif isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant) and node.operand.value == 1:
            yield from self.replaced(node, "0", "last axis -> first")
        elif isinstance(node.op, ast.USub):
            yield from self.replaced(node, f"({inner})", "dropped minus")

    def call(self, node: ast.Call) -> Iterator[Mutant]:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "detach":
            yield from self.replaced(node, ast.get_source_segment(self.text, node.func.value), "dropped detach")
        elif name in NAMES:
            stop = self.span(node.func)[1]
            yield Mutant(self.file, stop - len(name), stop, NAMES[name], "min and max")

    def removals(self, body: list[ast.stmt]) -> Iterator[Mutant]:
        for statement in body:
            documents = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if len(body) > 1 and not documents and not isinstance(statement, ast.Import | ast.ImportFrom):
                yield from self.replaced(statement, "pass", "removed statement")


def unexecuted(tree: ast.AST) -> Iterator[int]:
    """Ids of nodes whose value nothing computes with: annotations; and what another mutant stands for."""
    for node in ast.walk(tree):
        roots = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            roots.append(node)
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "Plan" for t in node.targets):
            roots.append(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            roots.append(node.operand)  # an axis, whose mutant is the other axis
        for root in filter(None, roots):
            yield from (id(inner) for inner in ast.walk(root))


def mutants() -> list[Mutant]:
    files = sorted({str(path.relative_to(ROOT)) for pattern in MUTATED for path in ROOT.glob(pattern)})
    return [mutant for file in files for mutant in Finder(file).all()]


# -- running ------------------------------------------------------------------------------------------------


def copy_of_the_tree(parent: Path) -> Path:
    tree = parent / "tree0"
    for name in ("moecli", "conf", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def tests_of(file: str) -> list[str]:
    """The tests that a mutant of this file meets, in order."""
    names = next(names for begin, names in KILLERS.items() if re.match(begin, file))
    paths = [Path("tests") / name for name in names]
    return [*(f"{path.parent}/test_{path.name}.py" for path in paths), *LAST]


def start(mutant: Mutant | None, tree: Path, tests: list[str]) -> int:
    """Fork a child that runs the tests in a tree that may hold a mutant: its process id."""
    if mutant is not None:
        (tree / mutant.file).write_text(mutant.source(), encoding="utf-8")
    pid = os.fork()
    if pid:
        return pid
    import pytest

    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.alarm(LIMIT if mutant is not None else 0)
    quiet = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:warnings"]
    if mutant is not None:  # first the tests whose name holds the part's
        code = pytest.main([*quiet, "-k", name_of(mutant.file), *(test for test in tests if test not in LAST)])
        if code == pytest.ExitCode.TESTS_FAILED:
            os._exit(1)
    os._exit(int(pytest.main([*quiet, *tests])))


def name_of(file: str) -> str:
    """moecli/losses/z_loss.py -> "z_loss or zloss", as tests are named after the option or the class."""
    stem = Path(file).stem
    return f"{stem} or {stem.replace('_', '')}"


def killer(tree: Path) -> str:
    lines = (tree / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))), "out of time")


def run(drawn: list[Mutant], jobs: int) -> list[Mutant]:
    """Print each mutant's fate: the survivors."""
    survivors: list[Mutant] = []
    started = time.time()
    with tempfile.TemporaryDirectory() as parent:
        first = copy_of_the_tree(Path(parent))
        every = dict.fromkeys(test for file in {mutant.file for mutant in drawn} for test in tests_of(file))
        _, status = os.waitpid(start(None, first, list(every)), 0)
        if status:
            sys.exit(f"the tests fail without any mutant: {killer(first)}")
        free = [first, *(shutil.copytree(first, Path(parent) / f"tree{slot}") for slot in range(1, jobs))]
        sys.dont_write_bytecode = True  # what is compiled now is of no mutant
        begin = time.time()
        print(f"the tests take {begin - started:.0f} s where nothing is wrong", flush=True)
        working: dict[int, tuple[Mutant, Path]] = {}
        waiting = list(drawn)
        while waiting or working:
            while waiting and free:
                tree, mutant = free.pop(), waiting.pop(0)
                working[start(mutant, tree, tests_of(mutant.file))] = mutant, tree
            pid, status = os.wait()
            mutant, tree = working.pop(pid)
            shutil.copy(ROOT / mutant.file, tree / mutant.file)
            free.append(tree)
            survived = status == 0
            survivors += [mutant] if survived else []
            fate = "SURVIVED" if survived else f"killed by {killer(tree)}"
            print(f"{time.time() - begin:6.0f} s  {mutant.diff()}\n  {fate}", flush=True)
    return survivors


def warm() -> None:
    """Import what tests need of others, none of it ours; do not shrink, for a failure is enough."""
    import hydra  # noqa: F401
    import hypothesis
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import scipy.optimize  # noqa: F401
    import sklearn.cluster  # noqa: F401
    import torch

    torch.set_num_threads(1)
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, derandomize=True)
    hypothesis.settings.load_profile("mutants")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="a part of the file names, to look at one part alone")
    asked = parser.parse_args()
    every = [mutant for mutant in mutants() if asked.only in mutant.file]
    drawn = random.Random(asked.seed).sample(every, min(asked.number, len(every)))
    warm()
    survivors = run(drawn, asked.jobs)
    print(
        f"\n{len(drawn)} of {len(every)} mutants drawn, {len(drawn) - len(survivors)} killed, {len(survivors)} survived"
    )
    for mutant in survivors:
        print(mutant.diff())


if __name__ == "__main__":
    main()
