"""conf/ is found from a wheel and from a checkout, and what must be quick imports nothing heavy."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = re.compile(
    "No matching distribution found for hatchling|NewConnectionError|Connection (refused|reset)|timed out"
)
HEAVY = ("torch", "pandas", "matplotlib", "sklearn", "scipy", "hydra", "omegaconf", "pydantic")
COMPOSE = """
import json, moecli
from moecli.config import compose, conf_root, registry
config = compose([]).config
print(json.dumps({"package": moecli.__file__, "conf": str(conf_root()), "router": config["choices"]["router"],
                  "groups": {group: sorted(options) for group, options in registry().items()}}))
"""


def options() -> dict[str, list[str]]:
    """{group: its options} straight from the checkout's conf/."""
    files = [f for f in (ROOT / "conf").glob("*/*.yaml") if not f.name.startswith("_")]
    return {group: sorted(f.stem for f in files if f.parent.name == group) for group in {f.parent.name for f in files}}


def python(*arguments: str, path: Path | None, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python elsewhere, with nothing but ``path`` before what is installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MOE_", "PYTHON"))}
    environment = {**kept, "PYTHONPATH": str(path)} if path else kept
    return subprocess.run([sys.executable, "-P", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The unzipped wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip to build a wheel with")
    isolated = [] if importlib.util.find_spec("hatchling") is None else ["--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--wheel-dir", str(folder), *isolated]
    built = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if built.returncode and OFFLINE.search(built.stdout + built.stderr):
        pytest.skip("building a wheel needs hatchling, and no network brought it")
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("moecli-*.whl")
    ZipFile(file).extractall(folder / "site")
    return folder / "site"


def check_from_elsewhere(home: Path | None, conf: Path, cwd: Path) -> None:
    """Composing and ``moe ls router`` work from ``cwd``, with the package below ``home`` and its conf/ at ``conf``."""
    composed = python("-c", COMPOSE, path=home, cwd=cwd)
    assert composed.returncode == 0, composed.stderr
    found = json.loads(composed.stdout)
    assert Path(found["package"]).parents[1] == (home or ROOT)
    assert Path(found["conf"]) == conf
    assert found["router"] == "top_k"
    assert found["groups"] == options()
    listed = python("-m", "moecli", "ls", "router", path=home, cwd=cwd)
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == options()["router"]


def test_the_wheel_holds_every_option(wheel):
    ours = {str(f.relative_to(ROOT / "conf")): f.read_bytes() for f in (ROOT / "conf").rglob("*.yaml")}
    packed = {
        str(f.relative_to(wheel / "moecli/conf")): f.read_bytes() for f in (wheel / "moecli/conf").rglob("*.yaml")
    }
    assert len(ours) >= 40
    assert packed == ours
    assert (wheel / "moecli/conf/references.bib").read_bytes() == (ROOT / "conf/references.bib").read_bytes()
    templates = {f.name for f in (ROOT / "moecli/cli/templates").iterdir()}
    assert len(templates) >= 3 and {f.name for f in (wheel / "moecli/cli/templates").iterdir()} == templates
    page = {f.name for f in (ROOT / "moecli/report/page").iterdir() if f.suffix in (".html", ".css", ".js")}
    assert len(page) == 3 and page <= {f.name for f in (wheel / "moecli/report/page").iterdir()}
    modules = {str(f.relative_to(ROOT)) for f in (ROOT / "moecli").rglob("*.py")}
    assert {str(f.relative_to(wheel)) for f in wheel.rglob("*.py")} == modules


def test_the_wheel_works_from_another_folder(wheel, tmp_path):
    check_from_elsewhere(wheel, wheel / "moecli/conf", tmp_path)


def test_the_checkout_works_from_another_folder(tmp_path):
    check_from_elsewhere(ROOT, ROOT / "conf", tmp_path)


def loaded_after(code: str, cwd: Path) -> set[str]:
    """Which heavy libraries a fresh Python has loaded after ``code``."""
    done = python("-c", f"{code}\nimport sys\nprint('loaded', *sys.modules)", path=ROOT, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return set(HEAVY) & set(done.stdout.splitlines()[-1].split())


def test_the_guard_sees_a_heavy_library(tmp_path):
    assert loaded_after("import pydantic", tmp_path) == {"pydantic"}


def test_help_loads_nothing_heavy(tmp_path):
    assert not loaded_after("import moecli.cli.app", tmp_path)
    assert python("-m", "moecli", "--help", path=ROOT, cwd=tmp_path).returncode == 0


TYPO = """
import sys
from moecli.config import compose
from moecli.errors import UsageError
try:
    compose(["router.capacity_facto=1.25"])
except UsageError as error:
    assert error.code == 2 and "router.capacity_factor?" in str(error), error
else:
    raise AssertionError("the typo went through")
"""


def test_a_typo_is_answered_without_torch(tmp_path):
    assert not loaded_after(TYPO, tmp_path) & {"torch", "pandas", "matplotlib", "sklearn", "scipy"}
    said = python("-m", "moecli", "train", "router.capacity_facto=1.25", path=ROOT, cwd=tmp_path)
    assert said.returncode == 2
    assert said.stderr.startswith("moe: error: router.capacity_facto ")
    assert said.stderr.count("\n") == 1 and not said.stdout
    assert not list(tmp_path.iterdir())


def test_composing_loads_no_torch(tmp_path):
    assert not loaded_after("from moecli.config import compose; compose([])", tmp_path) & {"torch", "pandas", "sklearn"}
