"""Runs side by side: one row per group, mean and 95 % interval over seeds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moecli.errors import MoeError, UsageError
from moecli.record.folder import CHANGED, Run, find_runs, finite, runs_root
from moecli.report.terminal import interval, visible

if TYPE_CHECKING:
    import pandas

COLUMNS = ("balance CV", "NMI", "total", "active", "FLOP", "seconds")
CRITERIA = ("loglik", "aic", "bic", "icl")  # of classical mixtures, on their training rows


def runs(root: Path | str | None = None) -> pandas.DataFrame:
    """Every readable run below ``root`` as a row: id, path, status, flat config, metrics."""
    import pandas

    records, _ = read_runs([runs_root(Path(root) if root else None)])
    return pandas.DataFrame(records)


def read_runs(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """(a record per run, a reason per run that could not be read)."""
    records, broken = [], []
    for path in find_runs(paths):
        try:
            records.append(_record(Run(path)))
        except MoeError as error:
            broken.append(str(error))
        except (TypeError, AttributeError, ValueError, OverflowError) as error:
            broken.append(f"{path}: run.json or summary.json is none of ours ({error}). {CHANGED}")
    return records, broken


def _record(run: Run) -> dict[str, Any]:
    """All that the tables read of a run.  Raises what a wrong type raises, now and not in the middle of a table."""
    info = run.info
    if not all(isinstance(info["config"][key], kind) for key, kind in (("task", str), ("router", str), ("seed", int))):
        raise TypeError("its task, router or seed is none")
    record = {
        **info["config"],
        "keys": [key for key in info["config"] if key not in ("device", "threads")],
        "fingerprint": info["fingerprint"],
        "id": info["id"],
        "path": str(run.path),
        "status": info["status"],
        "seconds": _number(info.get("seconds")),
        "total": _number(info["parameters"]["total"]),
        "active": _number(info["parameters"]["active"]),
        "FLOP": _number(info["flops"]),
        "unit": info["unit"],
        "headline": info["headline"],
        "higher_is_better": info["higher_is_better"],
        "twin": info["twin"],
        "leak": info["leak"],
    }
    if info["status"] == "finished":
        summary = run.summary
        measured = summary["metrics"] | summary.get("criteria", {})
        record |= {name: _number(value) for name, value in measured.items()}
        record["balance CV"] = _mean([layer["balance_cv"] for layer in summary["layers"]])
        record["NMI"] = _mean([m["value"] for layer in summary["layers"] for m in list(layer["nmi"].values())[:1]])
    return record


def _number(value: Any) -> Any:
    """The same number, or None.  Raises TypeError for anything else, ValueError where it is not finite."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return value


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Row:
    """One group of runs that differ in their seed."""

    name: str
    count: int  # of distinct seeds
    mixes: list[str]  # keys beside the seed in which its runs differ: their interval is not over seeds alone
    cells: dict[str, tuple[float, float]]  # column: (mean, half width of the 95 % interval)
    leak: bool


@dataclass(frozen=True)
class Comparison:
    """Rows of one task's runs, best first."""

    by: str
    metric: str
    rows: list[Row]
    unit: str
    criteria: tuple[str, ...] = ()  # those of CRITERIA that some run has

    @property
    def columns(self) -> list[str]:
        return [self.metric, *self.criteria, *COLUMNS]


def compare(records: Sequence[dict[str, Any]], by: str = "router") -> Comparison:
    """Group finished runs by a configuration key; a dense twin is a group of its own.

    Raises UsageError where the runs are of several tasks or none has the key.
    """
    done = [record for record in records if record["status"] == "finished"]
    if not done:
        raise UsageError("moe compare: none of these runs has finished. Give run folders: moe compare runs")
    tasks = sorted({record["task"] for record in done})
    if len(tasks) > 1 and by != "task":
        raise UsageError(
            f"moe compare: runs of several tasks ({', '.join(tasks)}) have no common scale. Give one task's runs"
        )
    if len({record["fingerprint"] for record in done}) > len(tasks):
        raise UsageError(
            f"moe compare: these runs of task={tasks[0]} were made on different data, so they have no common scale. "
            "Give runs on the same data"
        )
    if not any(by in record for record in done):
        from moecli.config import nearest

        raise UsageError(f"--by {by}: no run has this key.{nearest(by, done[0])}")
    metric = f"test/{done[0]['headline']}"
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in done:
        groups.setdefault(f"dense twin of {record.get(by)}" if record["twin"] else str(record.get(by)), []).append(
            record
        )
    criteria = tuple(c for c in CRITERIA if any(c in record for record in done))
    rows = [_row(name, group, [metric, *criteria, *COLUMNS]) for name, group in groups.items()]
    sign = -1 if done[0]["higher_is_better"] else 1
    rows = sorted(rows, key=lambda row: _order(row.cells[metric][0], sign))
    return Comparison(by, metric, rows, done[0]["unit"], criteria)


def _order(value: float, sign: int) -> tuple[bool, float]:
    """NaN last, never first."""
    return math.isnan(value), sign * value


def _row(name: str, group: list[dict[str, Any]], columns: Sequence[str]) -> Row:
    newest = list({json.dumps(_setting(record), sort_keys=True): record for record in group}.values())
    cells = {}
    for column in columns:
        values = [math.nan if record.get(column) is None else float(record[column]) for record in newest]
        cells[column] = interval(values)
    settings = [_setting(record) for record in newest]
    mixes = sorted({k for s in settings for k in s if k != "seed" and s[k] != settings[0].get(k)})
    seeds = {record["seed"] for record in newest}
    return Row(name, len(seeds), mixes, cells, any(record["leak"] for record in newest))


def _setting(record: dict[str, Any]) -> dict[str, Any]:
    """What a run was told: a run told the same twice counts once, by its newest."""
    return {key: record[key] for key in record["keys"]}


def notes(comparison: Comparison) -> list[str]:
    """What the numbers cannot say: rows whose runs differ in more than the seed."""
    return [
        f"{row.name}: its runs differ in {', '.join(row.mixes[:4])} too, so its interval is not over seeds alone"
        for row in comparison.rows
        if row.mixes
    ]


def cell(column: str, mean: float, half: float) -> str:
    """A number as people read it, with its interval where there is one."""
    from moecli.report.terminal import count

    if math.isnan(mean):
        return "-"
    if column in ("total", "active", "FLOP"):
        return count(mean)
    if column == "seconds":
        return f"{mean:.0f} s"
    if column in CRITERIA:
        return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


def table(comparison: Comparison) -> list[list[str]]:
    """Header and rows as text."""
    head = [comparison.by, "n", *(f"FLOP/{comparison.unit}" if c == "FLOP" else c for c in comparison.columns)]
    lines = [
        [
            visible(row.name) + (" (saw the future)" if row.leak else ""),
            str(row.count),
            *(cell(c, *row.cells[c]) for c in comparison.columns),
        ]
        for row in comparison.rows
    ]
    return [head, *lines]


def as_json(comparison: Comparison) -> str:
    rows = [
        {comparison.by: row.name, "n": row.count, "leak": row.leak}
        | {column: {"mean": mean, "half_width_95": half} for column, (mean, half) in row.cells.items()}
        for row in comparison.rows
    ]
    return json.dumps(finite(rows), indent=1, ensure_ascii=False)


def as_csv(comparison: Comparison) -> str:
    """Numbers as they are; text that a spreadsheet would run as a formula is disarmed."""
    text = io.StringIO()
    writer = csv.writer(text)
    widths = [f"{column} ± 95 %" for column in comparison.columns]
    writer.writerow([comparison.by, "n", *(c for pair in zip(comparison.columns, widths, strict=True) for c in pair)])
    for row in comparison.rows:
        numbers = [n for c in comparison.columns for n in row.cells[c]]
        name = f"'{row.name}" if row.name[:1] in "=+-@\t\r" else row.name
        writer.writerow([name, row.count, *("" if math.isnan(n) else repr(n) for n in numbers)])
    return text.getvalue().rstrip("\n")


def as_markdown(comparison: Comparison) -> str:
    head, *lines = [
        ["".join(f"\\{c}" if c in r"\|*_`<>[]&~" else c for c in t) for t in line] for line in table(comparison)
    ]
    rule = ["---" if column < 1 else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
}


def as_latex(comparison: Comparison) -> str:
    """A booktabs table."""
    head, *lines = [[_latex(text) for text in line] for line in table(comparison)]
    body = [" & ".join(line) + r" \\" for line in lines]
    columns = "l" + "r" * (len(head) - 1)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
