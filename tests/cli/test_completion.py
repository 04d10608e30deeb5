"""TAB, in the three shells themselves and in process: what is offered, and that it costs no torch."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from moecli.cli import completion
from moecli.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ["bash", "zsh", "fish"]
LINES = {  # what is typed, and what stands there after TAB and an x
    "moe tra": "moe train x",
    "moe train router=expe": "moe train router=expert_choice x",
    "moe train router=expert_choice router.gr": "moe train router=expert_choice router.group=x",
    "moe train task.path=bi": "moe train task.path=bin/x",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with `moe` on the path, and the completion of each shell installed by moe itself."""
    home = tmp_path_factory.mktemp("home")
    (home / "bin").mkdir()
    moe = home / "bin" / "moe"
    moe.write_text(f"#!{sys.executable}\nfrom moecli.cli.app import main\nmain()\n")
    moe.chmod(0o755)
    for shell in SHELLS:
        done = run(home, "moe", "--install-completion", shell)
        assert done.returncode == 0, done.stderr
    for rc in (".bashrc", ".zshrc"):
        (home / rc).write_text((home / rc).read_text() + "\nPS1='READY> '\n")
    return home


HASH = "A fixed expert per vocabulary id, pair of ids or position (Roller et al., 2021)"


def environment(home, **more):
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    named = {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "40"}
    return {**os.environ, **named, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", **more}


def run(home, *command, **more):
    # by the path of the environment above, not of this process
    name = shutil.which(command[0], path=environment(home)["PATH"]) or command[0]
    return subprocess.run(
        [name, *command[1:]], env=environment(home, **more), cwd=home, capture_output=True, text=True, timeout=60
    )


def needs(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")


class Interactive:
    """A shell at a terminal.  ``tab`` says what a line became: echo prints it instead of running it."""

    def __init__(self, home, shell):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(home)
            os.execvpe(shell, [shell, "-i"], environment(home))
        self.read("READY> ")

    def tab(self, text):
        os.write(self.terminal, text.encode() + b"\tx\x01echo GOT \x05\r")
        return re.search(r"^GOT (.*?)\r?$", self.read(r"^GOT [^\n]*\n(.|\n)*READY> "), re.MULTILINE)[1]

    def read(self, until):
        seen, end = "", time.monotonic() + 30
        while not re.search(until, seen, re.MULTILINE):
            assert time.monotonic() < end, repr(seen)
            if select.select([self.terminal], [], [], 0.1)[0]:
                seen += os.read(self.terminal, 65536).decode(errors="replace")
        return seen

    def close(self):
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_in_a_terminal(shell, home):
    needs(shell)
    opened = Interactive(home, shell)
    try:
        assert {text: opened.tab(text) for text in LINES} == LINES
    finally:
        opened.close()


def test_tab_in_fish(home):
    needs("fish")

    def offered(text):
        said = run(home, "fish", "-c", f"complete -C '{text}'").stdout
        return dict(line.partition("\t")[::2] for line in said.splitlines())

    assert offered("moe train router=ha") == {
        "router=hash": "A fixed expert per vocabulary id, pair of ids or position (Roller et al., 2021)"
    }
    assert set(offered("moe train trainer.ph")) == {"trainer.phases="}  # its note has brackets, and is longer than 40
    assert set(offered("moe train task.path=bi")) == {"task.path=bin/"}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_that_is_shown_is_the_one_that_is_installed(shell, home):
    places = {"bash": ".bash_completions/moe.sh", "zsh": ".zfunc/_moe", "fish": ".config/fish/completions/moe.fish"}
    shown = run(home, "moe", "--show-completion", shell).stdout.strip()
    assert shown == (home / places[shell]).read_text().strip()
    assert run(home, "moe", _MOE_COMPLETE=f"source_{shell}").stdout.strip() == shown


def test_typer_still_has_the_tables_that_are_mended():
    from typer import _completion_shared

    assert _completion_shared._completion_scripts["bash"] == completion.BASH
    assert _completion_shared._completion_scripts["zsh"] == completion.ZSH


# -- in process: the three formats, and what is offered ----------------------------------------------------


def offered(monkeypatch, line, shell="fish"):
    """What ``shell`` would be told on TAB after ``line``."""
    from typer import _completion_classes as classes

    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("COLUMNS", "10000")
    words = line.split(" ")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    kind = {"bash": classes.BashComplete, "zsh": classes.ZshComplete, "fish": classes.FishComplete}[shell]
    return kind(typer.main.get_command(app), {}, "moe", "_MOE_COMPLETE").complete()


def words(monkeypatch, line):
    return [found.partition("\t")[0] for found in offered(monkeypatch, line).splitlines()]


def test_the_three_formats(monkeypatch):
    line = "moe train router=ha"
    note = HASH
    assert offered(monkeypatch, line, "bash") == "router=hash"
    assert offered(monkeypatch, line, "zsh") == f"""_arguments '*: :(("router=hash":"{note}"))'"""
    assert offered(monkeypatch, line, "fish") == f"router=hash\t{note}"


def test_groups_options_keys_and_values(monkeypatch, tmp_path):
    from moecli.config import registry

    monkeypatch.chdir(tmp_path)
    first = words(monkeypatch, "moe train ")
    assert {f"{group}=" for group in registry()} <= set(first) and {"seed=", "router.", "device="} <= set(first)
    assert words(monkeypatch, "moe train router=") == [f"router={option}" for option in registry()["router"]]
    assert "router.k=" in words(monkeypatch, "moe train router.")
    assert "router.k=" not in words(monkeypatch, "moe train router=hash router.")
    assert "gate.node.bias=" in words(monkeypatch, "moe train gate=tree gate.")
    assert "gate.node=mlp" in words(monkeypatch, "moe train gate=tree gate.node=")
    assert "router.k=" not in words(monkeypatch, "moe train task=piecewise router."), "which recommends router=dense"
    assert words(monkeypatch, "moe train router.renormalize=") == [
        "router.renormalize=true",
        "router.renormalize=false",
    ]
    assert words(monkeypatch, "moe train device=c") == ["device=cpu", "device=cuda"]
    assert words(monkeypatch, "moe train auxiliary=[z_loss,sw") == ["auxiliary=[z_loss,switch_balance"]
    assert words(monkeypatch, "moe train router=wrong gate=ml") == ["gate=mlp"]
    assert words(monkeypatch, "moe train router.k=") == []
    assert words(monkeypatch, "moe show router=ha") == ["router=hash"]
    assert words(monkeypatch, "moe show task=table task.pa") == ["task.path="]
    assert words(monkeypatch, "moe show task=table router.") == []
    assert words(monkeypatch, "moe ls ro") == ["router"] and "runs" in words(monkeypatch, "moe ls ru")
    assert words(monkeypatch, "moe new ro") == ["router"]


def test_every_word_that_is_offered_is_a_value_of_its_type():
    from pydantic import TypeAdapter

    from moecli.config import settable

    tried = 0
    for kind, _ in settable(["model=transformer", "router=expert_choice"]).values():
        for literal in [] if isinstance(kind, str) else completion.literals(kind.type):
            TypeAdapter(kind.type).validate_python(None if literal == "null" else literal)
            tried += 1
    assert tried >= 20


@pytest.mark.parametrize("command", ["eval", "show", "predict", "plot", "compare", "train --resume"])
def test_runs_are_offered(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOE_RUNS", raising=False)
    for name in ("a/20260101T000000-aaaa", "b/20260102T000000-bbbb"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    latest_first = ["runs/b/20260102T000000-bbbb", "runs/a/20260101T000000-aaaa"]
    assert words(monkeypatch, f"moe {command} runs/") == latest_first
    monkeypatch.setenv("MOE_RUNS", str(tmp_path / "runs"))
    assert words(monkeypatch, f"moe {command} {tmp_path}/") == [f"{tmp_path}/{name}" for name in latest_first]


def test_parts_of_a_plugin_are_offered(monkeypatch, tmp_path):
    from moecli import config

    monkeypatch.setattr(config, "_plugins", [])
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "conf" / "router").mkdir(parents=True)
    (tmp_path / "conf" / "router" / "mine.yaml").write_text("# Mine\n_target_: mine.Mine\n")
    assert words(monkeypatch, "moe train router=mi") == []
    assert words(monkeypatch, f"moe train --plugin {tmp_path} router=mi") == ["router=mine"]
    monkeypatch.undo()
    config.use_plugins([])


def test_a_failure_is_no_suggestion(monkeypatch):
    from moecli import config

    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr(config, "registry", broken)
    assert offered(monkeypatch, "moe train router=") == ""


def test_tab_loads_nothing_heavy(home):
    code = (
        "import os, sys\n"
        "os.environ.update(_MOE_COMPLETE='complete_fish', _TYPER_COMPLETE_FISH_ACTION='get-args',\n"
        "                  _TYPER_COMPLETE_ARGS='moe train router=top_k router.')\n"
        "sys.argv = ['moe']\n"
        "from moecli.cli.app import main\n"
        "try:\n    main()\n"
        "finally:\n    print({'torch', 'pandas', 'hydra', 'omegaconf', 'matplotlib', 'numpy'} & set(sys.modules))\n"
    )
    done = run(home, sys.executable, "-c", code)
    assert "router.k=" in done.stdout and done.stdout.endswith("set()\n"), done.stdout + done.stderr
