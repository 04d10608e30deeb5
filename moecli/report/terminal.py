"""Run folders as text for a terminal: what was trained, how well, and what every expert did.

Plain lines: no markup is read from what a user called things.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from moecli.record.folder import Run

MOST_ROWS = 32  # of the table of experts; summary.json has all


def visible(text: str) -> str:
    """The same text with control characters written out, so that no name moves the cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def count(number: float) -> str:
    """133,770 -> 134k."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "nan"
    return f"{value:.{digits}f}" if abs(value) < 1e4 else f"{value:.3g}"


def header(info: dict[str, Any]) -> list[str]:
    """Two lines: what is combined, and what it costs."""
    config, sizes = info["config"], info["parameters"]
    experts = ", ".join(dict.fromkeys(f"{layer['experts']} × {config['expert']}" for layer in info["layers"].values()))
    router = "dense twin" if info["twin"] else config["router"]
    k = f" (k={config['router.k']})" if "router.k" in config and not info["twin"] else ""
    threads = f", {info['threads']} thread{'s' if info['threads'] > 1 else ''}" if info["device"] == "cpu" else ""
    twin = "" if info["twin"] else " · dense twin: model.twin=true"
    return [
        f" {config['task']} · {router}{k} · {experts} · {config['model']}      {info['device'].upper()}{threads}",
        f" parameters {count(sizes['total'])} total, {count(sizes['active'])} active · "
        f"{count(info['flops'])} FLOP/{info['unit']}{twin}",
    ]


def result_line(run: Run) -> str:
    """Quality beside its chance level, and where the run lies."""
    info, summary = run.info, run.summary
    metric = f"test/{info['headline']}"
    value, chance = summary["metrics"][metric], summary["chance"].get(metric)
    unit = info["units"].get(info["headline"], "")
    leak = " · its router saw the future (model.allow_leak)" if info["leak"] else ""
    return (
        f" finished in {info['seconds']:.0f} s · test {info['headline']} {number(value)}{' ' + unit if unit else ''} "
        f"(chance {number(chance)}) · {run.path}{leak}"
    )


def answers_lines(run: Run) -> list[str]:
    """How good answers in words are, where there are any, and where they lie."""
    file, found = run.path / "answers.tsv", run.summary["metrics"]
    if not file.exists():
        return []
    scores = [f"{n[5:]} {number(found[n])}" for n in found if n[:5] == "test/" and f"valid/{n[5:]}" not in found]
    return [f" test {' · '.join(scores)} · {file}"]


def experts_table(run: Run) -> list[str]:
    """One row per expert: load, first choices, entropy, what it serves, how quality changes without it."""
    rows = run.summary["experts"]
    if not rows:
        return []
    several = len({row["layer"] for row in rows}) > 1
    label = f"serves ({rows[0]['label']})" if rows[0]["label"] else ""
    head = ["layer", "expert", "load", "first choice", "entropy", label, f"{run.info['headline']} without it"]
    lines = [head, *(_expert(row, run.info) for row in rows[:MOST_ROWS])]
    more = [f" … {len(rows) - MOST_ROWS} more in {run.path}/summary.json"] if len(rows) > MOST_ROWS else []
    return [
        *columns(
            [line[0 if several else 1 :] for line in lines], left=(*range(2 if several else 1), 5 if several else 4)
        ),
        *more,
    ]


def _expert(row: dict[str, Any], info: dict[str, Any]) -> list[str]:
    serves = ", ".join(f"{name} ({share:.0%})" for name, share in row["serves"])
    shares = [f"{row['load']:.0%}", f"{row['first']:.0%}", f"{row['entropy']:.2f}"]
    return [row["layer"], f"e{row['expert']}", *shares, serves, _change(row, info)]


def columns(rows: list[list[str]], left: Sequence[int]) -> list[str]:
    """Rows of text under each other: the columns ``left`` aligned left, the others right."""
    rows = [[visible(text) for text in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        " "
        + "  ".join(
            t.ljust(w) if i in left else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _change(row: dict[str, Any], info: dict[str, Any]) -> str:
    change = row["without"]
    if change is None:
        return ""
    if info["headline"] == "accuracy":
        return f"{100 * change:+.1f} pt".replace("-", "−")
    return f"{change:+.3f}".replace("-", "−")


def layer_lines(run: Run) -> Iterable[str]:
    """Per layer: mutual information beside its chance level, effective experts, what was dropped."""
    for layer in run.summary["layers"]:
        name, experts = layer["layer"], run.layers[layer["layer"]]["experts"]
        parts = [
            f"experts and {label}: NMI {m['value']:.2f} ({_chance(m)}, {name})" for label, m in layer["nmi"].items()
        ]
        parts += [f"effective experts {layer['effective_experts']:.1f} of {experts}", _dropped(layer)]
        yield " " + " · ".join(parts)


def _dropped(layer: dict[str, Any]) -> str:
    """Of all choices, and of the first, second, ... ones where a token has several."""
    ranks = layer.get("dropped_by_choice", [])  # runs of before have none
    several = len(ranks) > 1 and layer["dropped"] > 0
    return f"dropped {layer['dropped']:.0%}" + (
        f" (by choice {', '.join(f'{r:.0%}' for r in ranks)})" if several else ""
    )


def _chance(measure: dict[str, Any]) -> str:
    if measure["chance"] is None:
        return "chance unknown: too few documents"
    return f"chance {measure['chance']:.2f} ± {measure['chance_sd']:.2f}"


def next_lines(run: Run) -> list[str]:
    """Two commands to try next."""
    together = f"{run.path.parent.parent}/{run.info['config']['task']}-*"
    if run.info["twin"]:
        return [f" next   moe compare {together}"]
    again = run.info["command"] if run.info["command"].startswith("moe train") else "moe train"
    return [f" next   moe plot {run.path}", f"        {again} model.twin=true   then   moe compare {together}"]
