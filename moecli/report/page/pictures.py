"""Pictures that a run folder holds already, small enough to be part of a page."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from moecli.report.page.examples import data_uri
from moecli.report.page.values import Picture

DRAWN = {"curves", "load", "labels", "coactivation", "contact"}  # the page draws these itself, or they repeat others
MOST = 12  # of a run
MOST_PIXELS = 4_000_000  # of a picture of ours at most a quarter
MOST_FILM = 600_000  # bytes
SHADES = 64
DOTS = 2.4  # of a picture's pixels for each of the page's


def pictures(folder: Path) -> Iterator[Picture]:
    """Those of ``plots/`` that the page does not draw, PNGs in fewer colours; what is no picture is left out."""
    files = sorted([*folder.glob("plots/*.png"), *folder.glob("plots/*.gif")])
    others = [file for file in files if file.stem.partition("-")[0] not in DRAWN]
    for file in others[:MOST]:
        found = _film(file) if file.suffix == ".gif" else _still(file)
        if found:
            yield found


def _still(file: Path) -> Picture | None:
    try:
        with Image.open(file, formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            buffer = io.BytesIO()
            image.convert("RGB").quantize(SHADES, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            return Picture(file.stem, data_uri("png", buffer.getvalue()), round(image.width / DOTS))
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for what is none, or damaged
        return None


def _film(file: Path) -> Picture | None:
    if file.stat().st_size > MOST_FILM:
        return None
    try:
        with Image.open(file, formats=["GIF"]) as image:
            width = image.width
    except (OSError, ValueError, SyntaxError):
        return None
    return Picture(file.stem, data_uri("gif", file.read_bytes()), width)
