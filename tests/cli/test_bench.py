"""`moe bench`: a table or one JSON object, and mistakes that cost one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from moecli.bench import measure
from moecli.kernels.choose import KERNELS

SMALL = ["bench", "--tokens", 48, "--dim", 16, "num_experts=4", "expert.hidden=24", "--repeats", 1, "--no-peers"]


@pytest.fixture(autouse=True)
def tiny_peak(monkeypatch):
    monkeypatch.setattr(measure, "SIZES", {"cpu": (8,)})
    measure.peak.cache_clear()
    yield
    measure.peak.cache_clear()


def test_json_has_everything(moe):
    code, out, err = moe(*SMALL, "--dtype", "float64", "threads=1", "--json")
    found = json.loads(out)
    assert code == 0 and not err and found.keys() == {"torch", "transformers", "repeats", "cases"}
    (case,) = found["cases"]
    assert case.keys() == {
        "case", "changed", "dtype", "device", "threads", "tokens", "dim", "options", "flops", "peak", "contestants", "refused",
    }  # fmt: skip
    assert (case["case"], case["changed"], case["dtype"], case["tokens"], case["threads"]) == (
        "A",
        True,
        "float64",
        48,
        1,
    )
    assert case["options"]["expert.hidden"] == 24 and case["options"]["router"] == "top_k"
    assert case["peak"].keys() == {"gflops", "by", "size"}
    assert case["refused"].keys() == {"grouped"}
    assert [row["name"] for row in case["contestants"]] == ["auto", *(k for k in KERNELS if k != "grouped")]
    numbers = {"median_ms", "min_ms", "max_ms", "gflops", "share_of_peak", "saved_mb"}
    assert all(row.keys() == numbers | {"name", "kernel"} for row in case["contestants"])
    assert all(row[number] > 0 for row in case["contestants"] for number in numbers)


def test_the_table_says_what_it_stands_on(moe):
    code, out, err = moe(*SMALL, "router=dense", "--case", "H")
    assert code == 0 and not err
    for said in (
        r"case H, changed · float32 · dense · 4 × feed_forward\(16→24→16, swiglu\) · 48 tokens",
        r"\n auto: loop  +[\d.]+  +[\d.]+ – [\d.]+ ",
        "not measured · padded, grouped, each: only the loop serves these",
        r"peak \d+ GFLOP/s: .* of 8 × 8, in this run",
        r"median of 1, in turn · torch \d",
    ):
        assert re.search(said, out), (said, out)


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["--kernel", "ech"], "each?"),
        (["--kernel", "grouped", "--dtype", "float64"], "grouped_mm takes"),
        (["--case", "A,K"], "no such case"),
        (["task=digits"], "shapes no layer"),
        (["router=top_kk"], "router=top_k?"),
    ],
)
def test_a_mistake_is_one_line(words, needle, moe):
    code, out, err = moe(*[word for word in SMALL if word != "--no-peers"], *words)
    assert code == 2 and not out and needle in err
    assert re.fullmatch(r"moe: error: [^\n]+\. [^\n]+\n", err), err


def test_a_refused_word_costs_no_torch():
    program = (
        "import sys; from moecli.cli import app\nsys.argv = ['moe', 'bench', 'router.kk=1']\n"
        "try: app.main()\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "2 False\n" and "router.k?" in done.stderr
