"""A report as one HTML page that asks nothing of any network and runs no script but its own.

Jinja2 escapes every value (autoescape), control characters are written out, and the page's own policy
(Content-Security-Policy) names by their SHA-256 the one style and the one script that a browser may use.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from moecli.report.page.chart import chart, legend
from moecli.report.page.gather import Content
from moecli.report.page.heat import heat
from moecli.report.terminal import visible

ALWAYS = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"


def page(content: Content) -> str:
    """The whole page; the same content gives the same text."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = f"{ALWAYS}; style-src {_hash(style)}; script-src {_hash(script)}"
    template = _environment().from_string(_asset("page.html"))
    return template.render(report=content, style=Markup(style), script=Markup(script), policy=policy)


def _asset(name: str) -> str:
    return (files("moecli.report.page") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {
        "chart": chart,
        "heat": heat,
        "legend": legend,
        "key": "{:.5g}".format,
    }
    return environment


def _shown(value: object) -> object:
    """Whatever a user called things, with control characters written out; markup of our own as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
