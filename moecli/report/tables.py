"""A table of text, written so that nothing a user named is alive in it: terminal, Markdown, LaTeX, HTML, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from moecli.record.folder import finite
from moecli.report.terminal import columns, visible


@dataclass(frozen=True)
class Table:
    """Text as it is to be read; each writer makes it harmless in its own way."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    left: int  # so many first columns are names, the others numbers
    notes: list[str] = field(default_factory=list)


def terminal(table: Table) -> str:
    lines = columns([table.head, *table.rows], left=range(table.left))
    return "\n".join([*lines, *(f" {visible(note)}" for note in table.notes)])


MARKDOWN = re.compile(r"[\\|*_`<>\[\](){}&~$:@!#^]|(?<=www)\.", re.IGNORECASE)


def markdown(table: Table) -> str:
    """A GitHub table, and its notes as a list.  A backslash before punctuation takes every meaning from it."""
    rule = ["---" if column < table.left else "---:" for column in range(len(table.head))]
    lines = [[_markdown(text) for text in line] for line in (table.head, *table.rows)]
    body = [f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]]]
    return "\n".join([*body, "", *(f"- {_markdown(note)}" for note in table.notes)])


def _markdown(text: str) -> str:
    return MARKDOWN.sub(lambda found: f"\\{found.group()}", visible(text.strip()))


LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "−": "$-$",
    "★": r"$\star$",
    "≈": r"$\approx$",
    "▼": r"$\downarrow$",
    "▲": r"$\uparrow$",
    "◆": r"$\diamond$",
}


def latex(table: Table) -> str:
    r"""For ``\usepackage{booktabs}``; what must be known stands below as comments."""
    head, *lines = [_latex_row(line) for line in (table.head, *table.rows)]
    aligned = "l" * table.left + "r" * (len(table.head) - table.left)
    rows = [
        rf"\begin{{tabular}}{{{aligned}}}",
        r"\toprule",
        head,
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([*rows, *(f"% {_latex(note)}" for note in table.notes)])


def _latex_row(line: Sequence[str]) -> str:
    r"""The ``\\`` or rule before a row would take a leading [, * or ( for its own argument."""
    row = " & ".join(map(_latex, line)) + r" \\"
    return f"{{}}{row}" if row[0] in "[*(" else row


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in visible(text.strip()))


def html(table: Table) -> str:
    """A fragment: one <table> with a caption, and its notes as a list."""
    head = "".join(f'<th scope="col">{_html(text)}</th>' for text in table.head)
    body = "\n".join(f"<tr>{_html_row(row, table.left)}</tr>" for row in table.rows)
    notes = "".join(f"<li>{_html(note)}</li>" for note in table.notes)
    return (
        f"<table>\n<caption>{_html(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n<ul>{notes}</ul>"
    )


def _html_row(row: Sequence[str], left: int) -> str:
    names = "".join(f'<th scope="row">{_html(text)}</th>' for text in row[:left])
    return names + "".join(f"<td>{_html(text)}</td>" for text in row[left:])


def _html(text: str) -> str:
    return escape(visible(text.strip()))


def as_csv(lines: Sequence[Sequence[Any]]) -> str:
    """Head and rows; numbers in full, nothing for None and NaN, and no text that a spreadsheet would run."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_csv(value) for value in line] for line in lines)
    return text.getvalue().rstrip("\n")


def _csv(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        return repr(value) if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)
    return f"'{visible(value)}" if value.lstrip()[:1] in ("=", "+", "-", "@") else visible(value)


def as_json(data: Any) -> str:
    """Valid JSON, in which a terminal finds no control character: they are written as \\uXXXX."""
    text = json.dumps(finite(data), indent=1, ensure_ascii=False, allow_nan=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
