"""Sixty payloads in every place of a table, in six forms: none is alive, and every checker sees one that is."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from moecli.report import compare_table, diff, tables
from moecli.report.compare import compare
from moecli.report.tables import Table
from moecli.report.terminal import visible
from tests.report.factory import made
from tests.report.payloads import PAYLOADS

HIDDEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # of a printed text
TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "li", "p"}


def compared(payload):
    """The payload as value and name of a key, as metric, unit, data's name and path."""
    places = {"headline": payload, "unit": payload, "per": payload, "path": payload}
    config = {"task": payload, payload: payload, "optimizer.lr": payload}
    records = [made(payload, seed, 0.5 + seed / 10, config=config, **places) for seed in (0, 1)]
    others = [made("plain", seed, 0.4, config={"task": payload}, **places) for seed in (0, 1)]
    lost = [made(payload, 2, None, config=config, **places)]
    return compare([*records, *others, *lost], ["router", payload])


def differing(payload):
    a, b = (made("a", 0, 0.5, config={payload: word}, headline=payload, path=word, id=word) for word in (payload, "b"))
    return diff.side_by_side(a, b)


CASES = [(compare_table, compared), (diff, differing)]


class Reader(HTMLParser):
    """What a browser would make of it: tags, attributes, and the text of each cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.comments, self.cells, self.open = [], [], [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.open = tag in ("th", "td")
        self.cells += [""] * self.open

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("th", "td")

    def handle_data(self, text):
        if self.open:
            self.cells[-1] += text

    def handle_comment(self, text):
        self.comments.append(text)

    handle_decl = handle_pi = unknown_decl = handle_comment


def check_page(text, table, allowed):
    read = Reader(text)
    assert set(read.tags) <= TAGS and not read.comments, read.tags
    assert set(read.attributes) <= allowed, read.attributes
    expected = [visible(word.strip()).strip() for line in (table.head, *table.rows) for word in line]
    assert [" ".join(cell.split()) for cell in read.cells] == [" ".join(word.split()) for word in expected]


def check_html(text, table):
    check_page(text, table, {("scope", "col"), ("scope", "row")})
    assert not HIDDEN.search(text)


def check_markdown(text, table):
    """Rendered as a page it keeps its shape; what GitHub adds (links without brackets, $maths$, {{liquid}}) is escaped."""
    styles = {("style", "text-align:right")}
    check_page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text), table, styles)
    bare = re.sub(r"\\[^\w\s]", "", text)
    assert not re.search(r"\w:|@|www\.|\$|\{|^#", bare) and not HIDDEN.search(text)


def check_latex(text, table):
    lines = text.split("\n")
    assert re.fullmatch(r"\\begin\{tabular\}\{l+r*\}", lines[0])
    assert (lines[1], lines[3], lines[len(table.rows) + 4]) == (r"\toprule", r"\midrule", r"\bottomrule")
    for line in [lines[2], *lines[4 : len(table.rows) + 4]]:
        assert line.endswith(r" \\") and not re.match(r"[\[*(]", line)
        check_latex_text(line.removesuffix(r" \\"), len(table.head))
    for line in lines[len(table.rows) + 6 :]:
        assert line.startswith("% ")
        check_latex_text(line[2:], 1)


def check_latex_text(text, columns):
    known = r"\\text(?:backslash|asciitilde|asciicircum|asciigrave)\{\}|\$(?:[<>|-]|\\[a-z]+)\$|\\[&%$#_{}]|^\{\}"
    bare = re.sub(known, "", text)
    assert not re.search(r"[\\%$#_{}~^`]", bare) and bare.count("&") == columns - 1, bare
    assert not HIDDEN.search(text) and "\n" not in text


def check_terminal(text, table):
    assert not HIDDEN.search(text) and len(text.split("\n")) == 1 + len(table.rows) + len(table.notes)


def check_csv(text, lines):
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert len(read) == len(lines) and {len(line) for line in read} == {len(lines[0])}
    assert not HIDDEN.search(text)
    for cells, values in zip(read, lines, strict=True):
        for cell, value in zip(cells, values, strict=True):
            if isinstance(value, str):
                assert cell.lstrip()[:1] not in ("=", "+", "-", "@"), cell
                assert cell.removeprefix("'") == visible(value) or cell == visible(value)
            elif isinstance(value, float) and value == value:
                assert float(cell) == value


def check_json(text, data):
    def never(word):
        raise AssertionError(word)

    assert json.loads(text, parse_constant=never) == json.loads(json.dumps(tables.finite(data)))
    assert not HIDDEN.search(text)


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda text: ascii(text[:16]))
def test_no_payload_is_alive_in_any_form(payload):
    for forms, make in CASES:
        found = make(payload)
        table = forms.table(found)
        assert any(payload in word for line in table.rows for word in line)
        check_terminal(tables.terminal(table), table)
        check_markdown(tables.markdown(table), table)
        check_latex(tables.latex(table), table)
        check_html(tables.html(table), table)
        check_csv(tables.as_csv(forms.flat(found)), forms.flat(found))
        check_json(tables.as_json(forms.data(found)), forms.data(found))


def careless(table):
    """Each form as one would write it without thinking."""
    lines = [table.head, *table.rows]
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    page = "".join(f"<tr>{''.join(f'<td>{word}</td>' for word in line)}</tr>" for line in lines)
    body = [" & ".join(line) + r" \\" for line in lines]
    top, end = [r"\begin{tabular}{lr}", r"\toprule"], [r"\bottomrule", r"\end{tabular}"]
    return {
        check_terminal: "\n".join("  ".join(line) for line in lines),
        check_markdown: "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])),
        check_latex: "\n".join([*top, body[0], r"\midrule", *body[1:], *end]),
        check_html: f"<table>{page}</table>",
        check_csv: "\n".join(",".join(line) for line in lines),
        check_json: "[[" + "],[".join(",".join(f'"{word}"' for word in line) for line in lines) + "]]",
    }


def test_every_checker_sees_what_a_careless_writer_lets_through():
    seen = dict.fromkeys(careless(Table("", ["a"], [], 1)), 0)
    for payload in PAYLOADS:
        table = Table("caption", ["name", "number"], [[payload, "1"]], left=1)
        lines = [table.head, *table.rows]
        given = {check_csv: lines, check_json: lines}
        for check, text in careless(table).items():
            try:
                check(text, given.get(check, table))
            except (AssertionError, IndexError, ValueError, csv.Error):
                seen[check] += 1
    least = {check_terminal: 5, check_markdown: 25, check_latex: 20, check_html: 8, check_csv: 10, check_json: 8}
    assert all(seen[check] >= number for check, number in least.items()), seen
    plain = Table("caption", ["name", "number"], [["top k", "1"]], left=1)
    for check, text in careless(plain).items():
        check(text, {check_csv: [plain.head, *plain.rows], check_json: [plain.head, *plain.rows]}.get(check, plain))


def test_numbers_of_a_csv_are_whole_and_negative_ones_are_no_formulas():
    lines = [["a", "b", "c", "d"], [0.1 + 0.2, -1.5, None, float("nan")], ["-1.5", True, 3, "x"]]
    assert tables.as_csv(lines).split("\n")[1:] == ["0.30000000000000004,-1.5,,", "'-1.5,true,3,x"]
