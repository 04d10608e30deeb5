"""moe new: what it writes works at once, in a plugin's folder and in a checkout; what cannot be is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from moecli import config
from moecli.cli import new
from moecli.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
GROUPS = get_args(new.Group)


def moe(*words, cwd):
    return run(sys.executable, "-m", "moecli", *words, cwd=cwd)


def run(*words, cwd):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MOE_")}
    return subprocess.run(words, cwd=cwd, env={**kept, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


@pytest.fixture
def parts(tmp_path):
    """A plugin's folder with a new part of each group."""
    for group in GROUPS:
        done = moe("new", group, f"my_{group}", "--into", "my parts", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        suggested = [line.replace(" next ", "").strip() for line in done.stdout.splitlines()[1:]]
        assert suggested[1:] == [
            f"moe show --plugin 'my parts' {group}=my_{group}",
            f"python -m pytest 'my parts/test_my_{group}.py'",
        ]
    return tmp_path / "my parts"


WORDS = ["--plugin", "my parts", "task=spirals", "router=my_router", "gate=my_gate", "auxiliary=[my_auxiliary]"]


def test_a_plugin_of_each_group_passes_its_test_at_once(parts):
    tested = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(parts), cwd=parts.parent)
    assert tested.returncode == 0 and "5 passed" in tested.stdout, tested.stdout + tested.stderr


@pytest.mark.slow
def test_a_plugin_of_each_group_trains_and_its_test_has_teeth(parts):
    trained = moe("train", *WORDS, "trainer.steps=2", "--quiet", cwd=parts.parent)
    assert trained.returncode == 0, trained.stderr
    router = parts / "my_router.py"
    router.write_text(router.read_text().replace("Claims(density=False)", "Claims()"))
    assert run(sys.executable, "-m", "pytest", "-q", str(parts), cwd=parts.parent).returncode == 1


def test_in_a_checkout_they_go_to_the_projects_own_places(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "conf_root", lambda: tmp_path / "conf")
    for group in GROUPS:
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "old.yaml").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path / "conf")
    config.registry.cache_clear()
    for group in GROUPS:
        new.new(group, "brand_new")
    monkeypatch.undo()
    config.registry.cache_clear()
    for group, package in new.PACKAGES.items():
        target = f"_target_: moecli.{package}.brand_new.BrandNew\n"
        assert target in (tmp_path / f"conf/{group}/brand_new.yaml").read_text()
        assert "class BrandNew(" in (tmp_path / f"moecli/{package}/brand_new.py").read_text()
        assert "plugin" not in (tmp_path / f"tests/{package}/test_brand_new.py").read_text()
        assert (ROOT / "moecli" / package).is_dir()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("top_k", "one already"),
        ("a-b", "no Python name"),
        ("class", "no Python name"),
        ("null", "no Python name"),
        ("_shared", "no Python name"),
        ("1st", "no Python name"),
        ("../x", "no Python name"),
        ("é", "no Python name"),
        ("", "no Python name"),
        ("random", "Python module"),
        ("torch", "Python module"),
        ("sparse", "hide the Sparse"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_is_written(name, why, tmp_path):
    with pytest.raises(UsageError, match=why) as caught:
        new.new("router", name, tmp_path)
    assert ". " in str(caught.value) and not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept(tmp_path):
    (tmp_path / "test_mine.py").write_text("precious")
    with pytest.raises(UsageError, match=r"test_mine\.py: it exists"):
        new.new("router", "mine", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["test_mine.py"]
    assert (tmp_path / "test_mine.py").read_text() == "precious"


def test_there_is_a_template_for_each_group():
    found = {file.name for file in (Path(new.__file__).parent / "templates").iterdir()}
    assert found == {f"{group}.{kind}.txt" for group in GROUPS for kind in ("py", "yaml", "test")}
    assert set(new.PACKAGES) == set(GROUPS) <= set(config.registry())
