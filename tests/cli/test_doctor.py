"""`moe doctor`: exit 0 when sound, 4 for a damaged run, 5 for a machine that cannot train; a list, or JSON."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from moecli.analysis.finding import Finding
from moecli.diagnosis import environment


@pytest.fixture
def damaged(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run.path, tmp_path / "damaged")
    best = json.loads((folder / "run.json").read_text())["best_step"]
    file = folder / f"checkpoints/step-{best:08d}/optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    return folder


LINE = re.compile(r" (OK|–|warning|PROBLEM) +(intact|experts|causality|router|environment) +\S.*")


def test_a_sound_run(moe, tiny_run):
    code, out, err = moe("doctor", tiny_run.path)
    *lines, total = out.splitlines()
    assert code == 0 and not err
    assert len(lines) >= 10 and all(LINE.fullmatch(line) for line in lines), lines
    order = [LINE.fullmatch(line)[2] for line in lines]
    assert order == sorted(order, key=["intact", "experts", "causality", "router"].index)
    assert re.fullmatch(r" 0 problems, \d+ warnings?", total)


def test_a_damaged_run_exits_4_and_is_still_told_everything(moe, damaged):
    code, out, err = moe("doctor", damaged)
    assert code == 4 and "PROBLEM  intact" in out and "optimizer.safetensors" in out and "experts" in out
    assert re.fullmatch(r"moe: error: [^\n]+optimizer\.safetensors[^\n]+\n", err)


def test_json_of_both(moe, tiny_run, damaged):
    for folder, sound in ((tiny_run.path, True), (damaged, False)):
        code, out, err = moe("doctor", folder, "--json")
        said = json.loads(out)
        assert code == (0 if sound else 4) and bool(err) != sound
        assert said["sound"] == sound and said["run"] == str(folder)
        assert all(
            {"level", "check", "what", "why", "do", "measured"} == finding.keys() for finding in said["findings"]
        )
        worth = [f["measured"] for f in said["findings"] if "shuffled" in f["measured"]]
        assert len(worth) == sound and all(w["low"] <= w["high"] for w in worth)  # damaged weights are not probed


def test_an_interrupted_run_is_examined_and_told_how_to_go_on(moe, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run.path, tmp_path / "stopped")
    info = json.loads((folder / "run.json").read_text())
    info = {name: value for name, value in info.items() if name != "best_step"} | {"status": "running"}
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "summary.json").unlink()
    code, out, err = moe("doctor", folder)
    assert code == 0 and not err
    assert f"moe train --resume {folder}" in out and "process is gone" in out and "shuffled" in out


def test_no_run_is_one_line(moe, tmp_path):
    code, out, err = moe("doctor", tmp_path)
    assert code == 4 and not out and "no run.json" in err


def test_the_machine(moe, tmp_path, monkeypatch):
    code, out, err = moe("doctor", "--runs", tmp_path / "runs")
    assert code == 0 and not err and "twice to the same bits" in out and "extra parquet" in out
    assert all(LINE.fullmatch(line) for line in out.splitlines()[:-1])
    monkeypatch.setattr(environment, "tiny_training", lambda: Finding("ok", "environment", "once was enough"))
    (tmp_path / "file").write_text("")
    code, out, err = moe("doctor", "--runs", tmp_path / "file", "--json")
    assert code == 5 and json.loads(out)["sound"] is False
    assert re.fullmatch(r"moe: error: this machine: runs root [^\n]+\n", err)
