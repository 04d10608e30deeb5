"""One part explained: what it does, its papers, what it claims and needs, and its options with type and help."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from moecli.compatibility import REMEDIES, routers_giving, small_router
from moecli.config import (
    conf_root,
    describe,
    find,
    option_help,
    option_node,
    part_class,
    part_options,
    plugin_roots,
    raw_node,
    registry,
    text,
)


def part_lines(group: str, option: str) -> list[str]:
    """What ``moe show GROUP=OPTION`` prints.  Raises UsageError with the nearest name."""
    if group in ("experiment", "sweep"):
        lines = [f" {line}" for line in header(option, group) if not line.startswith("paper: ")]
        words = raw_node(group, option).items() if group == "sweep" else ()
        return [
            f" {option} ·{lines[0]}",
            *lines[1:],
            *(f"   {key}={text(value)}" for key, value in words),
            *_papers(group, option),
        ]
    node = option_node(group, option)
    cls = part_class(node)
    lines = [f" {option} · {describe(group, option)}", "", *textwrap.indent(_doc(cls), " ").split("\n"), ""]
    if group == "router":
        lines += _claims(option)
    lines += [*_meets(cls), *_recommends(group, option), *_options(group, option, node)]
    return [*lines, f" source    {cls.__module__}", *_papers(group, option)]


def _doc(cls: Any) -> str:
    """The class docstring without its markup; of a torch optimizer only what it says first."""
    doc = inspect.cleandoc(cls.__doc__ or "").replace("``", "")
    return doc.split("\n")[0] if cls.__module__.startswith("torch.") else doc


def header(name: str, group: str = "experiment") -> list[str]:
    """What an experiment's file says before its first key: what it is, its claim, command, cost, last result, paper."""
    lines = find(group, name).read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in lines if line.startswith("# ") and not line.startswith("# @")]


def _claims(option: str) -> list[str]:
    """What the router with its default options promises, and why not what it does not."""
    router = small_router(option)
    training, test = (asdict(router.claims(when)) for when in (True, False))
    marks = []
    for claim, holds in test.items():
        differs = "" if training[claim] == holds else " (not in training)" if holds else " (only in training)"
        marks.append(f"{claim.replace('_', ' ')} {'yes' if holds else 'no'}{differs}")
    why = [f"           not {claim}: {reason}" for claim, reason in router.why_not().items() if not test[claim]]
    return [f" claims    {' · '.join(marks)}", *why]


def _meets(cls: Any) -> list[str]:
    needs, gives = (sorted(getattr(cls, side, ())) for side in ("needs", "gives"))
    lines = [f" needs     {', '.join(needs)}"] if needs else []
    lines += [f"           without {need}: {_remedy(need)}" for need in needs if need in REMEDIES]
    return lines + ([f" gives     {', '.join(gives)}"] if gives else [])


def _remedy(need: str) -> str:
    said = REMEDIES[need].format(options=", ".join(routers_giving(need)))
    return said[0].lower() + said[1:]


def _recommends(group: str, option: str) -> list[str]:
    advice = raw_node(group, option).get("recommends", {})
    words = " ".join(f"{key}={text(value)}" for key, value in advice.items())
    return [f" advises   {words}   (what you set yourself comes first)"] if advice else []


# -- options ------------------------------------------------------------------------------------------


def _options(group: str, option: str, node: dict[str, Any]) -> list[str]:
    helps, options = option_help(group, option), part_options(node)
    at = f"{group}.{option}" if group == "auxiliary" else group
    rows = [(f"{at}.{name}={_short(node.get(name))}", kind(o.type), helps.get(name, "")) for name, o in options.items()]
    first, second = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    return [
        f" {'options' if not i else '       '}   {key:{first}s}  {values:{second}s}  {note}".rstrip()
        for i, (key, values, note) in enumerate(rows)
    ]


def _short(value: Any) -> str:
    """A nested part by its option, anything else as a user would type it."""
    if not isinstance(value, dict):
        return text(value)
    return _made_of(value["_target_"]) if "_target_" in value else ", ".join(value) or "{}"


def _made_of(target: str) -> str:
    return next(o for g, options in registry().items() for o in options if raw_node(g, o).get("_target_") == target)


BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
HUGE = 1e9  # a bound above this keeps numbers representable, and tells nobody anything
PLAIN = {int: "whole number", float: "number", str: "text", bool: "true|false", list: "list", NoneType: "null"}


def kind(of: Any) -> str:
    """A type in a user's words: ``whole number ≥ 1``, ``auto|position|batch``, ``number or null``; "" for any."""
    origin, inner = get_origin(of), get_args(of)
    if origin is Annotated:
        limits = [limit for bound in inner[1:] for limit in getattr(bound, "metadata", [])]
        bounds = [(sign, getattr(x, name)) for x in limits for name, sign in BOUNDS.items() if hasattr(x, name)]
        said = ", ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound < HUGE)
        return f"{kind(inner[0])} {said}".strip()
    if origin is Literal:
        return "|".join(map(text, inner))
    if origin is list:
        return f"list of {kind(inner[0])}s" if inner and kind(inner[0]) in ("number", "text") else "list"
    if inner and origin is not dict:
        return " or ".join(kind(part) for part in inner)
    return PLAIN.get(of, "")


# -- papers -------------------------------------------------------------------------------------------


def paper_keys(group: str, option: str) -> list[str]:
    """The keys of the ``# paper: key1, key2`` line among an option's first comments."""
    found = re.search(r"^# paper: (.+)$", registry()[group][option].read_text(encoding="utf-8"), re.MULTILINE)
    return [key.strip() for key in found[1].split(",")] if found else []


def bibliography() -> dict[str, str]:
    """{key: BibTeX entry} of our ``conf/references.bib`` and of every plugin's."""
    files = [root / "references.bib" for root in (conf_root(), *plugin_roots())]
    return {key: entry for file in files if file.is_file() for key, entry in _entries(file.read_text(encoding="utf-8"))}


def _entries(bibtex: str) -> Iterator[tuple[str, str]]:
    for entry in re.split(r"^(?=@)", bibtex, flags=re.MULTILINE)[1:]:
        yield entry.partition("{")[2].partition(",")[0].strip(), entry.strip()


def _papers(group: str, option: str) -> list[str]:
    known = bibliography()
    entries = [known.get(key, f"{key}: in no references.bib") for key in paper_keys(group, option)]
    return [line for entry in entries for line in ("", *textwrap.indent(entry, " ").split("\n"))]
