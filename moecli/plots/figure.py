"""What all pictures share: 100 mm of width with 8 pt text, safe labels, colours for all eyes, one way to save.

A ``Picture`` is a figure with its numbers; ``save`` writes it as a PNG (a film as a GIF) with the numbers beside it.
"""

from __future__ import annotations

import io
import os
import re
import textwrap
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal

# An MPLBACKEND that matplotlib does not know fails its import, and no picture needs a screen; a notebook's is kept.
if not os.environ.get("MPLBACKEND", "module://").startswith("module://"):
    os.environ["MPLBACKEND"] = "agg"

import numpy as np
from matplotlib import colormaps, font_manager, style, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from moecli.analysis.coloured_text import OKABE_ITO as OKABE_ITO  # for the kinds
from moecli.analysis.coloured_text import palette
from moecli.plots.numbers import Table, as_csv
from moecli.record.folder import Run, write_whole

MM = 1 / 25.4  # inches
WIDTH = 100  # mm
DPI = 240
FILM_DPI = 120
FRAME, LAST_FRAME = 350, 2000  # milliseconds of a film
LONGEST = 24  # characters of a label
LINE = 59  # characters of a title's line
KEY = 16  # experts that a legend can still list; a colour bar serves beyond
FEW = 30  # points of a curve, up to which each is marked: a single one would not be seen
INK, FAINT = "#222222", "#888888"
MARKERS = "os^Dv<>PX*"
FALLBACK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Arial Unicode MS", "Noto Emoji")


@dataclass(frozen=True)
class Picture:
    """A figure, and what it shows as numbers."""

    figure: Figure
    numbers: Table


@dataclass(frozen=True)
class Film(Picture):
    """``show(n)`` turns the figure into frame n of ``length``; it is saved as a GIF that ends on a longer last frame.

    A GIF has 256 colours, found for all frames together; those in ``exact`` (a legend's) are among them as they are.
    """

    show: Callable[[int], None]
    length: int
    exact: Sequence[Any] = ()


Draw = Callable[[Run], Mapping[str, Picture]]


@cache
def fonts() -> list[str]:
    """Families that are drawn with, each where those before it lack a character."""
    installed = set(font_manager.fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACK if name in installed)]


@cache
def _glyphs() -> frozenset[int]:
    """Every code point that can be drawn here."""
    installed = [font_manager.get_font(font_manager.findfont(name)) for name in fonts()]
    return frozenset(code for font in installed for code in font.get_charmap())


def house_style() -> AbstractContextManager[None]:
    """Whatever the user's matplotlibrc says; ticks are made while rendering, so it must hold there too."""
    text = dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8)
    spines = {"axes.spines.top": False, "axes.spines.right": False}
    lines = {"lines.linewidth": 1.3, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6}
    legend = {"legend.frameon": False, "legend.handlelength": 1.2, "legend.columnspacing": 1.0}
    titles = {"axes.titlesize": 8, "axes.titlelocation": "left", "figure.titlesize": 9}
    return style.context(["default", {"font.family": fonts(), **text, **spines, **lines, **legend, **titles}])


def styled(draw: Draw) -> Draw:
    """Draw in the house style."""

    @wraps(draw)
    def drawn(run: Run) -> Mapping[str, Picture]:
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


def save(picture: Picture, stem: Path) -> Path:
    """Write a PNG whole, or a film's GIF, and its numbers beside it as CSV; returns the picture's path."""
    buffer, film = io.BytesIO(), isinstance(picture, Film)
    with house_style():
        if isinstance(picture, Film):
            _write_gif(picture, buffer)
        else:
            picture.figure.savefig(buffer, format="png", dpi=DPI)
    write_whole(stem.with_name(f"{stem.name}.csv"), as_csv(picture.numbers).encode())
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
    palette = _palette(np.concatenate(images), film.exact)  # (256, 3)
    frames = [_indexed(image, palette) for image in images]
    pauses = [FRAME] * (film.length - 1) + [LAST_FRAME]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=pauses, loop=0)


def _palette(image: np.ndarray[Any, Any], exact: Sequence[Any]) -> np.ndarray[Any, Any]:
    """White, the ``exact`` ones, and the best others for (H, W, 3): (256, 3)."""
    kept = np.round(255 * np.array([to_rgb(color) for color in ("white", *exact)])).astype(np.uint8)
    found = Image.fromarray(image).quantize(256 - len(kept)).getpalette() or []
    others = np.array(found, dtype=np.uint8).reshape(-1, 3)
    return np.concatenate([kept, others])[:256]


def _indexed(image: np.ndarray[Any, Any], palette: np.ndarray[Any, Any]) -> Image.Image:
    """Every pixel (H, W, 3) as its nearest colour, found here because Pillow's own search is not exact."""
    from scipy.spatial import cKDTree

    flat = image.reshape(-1, 3).astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    colors, place = np.unique(flat, return_inverse=True)
    rgb = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], -1)
    nearest = cKDTree(palette.astype(float)).query(rgb.astype(float))[1].astype(np.uint8)
    frame = Image.fromarray(nearest[place].reshape(image.shape[:2]), "L").convert("P")
    frame.putpalette(palette.ravel().tolist())
    return frame


def safe(text: object, limit: int = LONGEST) -> str:
    r"""Anything a person named, fit to be drawn: never maths, never missing from a legend, never too long.

    A character that no font here has is shown as Python would escape it, as ``\u4e2d``.
    """
    shown = "".join(map(drawable, str(text))).strip() or "(empty)"
    if len(shown) > limit:
        shown = f"{shown[: limit * 2 // 3]}…{shown[len(shown) - limit // 3 + 1 :]}"
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib hides labels that begin with _


def drawable(character: str) -> str:
    """A space for any space, the character where a font here has it, else its number as Python writes it."""
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
    """``layer 0`` of both ``0`` and ``layer 0``, ``layer0`` and ``block1`` as they are; other names are quoted."""
    if re.fullmatch(r"(layer|block) ?\d+", layer):
        return safe(layer)
    return f"layer {layer}" if layer.isdecimal() else f'layer "{safe(layer)}"'


def with_unit(run: Run, metric: str) -> str:
    unit = run.info.get("units", {}).get(metric)
    name = safe(metric.replace("_", " "))
    return f"{name} ({safe(unit)})" if unit else name


def colors(count: int) -> list[Any]:
    """One colour an expert: Okabe and Ito's up to eight, then steps of viridis."""
    return list(palette(count))


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


def steps_axis(axes: Axes, name: str = "training step") -> None:
    """Whole numbers only: there is no half step."""
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True, min_n_ticks=1))


def marker(steps: Sequence[Any] | np.ndarray[Any, Any]) -> str | None:
    return "." if len(steps) <= FEW else None


def log_axis(axes: Axes, values: np.ndarray[Any, Any]) -> None:
    """A logarithmic y axis with plain numbers: at 1, 2 and 5 of each decade where there are few decades."""
    axes.set_yscale("log")
    known = values[np.isfinite(values) & (values > 0)]
    decades = np.log10(known.max() / known.min()) if len(known) else 0
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=8))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())


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
