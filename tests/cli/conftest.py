"""The command line, called in this process."""

from __future__ import annotations

import sys

import pytest

from moecli.cli import app


@pytest.fixture
def moe(monkeypatch, capsys, tmp_path):
    """Run ``moe ...`` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["moe", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return (ended.value.code, *capsys.readouterr())

    return run
