"""moe report: what it writes, what it says, and errors of one line."""

from __future__ import annotations

import re
import shutil
import sys

import pytest

from moecli.cli import app as application
from moecli.cli import report


@pytest.fixture
def moe(monkeypatch, capsys, tmp_path):
    """Run ``moe report ...`` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["moe", "report", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            application.main()
        return (ended.value.code, *capsys.readouterr())

    return run


def fails(result, code, needle):
    got, _, err = result
    assert got == code and needle in err, err
    assert re.fullmatch(r"moe: error: [^\n]+\. [^\n]+\n", err), err


def test_the_page_and_the_text(moe, tiny_run, tmp_path):
    code, out, _ = moe(tiny_run.path)
    assert code == 0 and re.fullmatch(r" report\.html  1 run, \d+ kB\n", out)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("</html>") == 1
    code, out, _ = moe(tiny_run.path, "-o", "x.md")
    assert code == 0 and (tmp_path / "x.md").read_text(encoding="utf-8").startswith("# piecewise")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "x.md"}


def test_the_examples_of_its_help_run(moe, tiny_run, tmp_path):
    shutil.copytree(tiny_run.path.parent, tmp_path / "runs" / "digits-x")
    for line in re.findall(r"`moe report ([^`]*)`", report.EPILOG):
        words = ["runs/digits-x" if "*" in word else word for word in line.split()]
        assert moe(*[word.replace("router.k", "seed") for word in words])[0] == 0, line


def test_what_cannot_be_done_is_one_line(moe, tiny_run, tmp_path):
    fails(moe("nowhere"), 4, "nowhere: no such folder")
    fails(moe(tmp_path), 2, "no run in these folders")
    fails(moe(tiny_run.path, "-o", "x.pdf"), 2, "-o x.pdf: a report is .html or .md")
    fails(moe(tiny_run.path, "-o", "none/x.html"), 5, "none/x.html")
    fails(moe(tiny_run.path, "--by", "rooter"), 2, "--by rooter: no run has this key")
    fails(moe(tiny_run.path, "-o", "x.md", "--tensorboard", "tb"), 2, "Choose one")
    (tmp_path / "x.html").mkdir()
    fails(moe(tiny_run.path, "-o", "x.html"), 5, "x.html")


def test_a_broken_run_is_left_out_with_exit_8(moe, tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "r" / "good")
    shutil.copytree(tiny_run.path, tmp_path / "r" / "bad")
    (tmp_path / "r" / "bad" / "run.json").write_text("{")
    fails(moe("r"), 8, "1 of 2 runs left out: r/bad: ")
    assert "r/good" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_tensorboard(moe, tiny_run, tmp_path):
    pytest.importorskip("tensorboard")
    code, out, _ = moe(tiny_run.path, "--tensorboard", "events")
    assert code == 0 and "tensorboard --logdir events" in out
    assert list((tmp_path / "events").glob(f"tiny/{tiny_run.path.name}/events.out.tfevents.*"))
    assert not (tmp_path / "report.html").exists()
