"""Puts docs/results.json into the headers of conf/experiment/, into docs/classical.md and docs/deep.md.

moe replicate --all --write docs/results.json; python benchmarks/experiments.py
"""

import re
from pathlib import Path

from moecli.replicate import bench

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results -->\n\n", "\n\n<!-- end of results -->"


def main() -> None:
    results = bench.read(ROOT / "docs" / "results.json")
    for name, result in results.items():
        file = ROOT / "conf" / "experiment" / f"{name}.yaml"
        rewrite(file, "# cost: ", bench.cost(result), "\n")
        rewrite(file, "# measured: ", bench.in_words(result), "\n")
    for document, deep in (("classical.md", False), ("deep.md", True)):
        found = {name: result for name, result in results.items() if bench.deep(name) == deep}
        rewrite(ROOT / "docs" / document, BEGIN, bench.markdown(found), END)


def rewrite(file: Path, before: str, inside: str, after: str) -> None:
    """Replace what stands between the two marks."""
    text = file.read_text(encoding="utf-8")
    changed = re.sub(f"({re.escape(before)}).*?({re.escape(after)})", lambda m: m[1] + inside + m[2], text, flags=re.S)
    file.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
