"""Text coloured by expert: nothing is lost, nothing is markup, and black stands out on every colour."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from moecli.analysis.coloured_text import Span, as_html, background, for_terminal, palette, spans, visible, windows
from moecli.plots.figure import OKABE_ITO, colors
from tests.plots.payloads import PAYLOADS


class Read(HTMLParser):
    """What a browser would make of a fragment."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text, self.attributes = "", set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(-1, 3)), max_size=20))
@settings(max_examples=50, deadline=None)
def test_spans_join_to_the_text_and_neighbours_differ(tokens):
    found = spans([text for text, _ in tokens], [expert for _, expert in tokens])
    assert "".join(span.text for span in found) == "".join(text for text, _ in tokens)
    assert all(a.expert != b.expert for a, b in pairwise(found))


def test_windows_are_spread_and_in_order():
    tokens = {"sequence": np.repeat(np.arange(5), 3), "position": np.tile([2, 0, 1], 5), "id": np.arange(15) % 4}
    tokens["expert"] = np.arange(15)[:, None] % 2
    found = windows(tokens, list("abcd"), 3)
    assert [window.rows.tolist() for window in found] == [[1, 2, 0], [7, 8, 6], [13, 14, 12]]
    assert found[0].symbols == ["b", "c", "a"] and found[0].expert.tolist() == [1, 0, 0]


def test_html_is_inert_whatever_the_text():
    page = Read(as_html([Span(text, number % 3 - 1) for number, text in enumerate(PAYLOADS)], 2))
    assert set(page.tags) == {"div", "p", "pre", "span"} and page.attributes == {"class", "style", "title"}
    for text in PAYLOADS:
        assert visible(text, breaks=True) in page.text


def test_the_reader_would_see_markup():
    assert "script" in Read("<script>").tags  # the control


def test_the_terminal_gets_text_alone():
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True, color_system="truecolor").print(
        for_terminal([Span("[red]\x1b[31mx\x00\u202e", 0), Span("y\n", -1)], 2)
    )
    written = out.getvalue()
    assert "[red]" in written and "\\u001b[31mx\\u0000\\u202e" in written
    assert "\x1b[31m" not in written and "\x00" not in written


@pytest.mark.parametrize("num_experts", [1, 8, 9, 64])
def test_black_stands_out_and_colours_are_those_of_the_pictures(num_experts):
    assert list(palette(num_experts)) == colors(num_experts) and len(set(palette(num_experts))) == num_experts
    for expert in range(-1, num_experts):
        channels = np.array([int(background(expert, num_experts)[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        assert (luminance + 0.05) / 0.05 >= 7  # WCAG AAA for black text
    assert palette(8) == OKABE_ITO
