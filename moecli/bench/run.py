"""Cases, dtypes and contestants -> what ``moe bench`` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

from moecli.bench.cases import DTYPES, Subject, check_names
from moecli.bench.contestants import AUTO, ours, peers
from moecli.bench.measure import Contestant, Peak, interleaved, peak, saved_bytes
from moecli.bench.workload import Workload, build_workload
from moecli.config import flat
from moecli.kernels.choose import KERNELS
from moecli.run import fitting_threads

TRAINING = 3  # a backward pass costs about two forward passes
SHAPING = ("num_experts", "router", "gate", "expert", "model.shared", "model.shared_mix", "seed")


@dataclass(frozen=True)
class Asked:
    """What is measured of each case, and how often."""

    kernels: tuple[str, ...] = (AUTO, *KERNELS)
    repeats: int = 11
    peers: bool | None = None  # None: where they are installed and compute the same


ALL = Asked()


def bench(subjects: Sequence[Subject], dtypes: Sequence[str] = ("float32",), asked: Asked = ALL) -> dict[str, Any]:
    """What ``moe bench --json`` prints: each subject in each dtype.

    Raises UsageError for a name that is none, and for what cannot be built or served.
    """
    check_names("--dtype", dtypes, DTYPES)
    check_names("--kernel", asked.kernels, ALL.kernels)
    versions = {name: _version(name) for name in ("torch", "transformers")}
    cases = [measured(subject, dtype, asked) for dtype in dtypes for subject in subjects]
    return {**versions, "repeats": asked.repeats, "cases": cases}


def measured(subject: Subject, dtype: str, asked: Asked) -> dict[str, Any]:
    """One of its ``cases``."""
    config, tokens, dim = subject.composed.config, subject.case.tokens, subject.case.dim
    workload = build_workload(subject.composed, tokens, dim, getattr(torch, dtype))
    forward = workload.flops()
    torch.set_num_threads(config["threads"] or fitting_threads(forward))
    threads = torch.get_num_threads()
    contestants, refused = ours(workload, asked.kernels)
    others, more = peers(workload, config, asked.peers)
    limit = peak(workload.dtype, workload.device, threads)
    flops = TRAINING * forward
    rows = _rows(workload, [*contestants, *others], flops, limit, asked.repeats)
    options = {key: value for key, value in flat(config).items() if key.startswith(SHAPING)}
    return {
        "case": subject.name,
        "changed": subject.changed,
        "dtype": dtype,
        "device": workload.device.type,
        "threads": threads,
        "tokens": tokens,
        "dim": dim,
        "options": options,
        "flops": flops,
        "peak": asdict(limit),
        "contestants": rows,
        "refused": {**refused, **more},
    }


def _rows(
    workload: Workload, contestants: Sequence[Contestant], flops: float, limit: Peak, repeats: int
) -> list[dict[str, Any]]:
    seconds = interleaved(contestants, workload.draw, repeats)
    return [
        {"name": each.name, "kernel": each.kernel, **_times(seconds[each.name], flops, limit)}
        | {"saved_mb": saved_bytes(each, workload.draw(0)[0]) / 1e6}
        for each in contestants
    ]


def _times(seconds: Sequence[float], flops: float, limit: Peak) -> dict[str, float]:
    median = statistics.median(seconds)
    gflops = flops / median / 1e9
    return {
        "median_ms": 1e3 * median, "min_ms": 1e3 * min(seconds), "max_ms": 1e3 * max(seconds),
        "gflops": gflops, "share_of_peak": gflops / limit.gflops,
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
