"""How large the page of a study is, and how long it takes: python benchmarks/report.py [FOLDER OF RUNS]

Without a folder it trains twenty runs of digits first, four routers over five seeds, some 80 steps each.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
import zlib
from pathlib import Path

import moecli
from moecli.report.page.write import write

ROUTERS = ("top_k", "expert_choice", "soft_slots", "dense")
PARTS = {
    "experts' pages": r"<article.*?</article>",
    "of these, examples": r"<figure>\s*<(?:img|code).*?</figure>",
    "heat maps": r'<svg class="heat".*?</svg>',
    "charts": r'<svg class="chart".*?</svg>',
    "pictures": r"data:image/(?:png|gif)[^\"]{2000,}",
    "tables": r"<table.*?</table>",
}


def train(root: Path) -> Path:
    for router in ROUTERS:
        for seed in range(5):
            moecli.train(f"router={router}", f"seed={seed}", "trainer.steps=80", runs=root)
    return root


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else train(Path(folder) / "runs")
        for name in ("report.html", "report.md"):
            started = time.perf_counter()
            done = write([root], Path(folder) / name)
            seconds = time.perf_counter() - started
            packed = len(zlib.compress((Path(folder) / name).read_bytes(), 9))
            print(
                f"{name:12s} {done.runs} runs  {done.size / 1e3:8.0f} kB  {packed / 1e3:8.0f} kB packed  {seconds:6.1f} s"
            )
        text = (Path(folder) / "report.html").read_text(encoding="utf-8")
        for part, pattern in PARTS.items():
            found = re.findall(pattern, text, re.DOTALL)
            print(f"  {part:20s} {len(found):6d}  {sum(map(len, found)) / 1e3:8.0f} kB")
