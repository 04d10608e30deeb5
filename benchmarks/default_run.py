"""Accuracy of `moe train` over seeds 0-4 and its time from prompt to prompt: python benchmarks/default_run.py"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time

if __name__ == "__main__":
    accuracy, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(5):
            started = time.perf_counter()
            words = ["-m", "moecli", "train", f"seed={seed}", "--runs", folder, "--json"]
            done = subprocess.run([sys.executable, *words], capture_output=True, check=True, text=True)
            seconds.append(time.perf_counter() - started)
            accuracy.append(json.loads(done.stdout)["metrics"]["test/accuracy"])
    print(
        f"test accuracy: mean {statistics.mean(accuracy):.4f}, worst {min(accuracy):.4f}, each {[round(a, 4) for a in accuracy]}"
    )
    print(f"prompt to prompt: median {statistics.median(seconds):.1f} s, slowest {max(seconds):.1f} s")
