"""A contact sheet: all pictures of a run on one page, each with its file's name."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from moecli.record.folder import write_whole

COLUMNS = 3
WIDTH, GAP, CAPTION = 720, 24, 34  # pixels: of a picture, between two, and above each
PAPER, INK = "#FFFFFF", "#222222"


def sheet(paths: Sequence[Path], path: Path) -> Path:
    """Draw PNGs and GIFs (their last frame) in columns, each next one where most room is left, into ``path``."""
    thumbs = [(file.name, _thumb(file)) for file in paths]
    heights, places = [GAP] * COLUMNS, []
    for _, image in thumbs:
        column = heights.index(min(heights))
        places.append((GAP + column * (WIDTH + GAP), heights[column]))
        heights[column] += CAPTION + image.height + GAP
    page = Image.new("RGB", (GAP + min(COLUMNS, len(thumbs)) * (WIDTH + GAP), max(heights)), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 22)
    for (name, image), (left, top) in zip(thumbs, places, strict=True):
        pen.text((left, top), name, fill=INK, font=font)
        page.paste(image, (left, top + CAPTION))
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())
    return path


def _thumb(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.seek(getattr(image, "n_frames", 1) - 1)
        whole = image.convert("RGB")
    return whole.resize((WIDTH, round(whole.height * WIDTH / whole.width)), Image.Resampling.LANCZOS)
