"""A part that an installed package brings by the entry point ``moecli.plugins``: as good as our own while it is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "moe_tiny/__init__.py": "",
    "moe_tiny/tiny.py": '''"""Top-k under a name of its own."""

from moecli.routers.top_k import TopK


class Tiny(TopK):
    """y = sum_e w_e f_e(x), as top_k does it."""
''',
    "moe_tiny/conf/router/tiny.yaml": """# Top-k from a package (Nobody, 1999)
# paper: nobody1999tiny
defaults:
  - _filters
_target_: moe_tiny.tiny.Tiny
k: 2  # experts a token chooses
renormalize: true  # weights of the chosen sum to one
recommends:
  auxiliary: [switch_balance]
""",
    "moe_tiny/conf/references.bib": "@misc{nobody1999tiny,\n  title = {{Tiny}},\n}\n",
    # what pip leaves of an installed package
    "moe_tiny-0.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: moe-tiny\nVersion: 0.1\n",
    "moe_tiny-0.1.dist-info/entry_points.txt": "[moecli.plugins]\ntiny = moe_tiny\n",
    "moe_tiny-0.1.dist-info/INSTALLER": "pip\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site-packages with the package in it."""
    site = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    return site


def moe(*words, cwd, path=()):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MOE_")}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *path]))}
    command = [sys.executable, "-m", "moecli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def test_an_installed_plugin_is_listed_explained_and_offered(site, tmp_path):
    listed = moe("ls", "router", cwd=tmp_path, path=[site])
    assert "  tiny           Top-k from a package (Nobody, 1999)\n" in listed.stdout, listed.stderr
    assert "  top_k " in listed.stdout and " tiny " not in moe("ls", "router", cwd=tmp_path).stdout
    shown = moe("show", "router=tiny", cwd=tmp_path, path=[site])
    assert shown.returncode == 0, shown.stderr
    assert "moe_tiny.tiny" in shown.stdout and "@misc{nobody1999tiny," in shown.stdout and "causal yes" in shown.stdout


def test_its_run_trains_and_is_refused_without_it(site, tmp_path):
    words = ["task=spirals", "task.rows=100", "router=tiny", "trainer.steps=2", "--quiet"]
    trained = moe("train", *words, cwd=tmp_path, path=[site])
    assert trained.returncode == 0, trained.stderr
    (run,) = tmp_path.glob("runs/spirals-tiny/*")
    unknown = moe("eval", str(run), cwd=tmp_path)
    assert (unknown.returncode, unknown.stdout) == (4, "")
    assert "moe_tiny" in unknown.stderr and "install it" in unknown.stderr and unknown.stderr.count("\n") == 1
