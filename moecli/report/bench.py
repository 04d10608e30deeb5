"""What ``moe bench`` measured, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moecli.report.terminal import columns, count

HEAD = ["kernel", "median ms", "range", "GFLOP/s", "of peak", "saved MB"]


def lines(found: dict[str, Any]) -> list[str]:
    """The result of ``moecli.bench.run.bench``: a table for each case, then how it was measured."""
    tables = [line for case in found["cases"] for line in [*_header(case), "", *_table(case), *_footer(case), ""]]
    names = {row["name"].split()[0] for case in found["cases"] for row in case["contestants"]}
    peers = f" · transformers {found['transformers']}" if "transformers" in names else ""
    return [
        *tables,
        f" forward and backward pass on random tokens, other ones at each call: median of {found['repeats']}, in turn "
        f"· torch {found['torch']}{peers}",
        " GFLOP/s: products of router and chosen experts, times three. saved MB: kept for the backward pass, parameters "
        "left out",
    ]


def _header(case: dict[str, Any]) -> list[str]:
    options, threads = case["options"], case["threads"]
    k = f" (k={options['router.k']})" if "router.k" in options else ""
    hidden = options.get("expert.hidden")
    through = f"({case['dim']}→{hidden}→{case['dim']}, {options['expert.activation']})" if hidden else ""
    shared = f" + {options['model.shared']} shared" if options["model.shared"] else ""
    where = f"CPU, {threads} thread{'s' if threads > 1 else ''}" if case["device"] == "cpu" else case["device"].upper()
    case_name = f"case {case['case']}{', changed' if case['changed'] else ''}"
    experts = f"{options['num_experts']} × {options['expert']}{through}{shared}"
    router = f"{options['router']}{k}"
    return [f" {case_name} · {case['dtype']} · {router} · {experts} · {case['tokens']} tokens      {where}"]


def _table(case: dict[str, Any]) -> list[str]:
    return columns([HEAD, *map(_row, case["contestants"])], left=(0,))


def _row(row: dict[str, Any]) -> list[str]:
    return [
        f"auto: {row['kernel']}" if row["name"] == "auto" else row["name"],
        milliseconds(row["median_ms"]),
        f"{milliseconds(row['min_ms'])} – {milliseconds(row['max_ms'])}",
        f"{row['gflops']:.3g}",
        f"{row['share_of_peak']:.0%}",
        f"{row['saved_mb']:.3g}",
    ]


def milliseconds(number: float) -> str:
    """Three digits: 0.0412, 4.12, 412."""
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def _footer(case: dict[str, Any]) -> Iterator[str]:
    for why in dict.fromkeys(case["refused"].values()):
        names = [name for name, own in case["refused"].items() if own == why]
        yield f" not measured · {', '.join(names)}: {why}"
    top = case["peak"]
    product = "torch.mm" if top["by"] == "torch.mm" else "our exact product"
    yield f" peak {top['gflops']:.0f} GFLOP/s: {product} of {top['size']} × {top['size']}, in this run"
    yield f" {count(case['flops'])}FLOP in all: at the peak {milliseconds(case['flops'] / top['gflops'] / 1e6)} ms"
