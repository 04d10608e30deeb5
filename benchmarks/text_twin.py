"""The default text model beside its dense twin, paired by seed: python benchmarks/text_twin.py [SEEDS] [KEY=VALUE ...]"""

from __future__ import annotations

import sys
import tempfile

import moecli
from moecli.analysis.statistics import interval

if __name__ == "__main__":
    seeds, words = int((sys.argv[1:] or ["5"])[0]), sys.argv[2:]
    gaps = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            found = {}
            for twin in ("false", "true"):
                run = moecli.train("task=stdlib_text", f"seed={seed}", f"model.twin={twin}", *words, runs=folder)
                found[twin] = run.summary["metrics"]["test/nll"]
                print(
                    f"seed {seed} {'twin   ' if twin == 'true' else 'mixture'} {found[twin]:.4f} nats/character, "
                    f"{run.info['flops'] / 1e6:.2f} MFLOP/token, {run.info['seconds']:.0f} s, "
                    f"chance {run.summary['chance']['test/nll']:.3f}",
                    flush=True,
                )
            gaps.append(found["true"] - found["false"])
    gap = interval(gaps)
    print(f"the mixture is better by {gap.mean:.4f} ± {gap.half:.4f} nats (95 % interval over {seeds} paired seeds)")
