"""What all pictures share: 100 mm of width with 8 pt text, safe labels, colours for all eyes, one way to save."""

from __future__ import annotations

import io
import os
import re
import textwrap
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal

# An MPLBACKEND that matplotlib does not know fails its import, and no picture needs a screen; a notebook's is kept.
if not os.environ.get("MPLBACKEND", "module://").startswith("module://"):
    os.environ["MPLBACKEND"] = "agg"

import numpy as np
from matplotlib import colormaps, font_manager, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from moecli.record.folder import Run, write_whole

MM = 1 / 25.4  # inches
WIDTH = 100  # mm
DPI = 240
FILM_DPI = 120
FRAME, LAST_FRAME = 350, 2000  # milliseconds of a film
LONGEST = 24  # characters of a label
LINE = 62  # characters of a title's line
KEY = 16  # experts that a legend can still list; a colour bar serves beyond
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#999999", "#F0E442")
INK, FAINT = "#222222", "#888888"
MARKERS = "os^Dv<>PX*"
FALLBACK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "Noto Emoji")


@dataclass(frozen=True)
class Film:
    """A figure that ``show(n)`` turns into frame n of ``length``; it is saved as a GIF that ends on a longer last frame."""

    figure: Figure
    show: Callable[[int], None]
    length: int


Picture = Callable[[Run], Mapping[str, Figure | Film]]


@cache
def _fonts() -> list[str]:
    installed = set(font_manager.fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACK if name in installed)]


@cache
def _glyphs() -> frozenset[int]:
    """Every code point that can be drawn here."""
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in _fonts()]
    return frozenset(code for font in fonts for code in font.get_charmap())


def house_style() -> AbstractContextManager[None]:
    """Whatever the user's matplotlibrc says; ticks are made while rendering, so it must hold there too."""
    text = dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8)
    spines = {"axes.spines.top": False, "axes.spines.right": False}
    lines = {"lines.linewidth": 1.3, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6}
    legend = {"legend.frameon": False, "legend.handlelength": 1.2, "legend.columnspacing": 1.0}
    titles = {"axes.titlesize": 8, "axes.titlelocation": "left", "figure.titlesize": 9}
    return style.context(["default", {"font.family": _fonts(), **text, **spines, **lines, **legend, **titles}])


def styled(draw: Picture) -> Picture:
    """Draw in the house style."""

    @wraps(draw)
    def drawn(run: Run) -> Mapping[str, Figure | Film]:
        with house_style():
            return draw(run)

    return drawn


def new(title: str, height: float, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Figure, np.ndarray[Any, Any]]:
    """A figure of ``height`` mm with axes (rows, columns); each line of the title is wrapped."""
    figure = Figure(figsize=(WIDTH * MM, height * MM), layout="constrained")
    FigureCanvasAgg(figure)
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, LINE, break_long_words=False)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left")
    return figure, figure.subplots(rows, columns, squeeze=False, **grid)


def save(picture: Figure | Film, stem: Path) -> Path:
    """Write a PNG whole, or a film's GIF; returns its path."""
    buffer, film = io.BytesIO(), isinstance(picture, Film)
    with house_style():
        if isinstance(picture, Film):
            _write_gif(picture, buffer)
        else:
            picture.savefig(buffer, format="png", dpi=DPI)
    path = stem.with_name(f"{stem.name}.{'gif' if film else 'png'}")
    write_whole(path, buffer.getvalue())
    return path


def _write_gif(film: Film, buffer: io.BytesIO) -> None:
    """The layout of the first frame holds for all, so that nothing jumps."""
    film.figure.set_dpi(min(DPI, FILM_DPI))
    canvas, images = FigureCanvasAgg(film.figure), []
    for number in range(film.length):
        film.show(number)
        canvas.draw()
        film.figure.set_layout_engine("none")
        images.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    palette = Image.fromarray(np.concatenate(images)).quantize(256)  # one for all, so that no frame lacks a colour
    frames = [Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    pauses = [FRAME] * (film.length - 1) + [LAST_FRAME]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=pauses, loop=0)


def safe(text: object, limit: int = LONGEST) -> str:
    r"""Anything a person named, fit to be drawn: never maths, never missing from a legend, never too long.

    A character that no font here has is shown as Python would escape it, as ``\u4e2d``.
    """
    shown = "".join(map(_drawable, str(text))).strip() or "(empty)"
    if len(shown) > limit:
        shown = f"{shown[: limit * 2 // 3]}…{shown[len(shown) - limit // 3 + 1 :]}"
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib hides labels that begin with _


def _drawable(character: str) -> str:
    if character.isspace():
        return " "
    if character.isprintable() and ord(character) in _glyphs():
        return character
    return f"\\u{ord(character):04x}"


def stem(*parts: str) -> str:
    """A file name of the parts; one that had to be changed gets a checksum, so that no two collide."""
    name = "-".join(parts)
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", name)[:60].strip("-")
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode(errors='replace')):08x}"


def heading(run: Run, what: str, layer: str | None = None) -> str:
    """What is shown and where: the first line of every title."""
    of_layer = "" if layer is None else f", {named(layer)}"
    return f"{safe(run.title, 48)}\n{what}{of_layer}"


def named(layer: str) -> str:
    """``layer 0`` of both ``0`` and ``layer 0``; other names are quoted."""
    if layer.startswith("layer "):
        return safe(layer)
    return f"layer {layer}" if layer.isdecimal() else f'layer "{safe(layer)}"'


def with_unit(run: Run, metric: str) -> str:
    unit = run.info.get("units", {}).get(metric)
    name = safe(metric.replace("_", " "))
    return f"{name} ({safe(unit)})" if unit else name


def colors(count: int) -> list[Any]:
    """One colour an expert: Okabe and Ito's up to eight, then steps of viridis."""
    return list(OKABE_ITO[:count]) if count <= len(OKABE_ITO) else list(colormaps["viridis"](np.linspace(0, 1, count)))


def class_colors(count: int) -> list[Any]:
    """One colour a class, from another family than the experts' so that no class looks like an expert."""
    return list(colormaps["cividis"](np.linspace(0.0, 0.85, max(count, 2))))[:count]


def expert_key(figure: Figure, axes: Axes, count: int, columns: int, side: Literal["left", "center", "right"]) -> None:
    """Which colour is which expert: a legend below, or a colour bar where there are too many to list."""
    if count <= KEY:
        handles = [Patch(color=color, label=f"e{expert}") for expert, color in enumerate(colors(count))]
        place: Any = f"outside lower {side}"  # matplotlib's stubs list no such place
        figure.legend(handles=handles, loc=place, ncols=columns)
        return
    scale = ScalarMappable(Normalize(0, count - 1), "viridis")
    bar = figure.colorbar(scale, ax=axes, location="bottom", label="expert", aspect=30)
    bar.ax.locator_params(axis="x", integer=True)


def level(axes: Axes, value: float, text: str = "") -> None:
    """Mark what chance, or an even split, would give; its name stands in the margin, where no curve runs."""
    axes.axhline(value, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)), zorder=3, label="_level")
    axes.annotate(text, (1.01, value), xycoords=("axes fraction", "data"), color="#555555", va="center")


def smooth(values: np.ndarray[Any, Any], window: int) -> np.ndarray[Any, Any]:
    """Centred running mean along the first axis, over what is finite: (S, ...) -> (S, ...)."""
    if window <= 1:
        return values
    flat = values.reshape(len(values), -1)
    known = np.isfinite(flat)
    kernel = np.ones(window)
    total, count = (
        np.stack([np.convolve(column, kernel, "same") for column in part.T], -1)
        for part in (np.where(known, flat, 0.0), known.astype(float))
    )
    return np.where(known, total / np.maximum(count, 1), np.nan).reshape(values.shape)
