"""docs/reliability.md: every fault of the table stands there once, with a test that exists or the reason why not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| ([A-D]\d+) \| ([^|]+) \| (.+) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py::\w+)`")
EXPECTED = [
    f"{letter}{number}"
    for letter, last in (("A", 18), ("B", 15), ("C", 15), ("D", 14))
    for number in range(1, last + 1)
]
FEWEST = 45  # rows with a test


def rows() -> list[tuple[str, str, str]]:
    return ROW.findall((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))


def existing() -> set[str]:
    """path::name of every test function."""
    return {
        f"{file.relative_to(ROOT)}::{node.name}"
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_row_stands_once():
    assert sorted(name for name, _, _ in rows()) == sorted(EXPECTED)


def test_every_row_has_a_test_that_exists_or_a_reason():
    known, tested = existing(), 0
    assert len(known) > 300 and "tests/faults/test_table.py::test_every_row_stands_once" in known
    for name, fault, said in rows():
        named = TEST.findall(said)
        assert not set(named) - known, (name, named)
        assert named or len(said.split()) > 4, (name, fault, said)
        tested += bool(named)
    print(f"{tested} of {len(EXPECTED)} rows have a test")
    assert tested >= FEWEST
