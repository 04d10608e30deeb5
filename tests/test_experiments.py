"""Every experiment composes and takes its first steps; what documents say of it is what was measured."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from moecli import config
from moecli.analysis.explain import header
from moecli.errors import ArtifactError, UsageError
from moecli.replicate import bench, ensemble
from moecli.replicate.bench import Outcome, Quantity

ROOT = Path(__file__).resolve().parents[1]
HOW_MANY = {
    "classical": 16,
    "routing of language": 12,
    "images and other routing": 9,
    "translation": 3,
    "instructions": 1,
}
NO_CLAIMS = ("__init__", "bench")
FILES = sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))
EXPERIMENTS = [name for name in FILES if not name.startswith("size_")]  # those claim nothing: tests/models/test_size.py
MODULES = sorted(file.stem for file in (ROOT / "moecli" / "replicate").glob("*.py") if file.stem not in NO_CLAIMS)
RESULTS = bench.read(ROOT / "docs" / "results.json")


def own_text(folder: Path) -> Path:
    (folder / "own.txt").write_text("one fish two fish red fish blue fish\n" * 100)
    return folder / "own.txt"


def own_images(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    np.savez(folder / "own.npz", x=draw.integers(0, 256, (60, 8, 8), dtype=np.uint8), y=np.arange(60) % 3)
    return folder / "own.npz"


def own_pairs(folder: Path) -> Path:
    for split, number in (("train", 60), ("val", 12), ("test", 12)):
        for language, words in (("en", "one red fish"), ("de", "ein roter Fisch")):
            (folder / f"{split}.{language}").write_text("".join(f"{words} {n}\n" for n in range(number)))
    return folder


OWN_DATA = {
    "tinyshakespeare": own_text,
    "mnist": own_images,
    "multi30k": own_pairs,
}  # for claims that leave task.path to the user


def test_every_experiment_has_its_claim_and_every_claim_its_experiment():
    assert len(EXPERIMENTS) == sum(HOW_MANY.values())
    assert bench.claims() == EXPERIMENTS == MODULES
    assert all(hasattr(importlib.import_module(f"moecli.replicate.{name}"), "replicate") for name in MODULES)


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
    assert set(scales) == ({"smoke", "gpu"} if bench.deep(name) else {"smoke"})
    words = [f"experiment={name}", *(f"{key}=x" for key in bench.needed(name))]
    full = dict(config.flatten(config.compose(words).config))
    for scale, keys in scales.items():
        other = dict(config.flatten(config.compose([*words, f"scale={scale}"]).config))
        assert all(other[key] == value and full[key] != value for key, value in keys.items())
        assert not any(key.startswith("scale") for key in other)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_claim_runs_at_the_smallest_scale(name, tmp_path):
    words = [f"{key}={OWN_DATA[name](tmp_path)}" for key in bench.needed(name)]
    result = bench.judge(name, "smoke", tmp_path, words)
    assert result["verdict"] == bench.SMALL and result["words"] == words
    assert result["quantities"] and result["rule"]
    assert all((Path(run) / "summary.json").is_file() for run in result["runs"])
    json.dumps(result, allow_nan=False)


def test_the_users_words_reach_every_run_and_its_command(tmp_path):
    made = bench.Bench("linear_gaussian_full", "smoke", tmp_path, ("trainer.steps=2", "task.rows=90"))
    run = made.train("seed=1")
    assert (run.info["config"]["trainer.steps"], run.info["config"]["task.rows"]) == (2, 90)
    assert run.info["command"].endswith("scale=smoke seed=1 trainer.steps=2 task.rows=90")
    with pytest.raises(UsageError, match="seed=3: the claim's runs differ by it"):
        bench.Bench("ensemble", "smoke", tmp_path, ("seed=3",)).compose("seed=0")
    late = bench.Bench("switch", "smoke", tmp_path, ("router.k=3",))
    with pytest.raises(UsageError, match=r"router\.k=3: the claim's runs differ by it"):
        late.over_seeds({"one": (), "two": ("router.k=2",)})
    assert not late.made  # refused before any work


@pytest.mark.parametrize(("scale", "seed", "drawn"), [("full", 0, True), ("full", 1, False), ("smoke", 0, False)])
def test_one_run_of_a_claim_is_drawn(scale, seed, drawn, monkeypatch):
    places = []
    monkeypatch.setattr(bench, "assemble", lambda composed: composed)
    monkeypatch.setattr(bench, "train_built", lambda built, place: places.append(place))
    bench.Bench("ensemble", scale).train(f"seed={seed}")
    assert places[0].pictures == drawn


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


@pytest.mark.parametrize(("document", "deep"), [("classical.md", False), ("deep.md", True)])
def test_a_document_repeats_the_stored_results(document, deep):
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    assert bench.markdown({name: found for name, found in RESULTS.items() if bench.deep(name) == deep}) in text
    assert set(re.findall(r"experiment=(\w+)", text)) <= set(FILES)
