"""Seconds of a forward and a backward pass, what it keeps between them, and how fast the machine can multiply."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from moecli.kernels import matmul
from moecli.routing import Tokens

Draw = Callable[[int], tuple[Tokens, Tensor]]
WARM = 2  # rounds thrown away: caches, and code that is compiled at first use
SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # rows and columns of the matrices that the peak is measured with
TRIES = 4  # products of each size


@dataclass(frozen=True)
class Contestant:
    """One way to compute the layer."""

    name: str
    kernel: str  # what serves the experts
    module: nn.Module
    forward: Callable[[Tokens], Tensor]  # -> (N, D)


def interleaved(contestants: Sequence[Contestant], draw: Draw, repeats: int) -> dict[str, list[float]]:
    """Seconds of ``repeats`` forward and backward passes of each.

    In every round each has its turn, on tokens that no other call sees: who came second would find code already
    compiled for the first one's groups.
    """
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for turn in range((WARM + repeats) * len(contestants)):
        contestant = contestants[turn % len(contestants)]
        seconds[contestant.name].append(once(contestant, *draw(turn)))
    return {name: found[WARM:] for name, found in seconds.items()}


def once(contestant: Contestant, tokens: Tokens, d: Tensor) -> float:
    contestant.module.zero_grad(set_to_none=True)
    _wait(d.device)
    started = time.perf_counter()
    contestant.forward(tokens).backward(d)
    _wait(d.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def saved_bytes(contestant: Contestant, tokens: Tokens) -> int:
    """What autograd keeps of a forward pass for the backward pass, parameters left out and nothing counted twice."""
    own = {parameter.untyped_storage().data_ptr() for parameter in contestant.module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = contestant.forward(tokens)  # noqa: F841  # holds the graph, so that no address is used again
    return sum(size for pointer, size in kept.items() if pointer not in own)


@dataclass(frozen=True)
class Peak:
    """The fastest product of two square matrices that was seen."""

    gflops: float  # GFLOP/s
    by: str
    size: int  # rows and columns


@cache
def peak(dtype: torch.dtype, device: torch.device, threads: int) -> Peak:
    """By torch's own product or ours, whichever is faster, measured once with these threads."""
    products: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch.mm": torch.mm, "ours": matmul.product}
    found = []
    for size in SIZES[device.type]:
        a, b = torch.randn(2, size, size).to(device, dtype).unbind()
        for _ in range(TRIES):
            found += [Peak(2e-9 * size**3 / _seconds(f, a, b), by, size) for by, f in products.items()]
    return max(found, key=lambda each: each.gflops)


def _seconds(product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> float:
    _wait(a.device)
    started = time.perf_counter()
    product(a, b)
    _wait(a.device)
    return time.perf_counter() - started
