"""Begin a sweep, go on with one, and say how it ended: what ``moe sweep`` wraps and ``moecli.sweep`` offers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from moecli.config import Word, find, load_yaml, text
from moecli.errors import UsageError
from moecli.record.folder import check_name, runs_root
from moecli.sweep import grammar, local, plan
from moecli.sweep.folder import Sweep
from moecli.sweep.plan import Plan
from moecli.sweep.view import view

ENGINES = ("local", "slurm", "ray")
NAMED = "sweep"  # the key that chooses a file of conf/sweep/
OWN = ("sampler", "trials", "twin")  # of such a file, beside its words


@dataclass(frozen=True)
class Order:
    """How a sweep is made and worked through; None is what is usual."""

    sampler: str | None = None
    trials: int | None = None
    jobs: int | None = None
    budget: float | None = None  # seconds
    engine: str = "local"
    twin: bool = False
    yes: bool = False
    name: str | None = None
    runs: Path | None = None
    plugins: tuple[Path, ...] = ()
    command: str = ""
    quiet: bool = True


def make(words: Sequence[str], order: Order) -> tuple[Plan, str]:
    """The plan of ``key=value`` words, all of it checked, and a name for its folder.  Raises UsageError."""
    words, order = _with_named(words, order)
    if order.name is not None:
        check_name(order.name)
    refuse_engine(order)
    if order.sampler == "tpe":
        from moecli.sweep.search import require

        require()
        if order.twin:
            raise UsageError("--twin (--sampler tpe): a search has no fixed trials. Sweep its best ones with --twin")
    made = plan.make(grammar.parse(words), order.sampler or "grid", order.trials, order.twin, any_number=order.yes)
    from moecli.sweep.fit import refuse_unfit  # which imports torch: a typo is answered before

    refuse_unfit(made)
    made.threads, made.folder, made.command = local.threads(jobs_of(made, order)), os.getcwd(), order.command
    task = next(base.config["choices"]["task"] for base in made.bases if base.config)
    return made, order.name or f"{task}-sweep"


def refuse_engine(order: Order) -> None:
    if order.engine not in ENGINES:
        raise UsageError(f"--engine {order.engine}: no such engine. Choose from: {', '.join(ENGINES)}")


def jobs_of(made: Plan, order: Order) -> int:
    """How many workers: as asked for, else one for each core, and never more than there are runs."""
    trials = made.trials if made.sampler == "tpe" else len(made.points)
    return max(1, min(order.jobs or local.cores(), trials * len(made.seeds)))


def _with_named(words: Sequence[str], order: Order) -> tuple[list[str], Order]:
    """The words of ``sweep=NAME`` with the user's over them, and what its file says beside them."""
    parsed = [Word.parse(word) for word in words]
    name = next((word.value for word in parsed if word.key == NAMED), None)
    if name is None:
        return list(words), order
    found = load_yaml(find(NAMED, name).read_text(encoding="utf-8"))
    given = {word.key for word in parsed}
    own = [f"{key}={text(value)}" for key, value in found.items() if key not in (*given, *OWN)]
    sampler = order.sampler or found.get("sampler")
    trials = order.trials or (found.get("trials") if sampler == found.get("sampler") else None)
    order = replace(order, sampler=sampler, trials=trials, twin=order.twin or found.get("twin", False))
    return [*own, *(w for w in words if not w.startswith(f"{NAMED}="))], replace(order, name=order.name or name)


def begin(made: Plan, name: str, order: Order) -> Sweep:
    """Claim a folder for a plan."""
    return Sweep.create(runs_root(order.runs), name, made)


def opened(folder: Path) -> Sweep:
    """A sweep folder again.  Raises ArtifactError where it is none."""
    return Sweep(folder.expanduser().absolute())


def work(sweep: Sweep, order: Order) -> str | None:
    """Start the engine; all but ``slurm`` come back when all is done, that at once, with the number of its job."""
    refuse_engine(order)
    sweep.allow(order.budget)
    jobs = jobs_of(sweep.plan, order)
    if order.engine == "slurm":
        from moecli.sweep import slurm

        return slurm.submit(sweep, jobs, order.plugins)
    shown = view(sweep, order.quiet)
    try:
        if order.engine == "ray":
            from moecli.sweep import cluster

            cluster.run(sweep, jobs, order.plugins, shown.look)
        else:
            local.run(sweep, jobs, partial(local.worker_command, plugins=order.plugins), shown.look)
    finally:
        shown.close()
    return None


def run(*words: str, **options: Any) -> Sweep:
    """Sweep what ``key=value`` words describe, as ``moe sweep`` does; returns its folder, read.

    ``options`` are those of ``Order``.  Runs that failed do so without an exception: ``counts`` and ``done`` tell.

    >>> sweep = moecli.sweep.run("router=top_k,expert_choice", "seed=0..4", jobs=2)
    >>> [(point.name, value) for point, value in sweep.ranked()]
    """
    order = Order(**{"command": f"moecli.sweep.run{words}", **options})
    order = replace(order, runs=Path(order.runs) if order.runs else None)
    made, name = make(words, order)
    sweep = begin(made, name, order)
    work(sweep, order)
    return sweep


def resume(folder: Path | str, **options: Any) -> Sweep:
    """Go on with a sweep: what is finished stays, what was interrupted goes on from its checkpoint."""
    sweep = opened(Path(folder))
    work(sweep, Order(**options))
    return sweep


def seconds(budget: str) -> float:
    """``90s``, ``30m``, ``2h``, ``1h30m`` in seconds.  Raises UsageError for anything else."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", budget)
    if not found or not any(found.groups()):
        raise UsageError(f"--budget {budget}: no length of time. Write for example 90s, 30m or 2h")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60.0 * minutes + rest
