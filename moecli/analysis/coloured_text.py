"""Text coloured by expert: each token with the expert that serves it -> an HTML fragment, or text for the terminal.

The pictures, ``moe explain`` and the report share these colours, so that an expert looks the same everywhere.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.text import Text

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#999999", "#F0E442")
PALE = 0.55  # of white in a token's background, on which black text is read easily
NOBODY = "#FFFFFF"  # behind a token that no expert serves
SEEN = {" ": "·", "\n": "↵", "\t": "→"}  # what has no shape of its own, while text is shown token by token


@dataclass(frozen=True)
class Span:
    """Neighbouring tokens of one expert; -1 where nobody serves them."""

    text: str
    expert: int


@dataclass(frozen=True)
class Window:
    """One recorded sequence of T tokens."""

    rows: NDArray[np.integer]  # (T,) where its tokens stand in the trace
    symbols: list[str]
    expert: NDArray[np.integer]  # (T,) the first one of each token, -1 where nobody serves it


def windows(tokens: Mapping[str, NDArray[Any]], symbols: Sequence[str], most: int) -> list[Window]:
    """Up to ``most`` sequences of ``TraceReader.tokens``, evenly spread, whose ``id`` number ``symbols``."""
    numbers = np.unique(tokens["sequence"])
    chosen = numbers[np.unique(np.linspace(0, len(numbers) - 1, most).astype(int))]
    found = [np.flatnonzero(tokens["sequence"] == number) for number in chosen]
    in_order = [rows[np.argsort(tokens["position"][rows], kind="stable")] for rows in found]
    first = tokens["expert"][:, 0].astype(int)
    return [Window(rows, [symbols[i] for i in tokens["id"][rows]], first[rows]) for rows in in_order]


def spans(tokens: Sequence[str], expert: Iterable[int]) -> list[Span]:
    """Tokens with their first expert (T,) each -> neighbours of one expert together; the texts join to the whole."""
    pairs = zip(tokens, map(int, expert), strict=True)
    return [Span("".join(text for text, _ in group), number) for number, group in groupby(pairs, lambda pair: pair[1])]


@cache
def palette(num_experts: int) -> tuple[str, ...]:
    """One colour an expert, as ``#rrggbb``: Okabe and Ito's up to eight, then steps of viridis."""
    if num_experts <= len(OKABE_ITO):
        return OKABE_ITO[:num_experts]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return tuple(to_hex(colormaps["viridis"](expert / (num_experts - 1))) for expert in range(num_experts))


def background(expert: int, num_experts: int) -> str:
    """The expert's colour, paled until black text stands out on it; white for nobody (-1)."""
    return _background(palette(num_experts), expert)


def _background(colors: Sequence[str], expert: int) -> str:
    if expert < 0:
        return NOBODY
    channels = (int(colors[expert][i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(PALE * 255 + (1 - PALE) * channel):02X}" for channel in channels)


def as_html(parts: Iterable[Span], num_experts: int) -> str:
    """A ``<div>`` with a legend and the text: no script, no link, nothing of the text is markup.

    Black on pale colours in light and dark pages; each span says its expert when pointed at.
    """
    colors = palette(num_experts)
    paint = [_background(colors, expert) for expert in range(num_experts)]
    shown = list(parts)
    legend = " ".join(_mark(f"e{e}", f"e{e}", paint[e]) for e in sorted({s.expert for s in shown if s.expert >= 0}))
    body = "".join(
        _mark(
            visible(s.text, breaks=True), f"e{s.expert}" if s.expert >= 0 else "nobody", _background(colors, s.expert)
        )
        for s in shown
    )
    text = f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere">{body}</pre>'
    return f'<div class="coloured-text"><p>{legend}</p>{text}</div>'


def _mark(text: str, title: str, color: str) -> str:
    return f'<span title="{title}" style="background:{color};color:#000">{html.escape(text)}</span>'


def for_terminal(parts: Iterable[Span], num_experts: int) -> Text:
    """A rich ``Text`` without markup of its own, legend first; control characters are shown, never sent."""
    from rich.text import Text

    colors, shown, text = palette(num_experts), list(parts), Text()
    for expert in sorted({span.expert for span in shown if span.expert >= 0}):
        text.append(f"e{expert}", f"black on {_background(colors, expert)}").append(" ")
    text.append("\n")
    for span in shown:
        text.append(visible(span.text, breaks=True), f"black on {_background(colors, span.expert)}")
    return text


def visible(text: str, breaks: bool = False) -> str:
    """Line ends and tabs as signs, other control characters as Python escapes them; with ``breaks`` lines still end."""
    return "".join(_visible(character, breaks) for character in text)


def _visible(character: str, breaks: bool) -> str:
    if character == " " and breaks:
        return character
    if character in SEEN:
        return SEEN[character] + ("\n" if breaks and character == "\n" else "")
    return character if character.isprintable() else f"\\u{ord(character):04x}"
