"""All measures of real runs: what is in the table, what older runs lack, and what cannot be asked."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from moecli import config
from moecli import run as engine
from moecli.analysis import specialisation
from moecli.analysis.measures import COLUMNS, MEASURES, Layer, above_chance, label_cells, measures, replicated
from moecli.errors import UsageError
from moecli.record.folder import Run
from moecli.record.trace import TraceReader, read_arrays, write_arrays

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("num_experts=4", "threads=1", "trainer.batch_size=16")


def trained(folder, *words):
    built = engine.assemble(config.compose([*words, *SMALL]))
    return engine.train_built(built, engine.Place(folder, pictures=False))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    sizes = ("task.documents=100", "model.depth=2", "model.every=1", "model.dim=16")
    steps = ("trainer.steps=6", "trainer.eval_every=3")
    return trained(tmp_path_factory.mktemp("text"), "task=languages", *sizes, *steps)


@pytest.fixture(scope="module")
def frame(text):
    return measures(text)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    words = ("task=regions", "router=dense", "trainer.steps=5", "trainer.eval_every=2")
    return trained(tmp_path_factory.mktemp("dense"), *words)


def row(frame, measure, label="", split="test", layer=None):
    found = frame[(frame.measure == measure) & (frame.label == label) & (frame.split == split)]
    found = found if layer is None else found[found.layer == layer]
    return found.iloc[0]


def test_every_measure_is_in_the_table_of_a_language_model(frame):
    assert tuple(frame.columns) == COLUMNS and set(frame.layer) == {"block0", "block1"}
    assert set(frame.measure) == set(MEASURES)
    assert frame.attrs["missing"] == [] and frame.value.notna().all()
    assert set(frame.label) >= {"language", "position", "id", "target", "predicted", "from block0", "choice 1"}
    assert not frame.duplicated(["layer", "split", "measure", "label"]).any()
    bounded = frame[frame["range"].str.startswith("0 to 1")]
    assert bounded.value.between(0, 1).all() and len(bounded) > 20
    known = frame[frame.chance_low.notna()]
    assert (known.chance_low <= known.chance_high).all() and known.p.between(0, 1, inclusive="right").all()


def test_the_numbers_are_those_of_the_trace_and_the_summary(text, frame):
    tokens = TraceReader(text.path).tokens("block0", "test")
    first = specialisation.first_expert(tokens)
    nmi = row(frame, "nmi", "language", layer="block0")
    in_summary = next(layer for layer in text.summary["layers"] if layer["layer"] == "block0")["nmi"]["language"]
    assert nmi.value == pytest.approx(specialisation.nmi(first, tokens["label_language"]), abs=1e-12)
    assert (nmi.value, nmi.chance, nmi.chance_low) == tuple(in_summary[k] for k in ("value", "chance", "chance_low"))
    assert row(frame, "entropy", layer="block0").value == pytest.approx(tokens["entropy"].mean(), abs=1e-6)
    assert row(frame, "margin", layer="block0").value == pytest.approx(tokens["margin"].mean(), abs=1e-6)
    assert row(frame, "z", layer="block0").value == pytest.approx(np.square(tokens["logsumexp"]).mean(), rel=1e-5)
    served = np.bincount(tokens["expert"][tokens["expert"] >= 0], minlength=4)
    assert row(frame, "max_over_mean", layer="block0").value == pytest.approx(served.max() / served.mean())
    assert row(frame, "without_expert", "e1", layer="block0").value == text.summary["experts"][1]["without"]
    assert (tokens["id"] // 8 == tokens["label_language"]).all()  # a word says its language


def test_a_dense_mixture_and_rows_without_order_leave_out_what_has_no_meaning(dense):
    frame = measures(dense)
    assert not {"saturation", "repetition", "strongest_partner", "flow", "vocabulary_specialisation"} & set(
        frame.measure
    )
    assert {"nmi", "matched_accuracy", "switched", "gini", "weight_entropy"} <= set(frame.measure)
    assert row(frame, "weight_entropy").value == pytest.approx(row(frame, "entropy").value, abs=1e-5)


def test_an_older_run_is_measured_as_far_as_it_goes(text, frame, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(text.path, old)
    for file in old.glob("routing/*/*.npz"):
        gone = {"margin", "logsumexp", "id", "target", "predicted", "ranks"}
        write_arrays(file, {name: array for name, array in read_arrays(file).items() if name not in gone})
    new, found = frame, measures(Run(old))
    missing = " ".join(found.attrs["missing"])
    assert all(word in missing for word in ("margin", "logsumexp", "vocabulary", "drops by rank"))
    lost = set(new.measure) - set(found.measure)
    assert lost == {"margin", "z", "vocabulary_specialisation"}
    assert row(found, "nmi", "language").value == row(new, "nmi", "language").value


def test_a_run_without_a_trace_says_what_is_missing(text, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(text.path, bare)
    shutil.rmtree(bare / "routing")
    frame = measures(Run(bare))
    assert set(frame.measure) == {"without_expert"} and len(frame.attrs["missing"]) >= 3
    assert not list(above_chance(Run(bare)))


def test_cells_of_a_label_are_named(text, frame):
    found = label_cells(text, "block0", "language")
    assert len(found) == 4 * 4 and found.groupby("value")["share"].sum().round(6).eq(1).all()
    assert (found.above == (found.q <= 0.05)).all()
    count = row(frame, "cells_above_chance", "language", layer="block0").value
    assert count == found.above.sum()
    assert any(line.startswith("block0 · language") for line in above_chance(text))
    with pytest.raises(UsageError, match="no label of block0"):
        label_cells(text, "block0", "colour")
    with pytest.raises(UsageError, match="no mixture layer"):
        Layer.of(text, "block7")


def test_several_runs_have_a_mean_and_an_interval(frame):
    other = frame.assign(value=frame.value + 2.0)
    found = replicated([frame, other])
    first = found[found.measure == "nmi"].iloc[0]
    same = frame[frame.measure == "nmi"].iloc[0]
    assert first["mean"] == pytest.approx(same.value + 1) and first["runs"] == 2
    assert first["half_width_95"] == pytest.approx(12.7062 * 2 / 2, rel=1e-4)  # t(0.975, 1) sd / sqrt(2), sd = sqrt(2)
    assert first["tested"] == 2 and first["above"] == 2 * (same.p <= 0.05)


def test_the_document_explains_every_measure():
    text = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))
    assert named == set(MEASURES)
