"""Sweeps: many runs from one line of words, in parallel, to be killed and gone on with at any time.

``run`` and ``resume`` are for Python.  A sweep is a folder (folder.py) with a plan (plan.py, from words by
grammar.py and samplers.py or search.py); workers (worker.py) pull runs from it under leases (lease.py), and an
engine (local.py, slurm.py, cluster.py) only decides how they are started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["resume", "run"]

if TYPE_CHECKING:
    from moecli.sweep.start import resume, run


def __getattr__(name: str) -> Any:
    """Nothing heavy is imported before it is asked for."""
    if name in __all__:
        from moecli.sweep import start

        return getattr(start, name)
    raise AttributeError(f"module 'moecli.sweep' has no attribute {name!r}")
