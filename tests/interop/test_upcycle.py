"""Upcycling keeps the function where weights sum to one, says so where not, and what begins from it may be frozen."""

from __future__ import annotations

import glob
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moecli import run as engine
from moecli.cli import app as application
from moecli.config import compose, registry
from moecli.errors import ArtifactError, MoeError, UsageError
from moecli.interop.upcycle import KEPT, difference, mixture_of, reasons, upcycle
from moecli.run import Loaded, Place, assemble, best_weights, load, resume, train_built

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("task=languages", "task.documents=80", "trainer.batch_size=16", "trainer.steps=8")


def train(root, *words):
    """A run without its pictures."""
    return train_built(assemble(compose(words)), Place(root, "run", pictures=False))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A dense twin of top-2 of 4, shortly trained."""
    return train(tmp_path_factory.mktemp("dense"), *SMALL, "model.twin=true")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("runs"), "up", pictures=False)


@pytest.fixture(scope="module")
def up(dense, place):
    return upcycle(dense.path, ["num_experts=3", "router=top_k"], place)


def judged(dense, routers):
    """Routers that keep the function, and what those that do not say; others do not fit a causal text."""
    kept, changed, loaded = set(), {}, load(dense.path)
    for router in routers:
        try:
            built = mixture_of(loaded, [f"router={router}", "num_experts=4"])
        except MoeError:
            continue
        found, why = difference(loaded, built), reasons(built.model, noise=0.0)
        if built.model.mixtures["block0"].router.claims(training=False).density:
            assert found <= KEPT and not why, router
            kept.add(router)
        else:
            assert found > KEPT and why, router
            changed[router] = why
    return kept, changed


def test_weights_that_sum_to_one_keep_the_function(dense):
    kept, changed = judged(dense, ["top_k", "dense", "sigmoid_bias", "hash", "noisy_top_k", "group_limited"])
    assert kept == {"top_k", "dense", "sigmoid_bias", "hash", "noisy_top_k"}
    assert "do not sum to one" in changed["group_limited"][0]


@pytest.mark.slow
def test_every_router_keeps_the_function_or_says_why_not(dense):
    kept, changed = judged(dense, registry()["router"])
    assert len(kept) >= 10 and len(changed) >= 1


@pytest.mark.parametrize(
    ("words", "noise", "why"),
    [
        (["router.k=1", "router.renormalize=false"], 0.0, "router.renormalize"),
        (["router.capacity_factor=0.5", "router.capacity_by=token"], 0.0, "router.capacity_factor"),
        ([], 0.1, "noise of 0.1"),
    ],
)
def test_what_differs_is_said(dense, words, noise, why):
    loaded = load(dense.path)
    built = mixture_of(loaded, words, noise)
    (said,) = reasons(built.model, noise)
    assert difference(loaded, built) > KEPT and why in said


def test_experts_are_copies_and_all_else_is_the_dense_model(dense, up):
    before, after = best_weights(dense), best_weights(up.run)
    experts = [name for name in after if ".experts." in name]
    for name in experts:
        assert torch.equal(after[name], before[name].expand(3, *before[name].shape[1:]))
    same = [name for name in after if name not in experts and ".router." not in name]
    assert len(experts) == 4 and len(same) >= 5 and all(torch.equal(after[name], before[name]) for name in same)
    assert up.run.info["config"]["auxiliary"] == "switch_balance"  # as top_k recommends


def test_the_written_run_says_how_well_the_function_was_kept(up):
    assert up.difference <= KEPT and not up.reasons and up.run.info["upcycled"]["difference"] == up.difference
    assert up.after == pytest.approx(up.before, abs=1e-5)
    assert up.run.summary["metrics"]["valid/nll"] == up.after["nll"]


def test_noise_is_in_units_of_each_tensor(dense):
    several = mixture_of(load(dense.path), ["num_experts=4"], noise=0.5).model.state_dict()
    one = best_weights(dense)
    name = next(name for name in one if name.endswith("experts.up.weight"))
    added = several[name] - one[name]
    assert added.std().item() == pytest.approx(0.5 * one[name].std().item(), rel=0.1)
    assert not torch.equal(several[name][0], several[name][1])


@pytest.mark.parametrize(
    "words",
    [
        ("task=spirals", "model.twin=true", "model.depth=2", "trainer.steps=4"),
        ("task=piecewise", "task.rows=200", "model=density", "model.twin=true", "trainer.steps=4"),
        ("task=spirals", "num_experts=1", "expert=linear", "router=dense", "trainer.steps=4"),
    ],
    ids=["two layers", "a density", "one linear expert"],
)
def test_other_dense_models(words, tmp_path):
    loaded = load(train(tmp_path, *words).path)
    built = mixture_of(loaded, ["router=dense", "num_experts=3"])
    assert difference(loaded, built) <= KEPT
    assert {layer.experts.num_experts for layer in built.model.mixtures.values()} == {3}


# -- blocks that have an ordinary dense layer -------------------------------------------------------------


def drawn(*words) -> Loaded:
    """A dense run as it is before its first step."""
    built = assemble(compose(["model.twin=true", *words]))
    run: Any = SimpleNamespace(path="runs/dense")
    return Loaded(run, built.config, built.task, built.model.eval(), built.device)


TEXT = (*SMALL[:2], "model.dim=16", "model.heads=2", "model.depth=4")
PLACES = [
    # a dense run, where the mixtures go, and the activations and hidden units that their experts get
    ([*TEXT, "model.every=4"], "model.every=1", [("gelu", 64)] * 3 + [("relu", None)]),
    (
        [*TEXT, "model.every=4", "model.feed=swiglu", "model.hidden=24"],
        "model.every=[1,3]",
        [("swiglu", 24), ("relu", None)],
    ),
    ([*TEXT, "model.every=[1]"], "model.every=2", [("relu", None), ("gelu", 64)]),
    ([*TEXT, "model.every=1", "expert.activation=gelu"], "model.every=2", [("gelu", None)] * 2),
    (["task=digits", "model=vision", "model.depth=2", "model.dim=16"], "model.every=1", [("gelu", 64), ("relu", None)]),
]


@pytest.mark.parametrize(("words", "every", "found"), PLACES, ids=[" ".join([*w, e]) for w, e, _ in PLACES])
def test_mixtures_may_stand_where_blocks_had_a_dense_layer(words, every, found):
    dense = drawn(*words)
    built = mixture_of(dense, [every, "num_experts=4"])
    assert difference(dense, built) <= KEPT and not reasons(built.model, noise=0.0)
    experts = [layer.experts for layer in built.model.mixtures.values()]
    assert [
        (e.activation, width and e.up.weight.shape[-1]) for e, (_, width) in zip(experts, found, strict=True)
    ] == found
    assert {e.num_experts for e in experts} == {4}
    with torch.no_grad():
        experts[0].down.weight.mul_(1.01)
    assert difference(dense, built) > KEPT, "the comparison sees each expert"


def test_what_the_words_say_of_experts_reaches_every_layer():
    built = mixture_of(drawn(*TEXT, "model.every=4"), ["model.every=1", "expert.dropout=0.25"])
    assert {layer.experts.dropout for layer in built.model.mixtures.values()} == {0.25}


@pytest.mark.parametrize(
    ("words", "every", "said"),
    [
        ([*TEXT, "model.every=2"], "model.every=[0,3]", r"its layer block1 is none that a block without a mixture has"),
        ([*TEXT, "model.every=2", "expert.activation=gelu"], "model.every=[0,3]", r"its dense layers are not alike"),
        ([*SMALL[:2], "model=lstm", "model.depth=3"], "model.every=[0]", r"its layer layer1 is none"),
    ],
)
def test_a_layer_that_would_be_neither_is_refused(words, every, said):
    with pytest.raises(UsageError, match=said + r".*name (it|them) in model\.every too") as caught:
        mixture_of(drawn(*words), [every])
    assert "\n" not in str(caught.value)


def test_refusals(dense, place, up, tiny_run, tmp_path):
    with pytest.raises(UsageError, match=r"its layer layer0 has 4 experts.*model\.twin=true"):
        upcycle(tiny_run.path, [], place)
    with pytest.raises(ArtifactError, match="no run folder"):
        upcycle(tmp_path, [], place)
    with pytest.raises(UsageError, match=r"task\.words=9.*moe train afterwards"):
        upcycle(dense.path, ["task.words=9"], place)
    for word in ("expert.hidden=9", "model.shared=1"):
        with pytest.raises(UsageError, match="the mixture has a tensor of"):
            upcycle(dense.path, [word], place)
    with pytest.raises(UsageError, match="no such key"):
        upcycle(dense.path, ["router.kk=2"], place)
    with pytest.raises(UsageError, match=r"--resume.*moe train --config .*config\.yaml init="):
        resume(up.run.path)
    assert json.loads((up.run.path / "run.json").read_text())["status"] == "finished"


# -- fine-tuning --------------------------------------------------------------------------------------


def changed(before, after):
    """Names of the weights that differ."""
    assert before.keys() == after.keys()
    return {name for name in after if not torch.equal(before[name], after[name])}


def from_(up):
    """The words that make a model of the same sizes, and begin from it."""
    sizes = [f"expert.{key}={up.run.info['config'][f'expert.{key}']}" for key in ("hidden", "activation", "bias")]
    return [*SMALL, "num_experts=3", *sizes, f"init={up.run.path}"]


def test_only_what_a_phase_names_trains_from_an_upcycled_run(up, tmp_path):
    phases = "trainer.phases=[{steps: 8, train: ['*.router.*']}]"
    tuned = train(tmp_path, *from_(up), phases, "optimizer.weight_decay=0.5")
    routers = {name for name in best_weights(up.run) if ".router." in name}
    assert changed(best_weights(up.run), best_weights(tuned)) == routers != set()


def test_only_what_a_phase_names_trains_on_other_data(up, tmp_path):
    words = (*from_(up), "task.split_seed=1")  # other languages, of the same words
    phases = "trainer.phases=[{steps: 4, train: ['*.router.*']}, {steps: 4, train: ['*.experts.*']}]"
    tuned, free = train(tmp_path, *words, phases), train(tmp_path, *words)
    assert tuned.info["fingerprint"] != up.run.info["fingerprint"]
    moved, all_moved = (changed(best_weights(up.run), best_weights(run)) for run in (tuned, free))
    assert moved == {name for name in best_weights(up.run) if ".router." in name or ".experts." in name}
    assert moved < all_moved  # without phases all else trains too


def test_tables_built_from_the_old_data_stay(tmp_path):
    words = (*SMALL, "router=hash", "router.table=balanced", "auxiliary=[]")
    first, other = train(tmp_path, *words), train(tmp_path, *words, "task.split_seed=1")
    tuned = train(tmp_path, *words, "task.split_seed=1", f"init={first.path}")
    (name,) = [name for name in best_weights(first) if name.endswith("router.table")]
    tables = [best_weights(run)[name] for run in (first, other, tuned)]
    assert torch.equal(tables[0], tables[2]) and not torch.equal(tables[0], tables[1])


def test_another_vocabulary_is_refused(up, tmp_path):
    with pytest.raises(ArtifactError, match=r"init=.*: its vocabulary of \d+ symbols is not the 36"):
        train(tmp_path, *from_(up), "task.words=9")


# -- the commands -------------------------------------------------------------------------------------

COMMANDS = [
    line
    for block in re.findall(
        r"^```bash\n(.*?)^```$", (ROOT / "docs/upcycling.md").read_text(encoding="utf-8"), re.M | re.S
    )
    for line in block.splitlines()
]


def expanded(line: str) -> list[str]:
    """A command's words as bash would give them, for the globs and the one substitution that the document has."""
    line = re.sub(r"\$\(echo ([^)]*)\)", lambda found: " ".join(glob.glob(found[1])), line)
    return [path for word in shlex.split(line) for path in (sorted(glob.glob(word)) or [word])]


@pytest.mark.slow
def test_the_documents_commands_run_in_order(tmp_path, monkeypatch, capsys):
    verbs = ["train", "upcycle", "train", "train", "upcycle", "train"]
    assert [line.split()[1] for line in COMMANDS] == verbs
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOE_RUNS", raising=False)
    monkeypatch.setattr(engine, "_draw", lambda run: None)  # pictures have tests of their own
    for line in COMMANDS:
        monkeypatch.setattr(sys, "argv", expanded(line))
        with pytest.raises(SystemExit) as ended:
            application.main()
        out, err = capsys.readouterr()
        assert ended.value.code == 0, (line, err)
        if "upcycle" in line.split():
            assert re.search(r"^ function +kept \(max \|y' - y\| / max \|y\| = \d\.?\d*e-0[678]", out, re.M), out
    made = {path.parent.name for path in Path("runs").glob("*/*")}
    assert made == {"dense", "upcycled", "mixture", "tuned", "blocks", "everywhere"}
