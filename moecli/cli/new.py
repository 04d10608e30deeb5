"""moe new: a part of one's own, begun from one that works."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import typer

from moecli.cli.common import example
from moecli.errors import UsageError

EPILOG = example("moe new router mine --into my_parts", "moe new gate mine_too --into my_parts")

Group = Literal["router", "gate", "auxiliary"]  # each has three files in templates/
PACKAGES = {"router": "routers", "gate": "gates", "auxiliary": "losses"}  # where moecli keeps its own


def new(
    group: Annotated[Group, typer.Argument(metavar="GROUP", help="router, gate or auxiliary.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called, as a Python name: by_length.")],
    into: Annotated[
        Path | None,
        typer.Option(help="A folder for --plugin; else this one, or in moecli's checkout the places of its own parts."),
    ] = None,
) -> None:
    """Write a part that works, with its options and its test, to make your own of."""
    templates = {kind: _template(group, kind) for kind in ("py", "yaml", "test")}
    _check(group, name, templates["py"])
    place = _place(group, name, into)
    place.write(name, templates)
    print(f" wrote  {' · '.join(map(str, place.paths.values()))}")
    plugin = f" --plugin {shlex.quote(str(place.plugin))}" if place.plugin else ""
    chosen = f"'auxiliary=[{name}]'" if group == "auxiliary" else f"{group}={name}"
    print(f" next   moe train{plugin} {chosen}")
    print(f"        moe show{plugin} {group}={name}")
    print(f"        python -m pytest {shlex.quote(str(place.paths['test']))}")


@dataclass(frozen=True)
class Place:
    """Where the three files go, and what the class is imported as; ``plugin`` is None for a part of moecli's own."""

    paths: dict[str, Path]
    module: str
    plugin: Path | None

    def write(self, name: str, templates: dict[str, str]) -> None:
        """Raises UsageError where one of the files is there already, before any is written."""
        for path in self.paths.values():
            if path.exists():
                raise UsageError(f"{path}: it exists already. Choose another name, or another folder with --into")
        words = {"name": name, "Class": class_name(name), "target": f"{self.module}.{class_name(name)}"}
        words["path"] = "from pathlib import Path\n\n" if self.plugin else ""
        words["plugin"] = "config.use_plugins([Path(__file__).parent])" if self.plugin else ""
        for kind, path in self.paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            text = Template(templates[kind]).substitute(words)
            path.write_text(re.sub(r"\n{4,}", "\n\n\n", text), encoding="utf-8")


def class_name(name: str) -> str:
    """by_length -> ByLength."""
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def _template(group: str, kind: str) -> str:
    return (files("moecli.cli") / "templates" / f"{group}.{kind}.txt").read_text(encoding="utf-8")


def _place(group: str, name: str, into: Path | None) -> Place:
    from moecli.config import conf_root

    root, here = conf_root().parent, (into or Path()).expanduser()
    within = here.resolve() == root or (into is None and root in here.resolve().parents)
    if within and (root / "pyproject.toml").is_file():
        package = PACKAGES[group]
        source, test = root / "moecli" / package / f"{name}.py", root / "tests" / package / f"test_{name}.py"
        return Place(_paths(source, root, group, name, test), f"moecli.{package}.{name}", None)
    if importlib.util.find_spec(name):
        raise UsageError(f"moe new {group} {name}: there is a Python module {name} already. Choose another name")
    return Place(_paths(here / f"{name}.py", here, group, name, here / f"test_{name}.py"), name, here)


def _paths(source: Path, root: Path, group: str, name: str, test: Path) -> dict[str, Path]:
    return {"py": source, "yaml": root / "conf" / group / f"{name}.yaml", "test": test}


def _check(group: str, name: str, source: str) -> None:
    """Raise UsageError for a name that is no Python name, is taken, or would hide what the template uses."""
    from moecli.config import registry

    where = f"moe new {group} {name}"
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or keyword.iskeyword(name) or name in ("null", "true", "false"):
        raise UsageError(f"moe new {group} {name!r}: no Python name. Use letters, digits and _, as in by_length")
    if name in registry()[group]:
        raise UsageError(f"{where}: there is one already (moe show {group}={name}). Choose another name")
    if class_name(name) in re.findall(r"\w+", source):
        raise UsageError(
            f"{where}: its class would hide the {class_name(name)} that it is made of. Choose another name"
        )
