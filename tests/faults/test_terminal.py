"""Any terminal, any locale, any interpreter flag: help, errors and results stay whole (D10-D14)."""

import os
import re
import subprocess
import sys

import pytest

from moecli.cli import app as application

COMMANDS = [[], *([command.name] for command in application.app.registered_commands)]
MARKUP = ["[/oops]", "[bold red]x", "[link=http://x]y[/link]", "[/]", "[[", "]", "\\[x]", ":smile:", "{x}", "%s", "\x1b[31mred",
          "\x1b]8;;http://x\x07y", "\x9b31m", "\r\x1b[2K", "\u202eabc", "\x07"]  # fmt: skip
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture
def moe(monkeypatch, capsys, tmp_path):
    """Run ``moe ...`` in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["moe", *words])
        with pytest.raises(SystemExit) as ended:
            application.main()
        return (ended.value.code, *capsys.readouterr())

    return run


def one_line(result, code=2):
    got, out, err = result
    assert (got, out) == (code, ""), result
    assert re.fullmatch(r"moe: error: [^\n]+\n", err) and not CONTROL.search(err.rstrip("\n")), err


# -- help (D10) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 20, 41, 80, 300])
def test_every_command_has_help_at_every_width(width, moe, monkeypatch):
    assert len(COMMANDS) >= 8
    for name, value in {"COLUMNS": str(width), "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    for command in COMMANDS:
        code, out, err = moe(*command, "--help")
        assert (code, err) == (0, "") and not CONTROL.search(out)
        assert width < 80 or "Usage: " in out


@pytest.mark.parametrize("command", COMMANDS[1:], ids=" ".join)
def test_an_unknown_option_and_a_missing_value_are_one_line(command, moe):
    one_line(moe(*command, "--no-such-option"))
    one_line(moe(*command, "--helpp"))
    if command == ["train"]:
        for option in ("--name", "--runs", "--config", "--plugin"):
            one_line(moe(*command, option))


def test_an_unknown_command_is_one_line(moe):
    for typed in ("trian", "Train", "--trian", "-x", "train=1", "é", *MARKUP):
        one_line(moe(typed))


# -- names with markup (D11) --------------------------------------------------------------------------


@pytest.mark.parametrize("name", MARKUP, ids=ascii)
def test_markup_and_escapes_are_text(name, moe, tmp_path):
    for words in (["train", f"router={name}"], ["train", f"router.{name}=1"], ["train", f"seed={name}"], ["train", "--name", name],
                  ["ls", name], ["show", f"router={name}"]):  # fmt: skip
        one_line(moe(*words))
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{i},{i * 1.5}\n" for i in range(30)))
    code, _, err = moe("show", "task=table", "task.path=a.csv", f"task.target={name}")
    assert code in (2, 3)  # what stands in brackets is read as a list
    one_line((code, "", err), code)
    quoted = name.replace('"', '""')
    (tmp_path / "b.csv").write_text(f'"{quoted}",y\n' + "".join(f"{i},{i * 1.5}\n" for i in range(30)), newline="")
    code, out, err = moe("show", "task=table", "task.path=b.csv", "task.target=y")
    assert (code, err) == (0, "") and not CONTROL.search(out)
    assert CONTROL.search(name) or f"columns standardised by training rows: {name}\n" in out


# -- locale and interpreter (D12-D14) -----------------------------------------------------------------


def python(*flags, **env):
    """``moe`` in an interpreter of its own: run(words) -> its result."""

    def run(*words, cwd=None):
        given = {**os.environ, "PYTHONPATH": os.getcwd() if "-I" not in flags else "", **env}
        return subprocess.run([sys.executable, *flags, "-m", "moecli", *words], capture_output=True, env=given, cwd=cwd)

    return run


def test_an_ascii_terminal_gets_ascii_and_files_are_utf_8(tmp_path):
    (tmp_path / "é.csv").write_text("größe,y\n" + "".join(f"{i},{i * 1.5}\n" for i in range(30)), encoding="utf-8")
    run = python(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    done = run("train", "task=table", "task.path=日本.csv", "task.target=größe", "--cfg", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.isascii()
    done = run("train", "router=日本")
    assert done.returncode == 2 and done.stderr.isascii() and done.stderr.count(b"\n") == 1


WORDS = ("train", "task=piecewise", "router=noisy_top_k", "optimizer.lr=1e-3", "--cfg")
INTERPRETERS = [
    ((), {"PYTHONHASHSEED": "1"}),
    (("-O",), {}),
    (("-OO",), {"PYTHONHASHSEED": "2"}),
    (("-W", "error"), {}),
]


def test_what_is_composed_depends_on_no_hash_seed_and_no_flag():
    expected = python(PYTHONHASHSEED="0")(*WORDS)
    assert expected.returncode == 0 and b"NoisyTopK" in expected.stdout
    for flags, env in INTERPRETERS:
        assert python(*flags, **env)(*WORDS).stdout == expected.stdout, (flags, env)
    assert python(PYTHONHASHSEED="0")(*WORDS, "seed=1").stdout != expected.stdout


@pytest.mark.parametrize(("flags", "env"), INTERPRETERS[1:3])
def test_nothing_is_refused_by_an_assertion(flags, env):
    for words in (["train", "router.k=-1"], ["train", "router.kk=1"]):
        done = python(*flags, **env)(*words)
        assert done.returncode == 2 and done.stderr.startswith(b"moe: error: ")


@pytest.mark.slow
def test_what_is_trained_depends_on_no_hash_seed_and_no_flag(tmp_path):
    words = (
        "train",
        "task=piecewise",
        "task.rows=100",
        "trainer.steps=10",
        "router=noisy_top_k",
        "threads=1",
        "--quiet",
        "--runs",
    )
    found = set()
    for number, (flags, env) in enumerate([*INTERPRETERS[:3], (("-W", "error::UserWarning"), {})]):
        assert python(*flags, **env)(*words, str(tmp_path / str(number))).returncode == 0
        (metrics,) = (tmp_path / str(number)).glob("*/*/metrics.jsonl")
        found.add(metrics.read_bytes())
    assert len(found) == 1 and b"valid" in found.pop()


def test_a_wrong_word_is_refused_before_torch_is_imported():
    wrong = [
        "router=top_kk",
        "router.kk=1",
        "router.k=eight",
        "router.k=-1",
        "optimizer.lr=[",
        "model.layers=3",
        "nope",
        "seed=9e99",
    ]
    code = (
        "import sys; from moecli import config; from moecli.errors import UsageError; refused = 0\n"
        f"for word in {wrong!r}:\n"
        " try: config.compose([word])\n"
        " except UsageError: refused += 1\n"
        "print(refused, {'torch', 'pandas', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{len(wrong)} set()\n", done.stdout + done.stderr
