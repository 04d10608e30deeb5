"""The vision transformer: patches and back, what reads what, every router and expert, and where its experts look."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moecli
from moecli.analysis import matrix
from moecli.analysis.specialisation import nmi_against_chance
from moecli.config import Composed, Config, compose, option_node, raw_node, registry
from moecli.errors import UsageError
from moecli.mixture import Alone
from moecli.models.image import Pixels, cut, joined, patch_side, position_names
from moecli.record.trace import TraceReader, read_arrays
from moecli.run import Built, assemble, evaluate_loaded, load, write_plans
from moecli.tasks.digits import Digits

SMALL = [
    "task=digits",
    "model=vision",
    "model.patch=4",
    "model.dim=8",
    "model.heads=2",
    "model.depth=2",
    "num_experts=4",
]
SMALL += ["expert.hidden=8", "trainer.batch_size=16"]


TASK = Digits()


def built(*words: str):
    return assemble(compose([*SMALL, *words]), TASK)


# -- patches ----------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_an_image_is_cut_and_joined_again(side, channels, rows, columns, conditions):
    image = Pixels(channels, rows * side, columns * side, conditions)
    x = torch.randn(2, image.number + conditions)
    patches = cut(x, image, side)
    assert (
        patches.shape == (2, rows * columns, channels * side * side)
        and len(position_names(image, side)) == rows * columns
    )
    assert joined(patches, image, side).equal(x[:, : image.number])
    if rows * columns > 1:  # the control: other places, another image
        assert not joined(patches.roll(1, 1), image, side).equal(x[:, : image.number])


def test_a_patch_is_where_its_name_says():
    image = Pixels(1, 4, 6)
    x = torch.arange(24.0)[None]
    patches = cut(x, image, 2)[0]
    for name, patch in zip(position_names(image, 2), patches, strict=True):
        row, column = (int(part) for part in name.split(","))
        assert patch.view(2, 2).equal(x.view(4, 6)[2 * row : 2 * row + 2, 2 * column : 2 * column + 2])
    assert [image.names[i] for i in (0, 6, 23)] == ["pixel 0,0", "pixel 1,0", "pixel 3,5"]


def test_a_patch_that_nobody_chose_leaves_sixteen():
    sides = {size: patch_side(Pixels(1, size, size), None) for size in (4, 8, 16, 28, 31, 32, 224)}
    assert sides == {4: 1, 8: 2, 16: 4, 28: 7, 31: 1, 32: 8, 224: 56}
    assert patch_side(Pixels(3, 8, 12), 4) == 4
    with pytest.raises(UsageError, match=r"model.patch=3: an image of 8 x 12 .* Choose from 1, 2, 4"):
        patch_side(Pixels(3, 8, 12), 3)


# -- the model --------------------------------------------------------------------------------


@torch.no_grad()
def test_patches_are_a_set_but_for_their_positions():
    """Attention in both directions and a mean: patches that change places together with their positions change nothing."""
    model, x = (parts := built("model.every=1")).model.double().eval(), parts.task.train_batch(0, 8, 0).x.double()
    before, order = model(x).prediction, torch.tensor([2, 0, 3, 1])
    moved = joined(cut(x, model.image, 4)[:, order], model.image, 4)
    assert not torch.allclose(model(moved).prediction, before, atol=1e-4)  # the control: positions matter
    model.position.copy_(model.position[order].clone())
    assert torch.allclose(model(moved).prediction, before, atol=1e-12)


@torch.no_grad()
def test_every_patch_reads_every_other():
    model, x = (parts := built("model.every=1")).model.double().eval(), parts.task.train_batch(0, 1, 0).x.double()
    before = model(x).routings["block0"].logits
    for changed in range(4):
        patches = cut(x, model.image, 4).clone()
        patches[:, changed] += 1
        after = model(joined(patches, model.image, 4)).routings["block0"].logits
        assert ((after - before).abs().amax(-1) > 1e-9).all()  # the first patch sees the last, so nothing is causal


def test_a_mixture_stands_in_every_nth_block_and_layers_may_differ():
    parts = built("model.depth=4", "+model.layers.block3.router=expert_choice")
    assert {name: type(layer.router).__name__ for name, layer in parts.model.mixtures.items()} == {
        "block1": "TopK",
        "block3": "ExpertChoice",
    }
    assert list(built("model.depth=4", "model.every=[0,3]").model.mixtures) == ["block0", "block3"]
    for word, words in (
        ("every=9", "Lower model.every"),
        ("heads=3", "needs an equal share"),
        ("patch=5", "Choose from 1, 2"),
    ):
        with pytest.raises(UsageError, match=words):
            built(f"model.{word}")


def with_router(config: Config, router: str) -> Composed:
    """The configuration with another router and the terms that it recommends, without asking Hydra again."""
    terms = raw_node("router", router).get("recommends", {}).get("auxiliary", [])
    other = {"router": option_node("router", router), "choices": {**config["choices"], "router": router}}
    other["auxiliary"] = {term: option_node("auxiliary", term) for term in terms}
    return Composed({**config, **other}, frozenset())


def descend(parts: Built) -> bool:
    """Two steps of the optimizer, all finite; whether both experts and the head moved."""
    before = {name: p.clone() for name, p in parts.model.named_parameters()}
    optimizer = torch.optim.Adam(parts.model.parameters(), 0.01)
    for step in range(2):
        batch = parts.task.train_batch(step, 16, 0)
        output = parts.model(batch.x, batch.known)
        losses = parts.objective(output, batch.target)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        for name, layer in parts.model.mixtures.items():
            layer.router.after_step(output.routings[name].usage)
        assert losses["total"].isfinite()
    moved = {name for name, p in parts.model.named_parameters() if not p.equal(before[name])}
    assert all(p.isfinite().all() for p in parts.model.parameters())
    return "head.weight" in moved and any(".experts." in name for name in moved)


def test_every_router_that_the_matrix_allows_takes_two_steps():
    refused = {cell.router for cell in matrix.cells() if cell.column == "model=vision (classes)" and cell.refusal}
    allowed = set(registry()["router"]) - refused
    assert refused == {"hash"} and len(allowed) >= 19
    config = compose(SMALL).config
    assert {router for router in allowed if descend(assemble(with_router(config, router), TASK))} == allowed


def test_every_expert_that_reads_vectors_fits():
    refused = {}
    for expert in registry()["expert"]:
        words = [word for word in SMALL if not word.startswith("expert.")]
        try:
            assemble(compose([*words, f"expert={expert}"]), TASK)
        except UsageError as error:
            refused[expert] = str(error)
    assert set(refused) == {"sklearn", "tdnn"} and not any("\n" in said for said in refused.values())


@pytest.mark.parametrize(
    "words",
    [[], ["router=soft_slots", "router.slots=1"], ["router=expert_choice"], ["model.shared=1"], ["model.every=1"]],
)
def test_the_twin_has_the_active_flops_of_the_mixture(words):
    mixture, twin = built(*words), built(*words, "model.twin=true")
    assert twin.size.flops == pytest.approx(mixture.size.flops, rel=0.02)
    assert twin.size.active == twin.size.total and mixture.size.active < mixture.size.total
    assert all(isinstance(layer.router, Alone) for layer in twin.model.mixtures.values())


def test_it_reads_any_task_of_images(tmp_path):
    for words in (["task=jittered_digits", "task.copies=1", "task.jitter=2"], ["task=digits"]):
        parts = assemble(compose([*SMALL[1:], *words]))
        batch = parts.task.train_batch(0, 4, 0)
        assert parts.model(batch.x).prediction.shape == (4, 10)
    with pytest.raises(UsageError, match=r"model=vision \(task=spirals\): .*an example is none"):
        assemble(compose([*SMALL[1:], "task=spirals"]))


# -- what a run records -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Expert e works on patch e: by the oracle of the position that the model knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moecli.run._draw", lambda run: None)
        words = [*SMALL, "router=oracle", "router.label=position", "trainer.steps=4", "trainer.eval_every=4"]
        return moecli.train(*words, runs=tmp_path_factory.mktemp("runs"))


def test_the_trace_holds_patches_with_class_and_position(run):
    tokens = TraceReader(run.path).tokens("block1", "test")
    assert len(tokens["position"]) == 4 * 359 and tokens["position"][:5].tolist() == [0, 1, 2, 3, 0]
    assert (tokens["label_position"] == tokens["position"]).all() and (
        tokens["expert"][:, 0] == tokens["position"]
    ).all()
    by_image = tokens["label_class"].reshape(-1, 4)
    assert (by_image == by_image[:, :1]).all() and len(np.unique(by_image)) == 10
    assert run.info["label_names"]["position"] == ["0,0", "0,1", "1,0", "1,1"]


def test_experts_of_a_position_are_seen_beside_chance(run):
    found = run.summary["layers"][0]["nmi"]
    assert found["position"]["value"] == pytest.approx(1) and found["position"]["chance"] < 0.8
    assert found["class"]["value"] < 0.01  # the control


def test_positions_that_mean_nothing_are_at_chance():
    draw = np.random.default_rng(0)
    position, document = np.tile(np.arange(16), 200), np.arange(200).repeat(16)
    first = draw.integers(0, 4, 3200)
    blind = nmi_against_chance(first, position, document)
    assert abs(blind.value - blind.chance) < 4 * blind.chance_sd and blind.chance_sd > 0
    seeing = nmi_against_chance(np.where(draw.random(3200) < 0.5, position % 4, first), position, document)
    assert seeing.value > seeing.chance + 20 * seeing.chance_sd


def test_a_recorded_plan_gives_every_patch_its_own_place(run, tmp_path):
    loaded = load(run.path)
    write_plans(loaded, tmp_path / "plan.npz")
    expert = read_arrays(tmp_path / "plan.npz")["expert"]
    assert expert.shape == (1, 4 * 1797, 1) and (expert[0, :, 0].reshape(-1, 4) == np.arange(4)).all()
    again = load(run.path)
    words = [*SMALL, "router=replay", f"router.path={tmp_path / 'plan.npz'}"]
    told = assemble(compose(words))
    told.model.load_state_dict(again.model.state_dict(), strict=False)
    replayed = replace(again, model=told.model)
    assert evaluate_loaded(replayed, "test")["metrics"] == evaluate_loaded(loaded, "test")["metrics"]
