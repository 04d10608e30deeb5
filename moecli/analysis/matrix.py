"""What combines with what, and why not: every router against gates, models on kinds of data, terms and trainers.

The same needs and gives that refuse a training decide here, on routers built small with their defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moecli.compatibility import Part, part, refusals, router_part, small_router
from moecli.config import build, option_node, part_class, raw_node, registry, signature

TASKS = {
    "classes": Part("task=digits", frozenset(), frozenset({"items", "vectors", "image", "classes", "known"})),
    "real": Part("task=regions", frozenset(), frozenset({"items", "vectors", "real", "known"})),
    "noise": Part("task=denoising", frozenset(), frozenset({"items", "vectors", "noisy image", "real", "known"})),
    "text": Part(
        "task=stdlib_text", frozenset({"causal"}), frozenset({"sequence", "ids", "vectors", "classes", "known"})
    ),
    "pairs": Part(
        "task=span_corruption",
        frozenset({"causal"}),
        frozenset({"sequence", "ids", "source", "vectors", "classes", "known"}),
    ),
}
# model, kind of data, family
SETTINGS = (("layer", "classes", None), ("layer", "real", None), ("density", "classes", "categorical"),
            ("density", "real", "gaussian"), ("transformer", "text", None), ("lstm", "text", None),
            ("seq2seq", "pairs", None), ("vision", "classes", None), ("diffusion", "noise", None))  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One combination: fits, or the sentence that refuses it."""

    router: str
    column: str
    refusal: str | None


def cells() -> list[Cell]:
    """Every router against every column."""
    return [Cell(router, column, _refusal(router, column)) for router in registry()["router"] for column in columns()]


def columns() -> list[str]:
    models = [f"model={model} ({data})" for model, data, _ in SETTINGS]
    gates = [f"gate={gate}" for gate in registry()["gate"]]
    terms = [f"auxiliary={term}" for term in registry()["auxiliary"] if term != "none"]
    trainers = [f"trainer={trainer}" for trainer in registry()["trainer"]]
    return [*models, *gates, *terms, *trainers]


def _refusal(router: str, column: str) -> str | None:
    group, _, rest = column.partition("=")
    if group == "gate":
        return gate_refusal(router, rest)
    parts = [_router(router)]
    if group == "model":
        parts += [*setting_parts(rest), *default_gate(router), *advised_terms(router)]
    elif group == "trainer":
        parts = [
            *trainer_parts(rest, router),
            *parts,
            *advised_terms(router),
        ]  # in the order in which a training would refuse
    else:
        parts += [part(column, build(option_node("auxiliary", rest))), _any_data(router)]
    found = refusals(parts)
    return found[0] if found else None


def _router(router: str) -> Part:
    return router_part(f"router={router}", small_router(router))


def advised_terms(router: str) -> list[Part]:
    """What teaches or balances a router's gate unless the user says otherwise."""
    names = raw_node("router", router).get("recommends", {}).get("auxiliary", [])
    return [part(f"auxiliary={name}", build(option_node("auxiliary", name))) for name in names]


def setting_parts(column: str) -> list[Part]:
    """The parts of a column such as ``density (real)``, its router apart."""
    model, _, data = column.rstrip(")").partition(" (")
    family = next(family for m, d, family in SETTINGS if (m, d) == (model, data))
    parts = [TASKS[data], part(f"model={model}", part_class({"_target_": _target("model", model)}))]
    return [
        *parts,
        *([part(f"family={family}", part_class({"_target_": _target("family", family)}))] if family else []),
    ]


def trainer_parts(trainer: str, router: str) -> list[Part]:
    """A classical mixture of linear experts under a Gaussian, which every trainer can fit if the router lets it."""
    chosen = [("expert", "linear"), ("trainer", trainer)]
    parts = [part(f"{group}={option}", part_class({"_target_": _target(group, option)})) for group, option in chosen]
    return [*setting_parts("density (real)"), *parts, *default_gate(router)]


def default_gate(router: str) -> list[Part]:
    """The linear gate, where the router takes one."""
    if "gate" not in signature(_target("router", router)):
        return []
    return [part("gate=linear", part_class({"_target_": _target("gate", "linear")}))]


def _class_part(group: str, option: str) -> Part:
    return part(f"{group}={option}", part_class({"_target_": _target(group, option)}))


def _target(group: str, option: str) -> str:
    return raw_node(group, option)["_target_"]


def _any_data(router: str) -> Part:
    """Data that gives whatever the router itself asks for."""
    return Part("task", frozenset(), small_router(router).needs | {"sequence"})


def gate_refusal(router: str, gate: str) -> str | None:
    """A gate that the router never asks for is refused, because nobody would use it, and so is one that it cannot use."""
    if "gate" in signature(_target("router", router)):
        parts = [
            Part("task", frozenset(), frozenset({"vectors", "item rank 2"})),
            _router(router),
            _class_part("gate", gate),
        ]
        odds = replace(parts[1], needs=parts[1].needs & {"odds"})
        return next(iter([*refusals(parts, asking=parts[2]), *refusals(parts, asking=odds)]), None)
    return (
        f"gate={gate} (command line): router={router} has no gate, so nothing would use it. "
        "Leave gate out, or choose another router: moe ls router"
    )


def lines() -> list[str]:
    """The matrix as text: a mark a cell, and every reason once below."""
    table: dict[str, dict[str, str]] = {}
    for cell in cells():
        table.setdefault(cell.column, {})[cell.router] = cell.refusal or ""
    routers = list(registry()["router"])
    reasons = list(dict.fromkeys(why(r) for row in table.values() for r in row.values() if r))
    widths = [max(len(router), 3) for router in routers]
    head = " " * 28 + "  ".join(routers)
    body = []
    for column, row in table.items():
        marks = [
            ("✓" if not row[r] else str(reasons.index(why(row[r])) + 1)).ljust(w)
            for r, w in zip(routers, widths, strict=True)
        ]
        body.append(f"{column:28s}{'  '.join(marks)}".rstrip())
    claims = ["", *claim_lines(routers, widths)]
    return [head, *body, *claims, "", *(f"{number:3d}  {reason}" for number, reason in enumerate(reasons, 1))]


def why(refusal: str) -> str:
    """The sentence without the names it begins with, which the table shows."""
    return refusal.partition("): ")[2]


def claim_lines(routers: list[str], widths: list[int]) -> list[str]:
    """What each router claims with its default options, in training / in evaluation where the two differ."""
    out = []
    for claim in ("density", "balanced", "trains_gate", "causal", "independent"):
        marks = []
        for router, width in zip(routers, widths, strict=True):
            built = small_router(router)
            train, test = (getattr(built.claims(training), claim) for training in (True, False))
            text = "yes" if train and test else "no" if not (train or test) else f"{train}/{test}"
            marks.append(text.ljust(width))
        out.append(f"{claim:28s}{'  '.join(marks)}".rstrip())
    return out
