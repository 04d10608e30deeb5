"""Runs that were never trained, as tables read them."""

from __future__ import annotations

from typing import Any

from moecli.report.records import Record, text

CONFIG = {"task": "toy", "model": "layer", "router": "dense", "optimizer.lr": 0.01, "seed": 0, "device": "cpu"}


def made(
    router: str = "dense", seed: int = 0, value: float | None = 0.5, *, flops: float = 100.0, **changes: Any
) -> Record:
    """A finished run with this quality, or one that failed where ``value`` is None; ``config`` adds keys."""
    config = {**CONFIG, "router": router, "seed": seed, **changes.pop("config", {})}
    finished = value is not None
    headline = changes.get("headline", "accuracy")
    numbers = {"FLOP": flops, "total": 9.0, "active": 5.0, "seconds": 2.0}
    measured = {f"test/{headline}": value, "balance CV": 0.2, "NMI": 0.5, "chance": 0.1} if finished else {}
    given: dict[str, Any] = {
        "path": f"runs/{router}/{seed}", "id": f"{seed}", "status": "finished" if finished else "failed", "config": config,
        "setting": {key: text(value) for key, value in config.items() if key != "device"}, "seed": seed,
        "fingerprint": "same", "headline": headline, "unit": "", "higher_is_better": True, "per": "example", "twin": False,
        "leak": False, "made_with": {}, "numbers": numbers | measured,
    }  # fmt: skip
    return Record(**(given | changes))


def group(router: str, values: list[float | None], first: int = 0, **changes: Any) -> list[Record]:
    """A run a value, with seeds from ``first`` on."""
    return [made(router, first + n, value, **changes) for n, value in enumerate(values)]
