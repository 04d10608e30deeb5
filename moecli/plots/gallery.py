"""The kinds of pictures, found by listing this package, drawn into a run's ``plots/``: a usual set, or all."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import moecli.plots
from moecli.errors import PartialSuccess, UsageError
from moecli.plots.contact import sheet
from moecli.plots.figure import save
from moecli.record.folder import Run

NO_KINDS = {"contact", "figure", "gallery", "numbers", "plane", "recorded", "selection", "shares"}
# what every training draws; the other kinds are for whoever looks closer
STANDARD = (
    "curves", "film", "fit", "gates", "labels", "likelihood", "load", "regions", "responsibility", "samples", "tree",
)  # fmt: skip


def kinds() -> dict[str, str]:
    """Each kind of picture with the line that describes it."""
    return {name: (module.__doc__ or "").partition("\n")[0] for name, module in _modules().items()}


def draw_all(run: Run, kinds: list[str] | None = None) -> list[Path]:
    """Draw these kinds, or the standard ones; a kind whose data the run folder lacks draws nothing."""
    return list(pictures(run, STANDARD if kinds is None else kinds))


def draw_named(run: Run, kinds: list[str]) -> Iterator[Path]:
    """These kinds, one after another.  Raises PartialSuccess at the end for those that draw nothing of this run."""
    modules = _modules()
    empty = []
    for kind in [_known(kind, modules) for kind in kinds]:
        paths = list(pictures(run, [kind]))
        yield from paths
        if not paths:
            empty.append(kind)
    if empty:
        raise PartialSuccess(
            f"{', '.join(empty)} ({run.path}): it has nothing to draw there. docs/pictures.md says where each kind is drawn"
        )


def draw_whole(run: Run) -> Iterator[Path]:
    """Every kind, and at last ``contact.png`` with all of them, where any was drawn."""
    paths = []
    for path in pictures(run, _modules()):
        paths.append(path)
        yield path
    if paths:
        yield sheet(paths, run.path / "plots" / "contact.png")


def pictures(run: Run, kinds: Iterable[str]) -> Iterator[Path]:
    """One picture after another, so that whoever loops still has those before the one that fails."""
    modules = _modules()
    chosen = [modules[_known(kind, modules)] for kind in kinds]
    folder = run.path / "plots"
    for module in chosen:
        for stem, picture in module.draw(run).items():
            folder.mkdir(exist_ok=True)
            yield save(picture, folder / stem)


def _modules() -> dict[str, ModuleType]:
    names = sorted({module.name for module in pkgutil.iter_modules(moecli.plots.__path__)} - NO_KINDS)
    modules = {name: import_module(f"moecli.plots.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "draw")}


def _known(kind: str, modules: dict[str, ModuleType]) -> str:
    if kind in modules:
        return kind
    near = difflib.get_close_matches(kind, modules, 1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"{kind!r}: no such kind of picture.{hint} There are: {', '.join(modules)}")
