"""SVG that a page holds itself: every element is made by ``tag``, so no name that a user chose becomes markup."""

from __future__ import annotations

from unicodedata import east_asian_width

from markupsafe import Markup, escape

from moecli.report.terminal import visible

WIDE = set("mwMWQOGD@%…")


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element; of an attribute's name a trailing underscore is dropped, and others become hyphens."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_shown(value))}"' for key, value in attributes.items()
    )
    inner = "".join(escape(_shown(child)) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>") if inner else Markup(f"<{name}{written}/>")


def elided(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def width(text: str) -> float:
    """Pixels of a text at most, at the size of ticks and names: twelve."""
    return sum(13.0 if east_asian_width(c) in "WF" else 10.5 if c in WIDE else 7.5 for c in visible(text))


def _shown(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return value if isinstance(value, Markup) else visible(str(value))
