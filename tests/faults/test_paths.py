"""Paths and names are ordinary input, whatever letters they have (D9, E1): what is typed is the file that is read."""

import json
import os
import subprocess
import sys
import unicodedata

import pytest

from moecli.cli import app as application
from tests.faults.forking import TINY

NAMES = [
    "plain", "accént", unicodedata.normalize("NFD", "accént"), "日本語", "🎲", "שלום", "a\u202eb", "[a]", "[a", "a]", "{x}", "(y)",
    "a,b", "a b", " lead", "trail ", "two  blanks", "it's", '"q"', "'q'", "'", "a=b", "$HOME", "#x", "a;b", "100%", "a:b", "a: b",
    "*?", "~x", "-dash", "back\\slash", "ends\\", "&x", "!x", "@x", "|x", "`x`", "null", "true", "NO", "1e5", "012", "new\nline", "\ttab",
    "\x1b[31m", "\x85", "\u2028", "${x", "$x}", "_target_", "x" * 120,
]  # fmt: skip
REFUSED = [name for name in NAMES if "${" in name]  # an interpolation, and refused as one
RUNS = ["~/a, [b] é 日本/it's = $HOME #x: {y}\\"]


def table(rows):
    return "a,y\n" + "".join(f"{i},{i * 1.5}\n" for i in range(rows))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with a table ~/NAME/NAME.csv of its own number of rows for each name."""
    folder = tmp_path_factory.mktemp("home")
    for number, name in enumerate(NAMES):
        (folder / name).mkdir()
        (folder / name / f"{name}.csv").write_text(table(20 + number))
    assert len(list(folder.glob("*/*.csv"))) == len(NAMES) >= 50
    return folder


@pytest.fixture
def moe(home, monkeypatch, capsys):
    """Run ``moe ...`` in this process, in a folder of the home: (exit code, standard output, standard error)."""
    monkeypatch.setenv("HOME", str(home))

    def run(*words, folder=home):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["moe", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            application.main()
        return (ended.value.code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED], ids=ascii)
def test_the_table_that_is_named_is_the_one_that_is_read(name, home, moe):
    rows = 20 + NAMES.index(name)
    for path, folder in ((f"~/{name}/{name}.csv", home), (f"{name}.csv", home / name)):
        code, out, err = moe("show", "task=table", f"task.path={path}", "task.target=y", folder=folder)
        assert (code, err) == (0, ""), err
        assert f" rows read: {rows} of " in out
        assert "\x1b" not in out and "\u202e" not in out


@pytest.mark.parametrize("name", REFUSED)
def test_an_interpolation_in_a_path_is_refused_and_said(name, home, moe):
    code, _, err = moe("show", "task=table", f"task.path=~/{name}/{name}.csv", "task.target=y")
    assert code == 2 and "${...}" in err and err.count("\n") == 1


def test_a_path_that_is_not_there_is_named(home, moe):
    code, _, err = moe("show", "task=table", "task.path=~/[no], such é.csv", "task.target=y")
    assert code == 3 and f"{home}/[no], such é.csv" in err


def test_a_folder_of_texts_may_be_called_anything(home, moe):
    folder = home / "texts, [of] é 'all' kinds"
    folder.mkdir()
    for name in ("日本", "a=b"):
        (folder / name).mkdir()
        (folder / name / "1.txt").write_text("so many words that a window fits in. " * 300)
    code, out, err = moe("show", "task=text", f"task.path=~/{folder.name}")
    assert (code, err) == (0, "") and "domain 日本" in out and "domain a=b" in out


@pytest.mark.parametrize("runs", RUNS)
def test_runs_may_lie_anywhere_and_are_read_again(runs, home, moe):
    words = [*TINY, "task=table", "task.path=~/a,b/a,b.csv", "task.target=y"]
    words = [word for word in words if word not in ("task=piecewise", "task.rows=60")]
    code, out, err = moe("train", *words, "--json", f"--runs={runs}")
    assert code == 0, err
    run = json.loads(out)["run"]
    root = home / runs.removeprefix("~/")
    assert len(list(root.glob("*/*/run.json"))) == 1
    short = run.replace(str(home), "~")  # as a shell leaves it in --config=~/... and in key=~/...
    code, out, err = moe("train", f"--config={short}/config.yaml", f"init={short}", "--json", "--runs=again")
    assert code == 0, err
    for words in (
        ["show", run],
        ["ls", "runs", "--runs", runs],
        ["eval", run],
        ["compare", str(root)],
        ["plot", run, "curves"],
    ):
        code, _, err = moe(*words)
        assert (code, err) == (0, ""), (words, err)


@pytest.mark.parametrize("name", ["a b, [é].csv", "~/it's $HOME #1 = '日本'.csv"])
def test_a_process_of_its_own_reads_it_too(name, home):
    (home / name.removeprefix("~/")).write_text(table(17))
    words = ["show", "task=table", f"task.path={name}", "task.target=y"]
    done = subprocess.run(
        [sys.executable, "-m", "moecli", *words],
        capture_output=True,
        text=True,
        cwd=home,
        env={**os.environ, "HOME": str(home)},
    )
    assert (done.returncode, done.stderr) == (0, "") and " rows read: 17 of " in done.stdout


def test_a_name_that_is_no_unicode_is_refused_in_one_line(home, moe):
    name = os.fsdecode(b"caf\xe9.csv")
    (home / name).write_text(table(18))
    code, _, err = moe("show", "task=table", f"task.path={name}", "task.target=y")
    assert code in (2, 3) and err.count("\n") == 1 and err.startswith("moe: error: ")


SLUGS = [
    "日本語",
    "🎲",
    "a b",
    "a/b",
    "../x",
    "..",
    ".",
    "",
    "-x",
    "x" * 101,
    "a\nb",
    "a:b",
    "é",
    "e\u0301",
    "\u202ex",
    "~",
    "/abs",
    "C:\\x",
    "a\0b",
]


@pytest.mark.parametrize("name", SLUGS, ids=ascii)
def test_a_name_of_a_run_that_some_disk_refuses_is_refused(name, tmp_path):
    from moecli.errors import UsageError
    from moecli.record.folder import claim

    with pytest.raises(UsageError, match="--name"):
        claim(tmp_path / "runs", name)
    assert not list(tmp_path.iterdir())
    assert claim(tmp_path / "runs", "a.b-c_1").parent.parent == tmp_path / "runs"
