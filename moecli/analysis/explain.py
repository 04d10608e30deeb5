"""One part explained: what it does, what it claims and needs, and its options with their help."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import asdict
from typing import Any

from moecli.compatibility import small_router
from moecli.config import describe, option_help, option_node, part_class, part_options, text


def part_lines(group: str, option: str) -> list[str]:
    """What ``moe show GROUP=OPTION`` prints.  Raises UsageError with the nearest name."""
    node = option_node(group, option)
    cls = part_class(node)
    doc = inspect.cleandoc(cls.__doc__ or "")
    lines = [f" {option} · {describe(group, option)}", "", *textwrap.indent(doc, " ").split("\n"), ""]
    if group == "router":
        lines += _claims(option)
    wants = sorted(getattr(cls, "needs", ()))
    lines += [f" needs     {', '.join(wants)}"] if wants else []
    return [*lines, *_options(group, option, node), f" source    {cls.__module__}"]


def _claims(option: str) -> list[str]:
    router = small_router(option)
    training, test = (asdict(router.claims(when)) for when in (True, False))
    marks = []
    for claim, holds in test.items():
        differs = "" if training[claim] == holds else " (not in training)" if holds else " (only in training)"
        marks.append(f"{claim.replace('_', ' ')} {'yes' if holds else 'no'}{differs}")
    return [f" claims    {' · '.join(marks)}"]


def _options(group: str, option: str, node: dict[str, Any]) -> list[str]:
    helps, names = option_help(group, option), part_options(node)
    shown = [(f"{group}.{name}={_short(node.get(name))}", helps.get(name, "")) for name in names]
    width = max((len(text) for text, _ in shown), default=0)
    return [f" {'options' if not i else '       '}   {text:{width}s}  {note}" for i, (text, note) in enumerate(shown)]


def _short(value: Any) -> str:
    """A nested part by the name of its module, anything else as a user would type it."""
    if not isinstance(value, dict):
        return text(value)
    return value["_target_"].rsplit(".", 2)[1] if "_target_" in value else ", ".join(value) or "{}"
