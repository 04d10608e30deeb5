"""README.md is true: its commands and its Python run, in order, in one shell, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SET_UP = [text.strip() for _, text in BLOCKS if "pip install" in text]  # .ci/run executes these two
TOUR = [(language, text) for language, text in BLOCKS if "pip install" not in text]
EXPLAINED = re.findall(
    r"^```(python)\n(.*?)^```$", (ROOT / "runs/README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
LIMIT = 400  # seconds, for everything


def commands(text: str) -> list[str]:
    """The commands of a block of shell, here-documents and comments left out."""
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if re.match(r"(for .*; do )?(moe|python) ", line)]


def script(blocks: list[tuple[str, str]]) -> str:
    """One bash script that stops at the first failure and says which block it was in."""
    parts = [
        f"cat > block.py <<'END'\n{t}END\npython block.py\n" if language == "python" else t for language, t in blocks
    ]
    return "set -euo pipefail\n" + "".join(f"echo '--- block {i}'\n{part}" for i, part in enumerate(parts))


def clean_environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MOE_", "PYTEST_"))}
    home = folder / "home"
    home.mkdir()
    return {
        **kept,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",  # two threads of so small a model wait for each other on a busy machine
    }


def test_what_was_found():
    assert [language for language, _ in BLOCKS].count("bash") == 16
    assert [language for language, _ in BLOCKS].count("python") == 1
    assert sum(len(commands(text)) for language, text in TOUR if language == "bash") == 43
    assert len(EXPLAINED) == 1


def test_set_up_is_two_commands_and_ci_runs_the_same():
    assert len(SET_UP) == 2
    run = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert [line for line in run if "pip install" in line] == SET_UP
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_every_command_is_shown():
    shown = {verb for _, text in TOUR for verb in re.findall(r"^(?:for .*; do )?moe (\w+)", text, re.MULTILINE)}
    assert shown == {
        "train",
        "eval",
        "predict",
        "compare",
        "plot",
        "ls",
        "show",
        "new",
        "doctor",
        "replicate",
        "criteria",
        "sweep",
        "report",
        "explain",
        "bench",
        "size",
        "upcycle",
    }


def test_the_tour_runs(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    started = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", script([*TOUR, *EXPLAINED])],
        cwd=work,
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
    )
    seconds = time.monotonic() - started
    print(f"README's tour took {seconds:.0f} s")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "Traceback" not in said
    assert not list(work.glob("runs/*/*/crash-*"))
    assert not [log for log in work.glob("runs/*/*/log.txt") if "failed" in log.read_text(encoding="utf-8")]
    assert len(list(work.glob("runs/*/*/summary.json"))) == 14
    assert seconds < LIMIT
