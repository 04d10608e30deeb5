"""The workbench for mixture-of-experts models: ``moecli.train``, ``load``, ``runs`` and ``moecli.sweep.run``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "runs", "sweep", "train"]

if TYPE_CHECKING:
    from moecli import sweep
    from moecli.report.records import runs
    from moecli.run import load, train


def __getattr__(name: str) -> Any:
    """Heavy libraries are imported when they are first asked for."""
    if name in ("train", "load"):
        from moecli import run

        return getattr(run, name)
    if name == "runs":
        from moecli.report import records

        return records.runs
    if name == "sweep":
        return importlib.import_module("moecli.sweep")
    raise AttributeError(f"module 'moecli' has no attribute {name!r}")
