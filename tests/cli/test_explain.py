"""`moe explain` and `moe show --measures`: text, JSON, and one line where something cannot be told."""

from __future__ import annotations

import json
import shutil

import pytest


def test_a_row_is_explained(moe, tiny_run):
    code, out, err = moe("explain", tiny_run.path, "--input", "test:3")
    assert code == 0 and not err
    assert out.startswith(" test:3 → predicted y ") and "share of the answer" in out and "every expert is asked" in out
    code, out, _ = moe("explain", tiny_run.path, "-i", "x=0.25", "--json")
    found = json.loads(out)
    assert code == 0 and len(found["decisions"]) == 1
    parts = found["decisions"][0]["parts"]
    assert sum(part["prob"] for part in parts) == pytest.approx(1, abs=1e-5)
    assert found["decisions"][0]["first"] == max(parts, key=lambda part: part["weight"])["expert"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-i", "test:9999"], 2),
        (["-i", "nonsense"], 2),
        (["-i", "z=1"], 3),
        (["-i", "test:0", "--at", "1"], 2),
        ([], 2),
    ],
)
def test_what_cannot_be_explained_is_one_line(moe, tiny_run, words, code):
    found, out, err = moe("explain", tiny_run.path, *words)
    assert (found, out) == (code, "") and err.startswith("moe: error: ") and err.count("\n") == 1


def test_no_run_is_one_line(moe, tmp_path):
    code, out, err = moe("explain", tmp_path, "-i", "test:0")
    assert (code, out) == (4, "") and "no run folder" in err and err.count("\n") == 1


def test_measures_of_one_run_and_of_two(moe, tiny_run, tmp_path):
    code, out, err = moe("show", tiny_run.path, "--measures")
    assert code == 0 and not err
    assert (
        "95 % of chance" in out and "matched_accuracy" in out and "above chance, with 5 % of these calls false" in out
    )
    _, out, _ = moe("show", tiny_run.path, "--measures", "--json")
    found = json.loads(out)
    assert {"layer", "measure", "value", "chance_low", "p"} <= set(found["measures"][0])
    other = shutil.copytree(tiny_run.path, tmp_path / "other")
    code, out, _ = moe("show", tiny_run.path, other, "--measures")
    assert code == 0 and "beyond chance" in out and " 2 of 2" in out
    code, out, err = moe("show", tmp_path, "--measures")
    assert code == 4 and not out and err.count("\n") == 1
