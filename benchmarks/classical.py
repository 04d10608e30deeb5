"""Soft EM of a linear gate over linear experts with a diagonal Gaussian, in float64, to convergence.

python benchmarks/classical.py                                    beside R's flexmix, from the same responsibilities
python benchmarks/classical.py ROWS:COLUMNS:EXPERTS [...] [threads=1]   ours alone: seconds, iterations and memory

Seconds are the processor's, so that a busy machine tells little otherwise; each side has one thread, and ours alone may
have more.  Both stop by flexmix's rule: the log-likelihood L changed by less than TOLERANCE (|L| + 0.1).  flexmix
divides its variances by N - P where maximum likelihood divides by N, so its likelihood may lie a little lower.
"""

from __future__ import annotations

import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moecli.experts.linear import Linear
from moecli.families.gaussian import Gaussian
from moecli.gates.linear import Linear as LinearGate
from moecli.mixture import MixtureDensity
from moecli.routers.dense import Dense
from moecli.training.em import em_step
from moecli.training.evidence import observe
from moecli.training.maximise import maximise

TOLERANCE, MOST = 1e-6, 500
BESIDE = {"1000:2:4": 5, "10000:2:4": 3, "100000:5:4": 3}  # size: rounds
SCRIPT = Path(__file__).with_name("flexmix.R")


@dataclass(frozen=True)
class Fit:
    seconds: float  # of processors
    elapsed: float
    iterations: int
    log_likelihood: float  # of all rows


@dataclass(frozen=True)
class Table:
    """x (N, D), y (N, 1), start (N, E) float64."""

    x: Tensor
    y: Tensor
    start: Tensor

    @classmethod
    def planted(cls, rows: int, dim: int, num_experts: int) -> Table:
        """A line for each expert, chosen by a softmax of x, noise of 0.3; random soft responsibilities."""
        draw = torch.Generator().manual_seed(0)
        x, gate, slope = (
            torch.randn(*shape, generator=draw, dtype=torch.float64)
            for shape in ((rows, dim), (dim, num_experts), (dim, num_experts))
        )
        chosen = (2 * x @ gate).softmax(-1).multinomial(1, generator=draw)
        y = (2 * x @ slope).gather(1, chosen) + 0.3 * torch.randn(rows, 1, generator=draw, dtype=torch.float64)
        start = np.random.default_rng(0).dirichlet(np.full(num_experts, 0.5), rows)
        return cls(x, y, torch.from_numpy(start))

    def write(self, path: Path) -> None:
        width, experts = self.x.shape[1], self.start.shape[1]
        names = [*(f"x{d}" for d in range(width)), "y", *(f"start{e}" for e in range(experts))]
        table = torch.cat([self.x, self.y, self.start], 1).numpy()
        np.savetxt(path, table, "%.17g", ",", header=",".join(names), comments="")


def ours(table: Table) -> Fit:
    rows, dim, num_experts = *table.x.shape, table.start.shape[1]
    layer = MixtureDensity(
        Dense(gate=lambda n: LinearGate(dim, n), num_experts=num_experts),
        Linear(dim, 1, num_experts),
        Gaussian(1, num_experts),
    ).double()
    density = observe(layer, table.x, table.y).density  # so that no step is thought to fall
    started = time.process_time(), time.perf_counter()
    maximise(layer, table.x, table.y, table.start, density)
    found = [-math.inf]
    while len(found) <= MOST and not (
        len(found) > 2 and abs(found[-1] - found[-2]) < TOLERANCE * (abs(found[-1]) + 0.1)
    ):
        found.append(-rows * em_step(layer, table.x, table.y).nll)
    spent, elapsed = time.process_time() - started[0], time.perf_counter() - started[1]
    return Fit(spent, elapsed, len(found) - 1, found[-1])


def flexmix(csv: Path) -> Fit:
    command = ["Rscript", str(SCRIPT), str(csv), str(TOLERANCE), str(MOST)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return Fit(float(answer[0]), float(answer[1]), int(answer[2]), float(answer[3]))


def beside(size: str, rounds: int) -> str:
    """Both from one start, in turns; medians of their seconds."""
    table = Table.planted(*map(int, size.split(":")))
    rows = len(table.x)
    with tempfile.TemporaryDirectory() as folder:
        table.write(csv := Path(folder) / "table.csv")
        pairs = [(ours(table), flexmix(csv)) for _ in range(rounds)]
    (mine, theirs), seconds = (
        pairs[0],
        [statistics.median(f.seconds for f in side) for side in zip(*pairs, strict=True)],
    )
    return (
        f"{size:<12} moecli {seconds[0]:8.3f} s ({mine.iterations:>3} iterations, {mine.log_likelihood / rows:.6f} a row)"
        f"   flexmix {seconds[1]:8.3f} s ({theirs.iterations:>3}, {theirs.log_likelihood / rows:.6f})"
        f"   {seconds[1] / seconds[0]:6.1f}x   median of {rounds}"
    )


def alone(size: str) -> str:
    table = Table.planted(*map(int, size.split(":")))
    fit = ours(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"{size:<14} {fit.elapsed:8.2f} s ({fit.seconds:.2f} of processors), {fit.iterations} iterations, "
        f"{fit.log_likelihood / len(table.x):.6f} a row, peak {peak:.2f} GB, {torch.get_num_threads()} threads"
    )


def flexmix_is_here() -> bool:
    if not shutil.which("Rscript"):
        return False
    return subprocess.run(["Rscript", "-e", "library(flexmix)"], capture_output=True).returncode == 0


if __name__ == "__main__":
    words = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    torch.set_num_threads(int(words.get("threads", 1)))
    sizes = [word for word in sys.argv[1:] if "=" not in word]
    here = not sizes and flexmix_is_here()
    if not sizes and not here:
        print("flexmix is not installed, so ours runs alone. Debian: apt-get install r-base-core r-cran-flexmix")
    for size in sizes or BESIDE:
        print(beside(size, BESIDE[size]) if here else alone(size), flush=True)
