"""moe replicate: claims listed, run and judged; a claim that fails to run stops no other one."""

import json
import re

import pytest

from moecli.errors import NumericalFailure
from moecli.replicate import bench, ensemble, hme_em
from moecli.replicate.bench import Outcome, Quantity


@pytest.fixture(autouse=True)
def quick(monkeypatch, tiny_run):
    """No claim trains."""

    def outcome(quantity, rule, holds):
        return lambda bench: bench.made.append(tiny_run) or Outcome([quantity], rule, holds)

    monkeypatch.setattr(bench, "claims", lambda: ["ensemble", "hme_em"])
    monkeypatch.setattr(ensemble, "replicate", outcome(Quantity("error", 0.25, 0.5), "it is low", True))
    monkeypatch.setattr(hme_em, "replicate", outcome(Quantity("epochs", bench.NEVER), "it is quick", False))


def test_without_a_name_it_lists_the_claims(moe):
    code, out, _ = moe("replicate")
    assert code == 0 and " ensemble  At equal cost" in out and "moe replicate NAME" in out
    assert set(json.loads(moe("replicate", "--json")[1])) == {"ensemble", "hme_em"}


def test_a_verdict_stands_below_the_papers_number(moe):
    code, out, _ = moe("replicate", "ensemble", "hme_em", "ensemble")
    assert code == 0  # a claim that does not replicate is a result
    assert out.count(" replicated: the rule is that it is low") == 1
    assert re.search(r"^ error +0\.25 +0\.5$", out, re.M) and " did not replicate: the rule is that it is quick" in out


def test_results_go_into_a_file(moe, tmp_path):
    code, out, _ = moe("replicate", "--all", "--json", "--write", tmp_path / "found.json")
    stored = json.loads((tmp_path / "found.json").read_text())
    assert code == 0 and set(stored) == set(json.loads(out)) == {"ensemble", "hme_em"}
    assert stored["ensemble"]["revision"] and "runs" not in stored["ensemble"]


def test_changes_are_laid_over_every_run_of_a_claim(moe, monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "judge", lambda name, scale, runs, words: seen.append((name, words)) or judged)
    judged = {"claim": "c", "quantities": [], "verdict": "v", "rule": "r", "runs": ["x/y"], "seconds": 1.0}
    assert moe("replicate", "ensemble", "trainer.steps=9", "hme_em", "task.rows=50")[0] == 0
    assert seen == [(name, ["trainer.steps=9", "task.rows=50"]) for name in ("ensemble", "hme_em")]


def test_all_leaves_out_what_needs_data_of_the_users(moe, monkeypatch):
    monkeypatch.setattr(bench, "needed", lambda name: ["task.path"] if name == "hme_em" else [])
    code, out, err = moe("replicate", "--all", "--json")
    assert code == 0 and set(json.loads(out)) == {"ensemble"}
    assert "left out: hme_em, which needs data of yours (moe replicate hme_em task.path=...)" in err


def test_what_fails_to_run_stops_no_other_claim(moe, monkeypatch):
    def broken(bench):
        raise NumericalFailure("the loss is nan. Lower optimizer.lr")

    monkeypatch.setattr(ensemble, "replicate", broken)
    code, out, err = moe("replicate", "--all")
    assert code == 8 and "ensemble: the loss is nan" in err and "did not replicate" in out
    assert moe("replicate", "ensemble")[0] == 6


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["hme_m"], "Did you mean hme_em?"),
        (["ensemble", "--scale", "smok"], "Did you mean scale=smoke?"),
        (["ensemble", "--all"], "Leave out --all"),
        (["task.path=x"], "no claim is named"),
    ],
)
def test_what_there_is_not_is_one_line(moe, words, needle):
    code, out, err = moe("replicate", *words)
    assert code == 2 and not out and needle in err and err.count("\n") == 1
