"""What ``moe size`` counted, as a table for the terminal."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from moecli.report.terminal import columns, count


def lines(found: dict[str, Any]) -> list[str]:
    """The counts of ``moecli.diagnosis.size.account``, with what each is a share of."""
    parameters, flops, memory, unit = found["parameters"], found["flops"], found["memory"], found["unit"]
    total, needed = parameters["total"], memory["weights"] + memory["gradients"] + memory["optimizer"]
    rows = [["parameters", count(total), ""]]
    rows += [[f"  {role}", count(number), f"{number / total:.1%}"] for role, number in list(parameters.items())[1:]]
    rows += [
        [f"FLOPs per {unit}", count(flops["forward"]), "forward"],
        ["", count(flops["training"]), "training, three times that"],
        [f"memory, {memory['dtype']}", in_bytes(memory["weights"]), "weights"],
        ["", in_bytes(memory["gradients"]), "gradients"],
        ["", in_bytes(memory["optimizer"]), "optimizer"],
        ["", in_bytes(needed), "together, activations apart"],
    ]
    if found["cache"] is not None:
        rows.append(["cache per token", in_bytes(found["cache"]), "what generating keeps of it"])
    return [*columns(rows, left=(0, 2)), "", *_layers(found)]


def _layers(found: dict[str, Any]) -> list[str]:
    """One row for each run of layers that are alike."""
    width, rows = found["expert_parallel"], [["layers", "experts", "rows per token", "all-to-all per token"]]
    for layer, group in groupby(found["layers"].items(), key=lambda item: item[1]):
        names = [name for name, _ in group]
        named = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"
        sent = in_bytes(layer["all_to_all"]) if width > 1 else "–"
        rows.append([named, str(layer["experts"]), f"{layer['rows_per_token']:.3g}", sent])
    more = f"over {width} devices" if width > 1 else "give --expert-parallel W for the traffic of W devices"
    return [*columns(rows, left=(0,)), f" {more}"]


def in_bytes(number: float) -> str:
    """2500 -> 2.5kB."""
    return f"{count(number)}B"
