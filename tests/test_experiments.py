"""Every experiment composes and takes its first steps; what documents say of it is what was measured."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from moecli import config
from moecli.analysis.explain import header
from moecli.errors import ArtifactError, UsageError
from moecli.replicate import bench, ensemble
from moecli.replicate.bench import Outcome, Quantity

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))
EXPERIMENTS = [name for name in FILES if not name.startswith("size_")]  # those claim nothing: tests/models/test_size.py
RESULTS = bench.read(ROOT / "docs" / "results.json")


def test_the_glob_finds_every_experiment_and_its_claim():
    assert len(EXPERIMENTS) == 16
    assert bench.claims() == EXPERIMENTS
    assert all(importlib.util.find_spec(f"moecli.replicate.{name}") for name in EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_header_says_what_it_claims_costs_and_found(name):
    assert len(header(name)) == 6
    assert all(bench.said(name, field) for field in ("claim", "command", "cost", "measured", "paper"))
    assert bench.said(name, "command").startswith(f"moe replicate {name}")
    known = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "conf" / "references.bib").read_text(encoding="utf-8"), re.M))
    assert set(bench.said(name, "paper").split(", ")) <= known


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_key_of_a_scale_arrives(name):
    scales = config.raw_node("experiment", name)["scales"]
    assert set(scales) == {"smoke"}
    small = dict(config.flatten(config.compose([f"experiment={name}", "scale=smoke"]).config))
    full = dict(config.flatten(config.compose([f"experiment={name}"]).config))
    assert all(small[key] == value and full[key] != value for key, value in scales["smoke"].items())
    assert not any(key.startswith("scale") for key in small)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_claim_runs_at_the_smallest_scale(name, tmp_path):
    result = bench.judge(name, "smoke", tmp_path)
    assert result["verdict"] == bench.SMALL
    assert result["quantities"] and result["rule"]
    assert all((Path(run) / "summary.json").is_file() for run in result["runs"])
    json.dumps(result, allow_nan=False)


def test_the_users_words_beat_the_scale():
    found = config.compose(["experiment=ensemble", "scale=smoke", "trainer.steps=9"]).config
    assert (found["trainer"]["steps"], found["task"]["rows"]) == (9, 100)
    other = config.compose(["experiment=hme_gradient", "scale=smoke", "trainer=em"]).config  # it has no eval_every
    assert other["trainer"]["steps"] == 4


@pytest.mark.parametrize("words", [["scale=smoke"], ["experiment=ensemble", "scale=smok"], ["scale.x=1"]])
def test_an_unknown_scale_is_refused(words):
    with pytest.raises(UsageError, match="scale"):
        config.compose(words)


@pytest.mark.parametrize(("holds", "verdict"), [(True, "replicated"), (False, "did not replicate")])
def test_the_verdict_is_the_rule(holds, verdict, monkeypatch):
    monkeypatch.setattr(ensemble, "replicate", lambda bench: Outcome([Quantity("error", 0.5)], "it holds", holds))
    assert bench.judge("ensemble")["verdict"] == verdict
    assert bench.judge("ensemble", "smoke")["verdict"] == bench.SMALL


def test_results_are_put_beside_those_of_other_claims(tmp_path):
    file = tmp_path / "results.json"
    bench.write(file, {"b": {"verdict": "replicated", "runs": ["x"]}})
    bench.write(file, {"a": {"verdict": "did not replicate", "runs": []}})
    assert bench.read(file) == {"a": {"verdict": "did not replicate"}, "b": {"verdict": "replicated"}}
    file.write_text("[]")
    with pytest.raises(ArtifactError, match=r"results\.json"):
        bench.read(file)


def test_an_unknown_claim_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="Did you mean hme_em"):
        bench.judge("hme_m")


def test_a_level_never_reached_is_said_so(tiny_run):
    assert bench.or_never(bench.steps_until(tiny_run, "loss", -1e9)) == bench.NEVER
    assert bench.steps_until(tiny_run, "loss", 1e9) == 0


# -- what is printed is what was measured ---------------------------------------------------------


def test_the_results_are_of_the_full_scale():
    assert set(RESULTS) == set(EXPERIMENTS)
    for name, result in RESULTS.items():
        assert result["scale"] == "full" and result["verdict"] != bench.SMALL
        assert result["claim"] == bench.said(name, "claim")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_header_repeats_the_stored_result(name):
    assert bench.said(name, "measured") == bench.in_words(RESULTS[name])
    assert bench.said(name, "cost") == bench.cost(RESULTS[name])


def test_the_document_repeats_the_stored_results():
    text = (ROOT / "docs" / "classical.md").read_text(encoding="utf-8")
    assert bench.markdown(RESULTS) in text
    assert set(re.findall(r"experiment=(\w+)", text)) <= set(EXPERIMENTS)
