"""The kernels of experts, forward and backward, beside transformers' layers: python benchmarks/kernels.py

[--cases A,B,C,D,E,H] [--repeats 11] [--write]    float32 and bfloat16; --write puts the tables into docs/kernels.md
--lm [--repeats 11] [--write]    steps of a character model, beside its dense twin and transformers' experts
--rule [--repeats 5]    what the rule of moecli/kernels/choose.py chooses, beside the fastest kernel
--malloc [--repeats 5]    how much of the time glibc spends on handing memory back and forth
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from experiments import rewrite
from fitted import markdown
from interleave import medians
from torch import Tensor, nn

from moecli.bench.cases import CASES, subjects
from moecli.bench.contestants import transformers_block
from moecli.bench.run import ALL, Asked, bench
from moecli.config import build, compose, flat
from moecli.experts.experts import Experts
from moecli.kernels.choose import KERNELS
from moecli.plan import Sparse
from moecli.report.bench import milliseconds
from moecli.run import Built, assemble

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"
TABLED = "A,B,C,D,E,H"
COLUMNS = ("auto", *(name for name in ALL.kernels if name != "auto"), "transformers eager", "transformers grouped_mm")
HEAD = ["case", *COLUMNS, "peak", "floor", "ours / transformers", "ours / floor"]
CHARACTERS = [
    "task=random_tokens", "task.vocab_size=65", "task.context=128", "model.dim=128", "model.depth=4", "num_experts=8",
    "router.k=2", "gate.bias=false", "expert.hidden=256", "expert.activation=swiglu", "expert.bias=false",
    "trainer.batch_size=32",
]  # fmt: skip
GLIBC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**26)}
ROUNDS = 3  # of processes with and without those


# -- kernels ----------------------------------------------------------------------------------------


def tables(cases: list[str], repeats: int) -> Iterator[str]:
    for dtype in ("float32", "bfloat16"):
        found = bench(subjects(names=cases), [dtype], Asked(repeats=repeats))
        first = found["cases"][0]
        versions = f"torch {found['torch']}, transformers {found['transformers']}"
        yield f"{dtype}, {first['device']}, threads={first['threads']}, median ms of {repeats}; {versions}:"
        yield markdown([HEAD, *map(row, found["cases"])])


def row(case: dict[str, Any]) -> list[str]:
    """One line: milliseconds of each contestant, the floor, and the two ratios."""
    seconds = {found["name"]: found["median_ms"] for found in case["contestants"]}
    chosen = {found["name"]: found["kernel"] for found in case["contestants"]}["auto"]
    floor, ours = case["flops"] / case["peak"]["gflops"] / 1e6, seconds["auto"]
    theirs = min((value for name, value in seconds.items() if name.startswith("transformers")), default=None)
    return [
        case["case"],
        f"{milliseconds(ours)} ({chosen})",
        *(milliseconds(seconds[name]) if name in seconds else "–" for name in COLUMNS[1:]),
        f"{case['peak']['gflops']:.0f} GFLOP/s",
        milliseconds(floor),
        "–" if theirs is None else f"{ours / theirs:.2f}",
        f"{ours / floor:.2f}",
    ]


def rule(repeats: int) -> Iterator[str]:
    """What the rule chose, and what it lost by not choosing the fastest."""
    lost = []
    rows = [["dtype", "tokens", "hidden", "experts", *KERNELS, "chosen", "chosen / fastest"]]
    sizes = product((256, 1024, 4096), (128, 512, 2048), (8, 64))
    for (tokens, hidden, experts), dtype in product(sizes, ("float32", "bfloat16")):
        words = [f"expert.hidden={hidden}", f"num_experts={experts}"]
        found = bench(subjects(words, tokens=tokens), [dtype], Asked(repeats=repeats, peers=False))["cases"][0]
        seconds = {each["name"]: each["median_ms"] for each in found["contestants"]}
        chosen = found["contestants"][0]["kernel"]
        fastest = min(value for name, value in seconds.items() if name != "auto")
        lost.append(seconds[chosen] / fastest)
        told = (milliseconds(seconds[name]) if name in seconds else "–" for name in KERNELS)
        rows.append([dtype, str(tokens), str(hidden), str(experts), *told, chosen, f"{lost[-1]:.2f}"])
    yield markdown(rows)
    yield f"chosen / fastest: geometric mean {statistics.geometric_mean(lost):.3f}, at most {max(lost):.2f}"


# -- a language model -------------------------------------------------------------------------------


class Transformers(Experts):
    """transformers' eager experts, behind the seam of ours, with the weights of a layer of ours."""

    def __init__(self, layer: Any, options: dict[str, Any]):
        super().__init__()
        block = transformers_block(layer, options)
        block.experts.config._experts_implementation = "eager"
        self.num_experts, self.k, self.own = layer.experts.num_experts, options["router.k"], block.experts

    def blend(self, plan: Any, x: Tensor) -> Tensor:  # (N, D) -> (N, D)
        assert isinstance(plan, Sparse)
        at, size = (plan.token, plan.choice), (plan.num_tokens, self.k)
        expert = plan.expert.new_zeros(size).index_put(at, plan.expert)
        return self.own(x, expert, plan.log_weight.new_zeros(size).index_put(at, plan.log_weight.exp()))


def characters() -> dict[str, Built]:
    ours, theirs = assemble(compose(CHARACTERS)), assemble(compose(CHARACTERS))
    for layer in theirs.model.mixtures.values():
        layer.experts = Transformers(layer, flat(theirs.config))
    losses = [float(loss(built, 0).detach()) for built in (ours, theirs)]
    assert abs(losses[0] - losses[1]) < 1e-4, losses
    return {
        "ours": ours,
        "dense twin": assemble(compose([*CHARACTERS, "model.twin=true"])),
        "transformers eager": theirs,
    }


def loss(built: Built, number: int) -> Tensor:
    batch = built.task.train_batch(number, built.config["trainer"]["batch_size"], 0)
    return built.objective(built.model(batch.x, batch.known), batch.target)["total"]


def step(built: Built) -> Callable[[], None]:
    """Forward, backward, clip and update, on another batch at each call."""
    optimizer = build(built.config["optimizer"], params=built.model.parameters())
    numbers = iter(range(10**6))

    def run() -> None:
        optimizer.zero_grad()
        loss(built, next(numbers)).backward()
        nn.utils.clip_grad_norm_(built.model.parameters(), built.config["trainer"]["clip"])
        optimizer.step()

    return run


def language(repeats: int) -> Iterator[str]:
    made = characters()
    steps = {name: step(built) for name, built in made.items()}
    medians(steps, 2)  # thrown away
    seconds = medians(steps, repeats)
    tokens = made["ours"].config["trainer"]["batch_size"] * made["ours"].task.context
    rows = [
        [name, f"{1e3 * value:.0f}", f"{tokens / value:,.0f}", f"{value / seconds['ours']:.2f}"]
        for name, value in seconds.items()
    ]
    yield f"`{' '.join(CHARACTERS)}`, threads={torch.get_num_threads()}, median of {repeats} steps:"
    yield markdown([["experts", "ms a step", "tokens/s", "time / ours"], *rows])


# -- memory -----------------------------------------------------------------------------------------


def malloc(repeats: int) -> Iterator[str]:
    """Processes with and without glibc's settings, in turn: the best median of each."""
    words = ["bench", "--case", "C,E", "--kernel", "auto", "--no-peers", "--repeats", str(repeats), "--json"]
    found: dict[tuple[str, bool], list[float]] = {}
    for _, tuned in product(range(ROUNDS), (False, True)):
        environment = {**os.environ, **(GLIBC if tuned else {})}
        done = subprocess.run(
            [sys.executable, "-m", "moecli", *words], env=environment, capture_output=True, check=True
        )
        for case in json.loads(done.stdout)["cases"]:
            found.setdefault((case["case"], tuned), []).append(case["contestants"][0]["median_ms"])
    best = {key: min(values) for key, values in found.items()}
    rows = [
        [c, milliseconds(best[c, False]), milliseconds(best[c, True]), f"{best[c, True] / best[c, False]:.2f}"]
        for c in "CE"
    ]
    yield markdown([["case", "ms", "ms with them", "ratio"], *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = {"lm": language, "rule": rule, "malloc": malloc}
    for mode in modes:
        parser.add_argument(f"--{mode}", action="store_const", const=mode, dest="mode", default="tables")
    parser.add_argument("--cases", default=TABLED, help=f"of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    found = []
    made = modes[asked.mode](asked.repeats) if asked.mode in modes else tables(asked.cases.split(","), asked.repeats)
    for part in made:
        print(part, end="\n\n", flush=True)
        found.append(part)
    if asked.write:
        rewrite(DOCUMENT, f"<!-- {asked.mode} -->\n\n", "\n\n".join(found), f"\n\n<!-- end of {asked.mode} -->")


if __name__ == "__main__":
    main()
