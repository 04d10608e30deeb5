"""A report as Markdown: the same sentences and tables as the page, without what only a browser shows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from moecli.report.page.gather import Content
from moecli.report.page.runs import RunPart
from moecli.report.page.study import Study
from moecli.report.page.values import Table
from moecli.report.tables import MARKDOWN
from moecli.report.terminal import visible

START = re.compile(r"^(\d*)(?=[-+=.])")  # of a list or of a line below a heading


def page(content: Content) -> str:
    """The whole text; the same content gives the same text."""
    return "\n".join(_lines(content)) + "\n"


def escaped(text: str) -> str:
    """Any text as Markdown shows it: a backslash before punctuation takes every meaning from it."""
    return MARKDOWN.sub(lambda found: f"\\{found.group()}", visible(text.strip()))


def _lines(content: Content) -> Iterator[str]:
    several = len(content.studies) > 1
    yield f"# {escaped(content.title)}"
    for study in content.studies:
        yield from ("", *_items(study.lead))
    if content.broken:
        yield from ("", f"{len(content.broken.rows)} more could not be read: the reasons stand at the end.")
    yield from ("", "## How to repeat it", "", *_code(content.commands))
    for study in content.studies:
        yield from _study(study, f" of {escaped(study.title)}" if several else "")
    yield from ("", "## Environment", "", *_table(content.environment))
    if content.broken:
        yield from ("", "## What could not be read", "", *_table(content.broken))


def _study(study: Study, of: str) -> Iterator[str]:
    yield from ("", f"## Results{of}", "")
    if study.rows:
        yield from (*_table(study.rows.table), "", *_items(study.rows.notes))
    yield from ("", *_table(study.table), "", f"## What the experts do{of}")
    for run in study.runs:
        yield from _run(run)
    if study.differing:
        yield from ("", f"## Configurations{of}", "", *_table(study.differing))


def _run(run: RunPart) -> Iterator[str]:
    yield from ("", f"### {escaped(run.title)}", "")
    yield from _items([run.label, run.header, run.result, *run.warnings])
    for layer in run.layers:
        yield from ("", f"#### {escaped(layer.name)}", "", *_items(layer.lines), "", *_table(layer.table))


def _items(sentences: Sequence[str]) -> Iterator[str]:
    """A list, in which no sentence begins another one."""
    return ("- " + START.sub(r"\1\\", escaped(sentence)) for sentence in sentences)


def _table(table: Table) -> Iterator[str]:
    """A line for each row, with as many cells as the head has."""
    yield from (escaped(table.caption), "")
    yield _row(table.head)
    yield _row(["---:" if n in table.numeric else "---" for n in range(len(table.head))], rule=True)
    yield from (_row([cell.text for cell in row]) for row in table.rows)


def _row(texts: Sequence[str], rule: bool = False) -> str:
    return f"| {' | '.join(texts if rule else map(escaped, texts))} |"


def _code(lines: Sequence[str]) -> Iterator[str]:
    """A block that its own text cannot end."""
    shown = [visible(line) for line in lines]
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (f"{fence}bash", *shown, fence)
