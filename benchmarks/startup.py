"""How long the command line takes to answer: python benchmarks/startup.py"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from interleave import medians

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "moe --help": ["-m", "moecli", "--help"],
    "moe train --help": ["-m", "moecli", "train", "--help"],
    "moe ls router": ["-m", "moecli", "ls", "router"],
    "moe train router.capacity_facto=1 (a typo)": ["-m", "moecli", "train", "router.capacity_facto=1"],
}

if __name__ == "__main__":
    runs = {
        name: partial(subprocess.run, [sys.executable, *words], capture_output=True) for name, words in COMMANDS.items()
    }
    for name, seconds in medians(runs, repeats=9).items():
        print(f"{name:45s} {seconds:.3f} s")
