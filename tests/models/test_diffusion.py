"""The diffusion transformer: silent at first, conditioned on step and class, any router; and a run's samples."""

from __future__ import annotations

import pytest
import torch

import moecli
from moecli.analysis import matrix
from moecli.config import compose, registry
from moecli.errors import UsageError
from moecli.mixture import Alone
from moecli.models.diffusion import waves
from moecli.plots.gallery import draw_all
from moecli.record.trace import TraceReader
from moecli.run import assemble, load, predictions
from moecli.tasks.denoising import Denoising
from tests.models.test_vision import descend, with_router

SMALL = ["task=denoising", "model.patch=4", "model.dim=8", "model.heads=2", "model.depth=2", "num_experts=4"]
SMALL += ["expert.hidden=8", "trainer.batch_size=16", "task.steps=20"]


@pytest.fixture(scope="module")
def task():
    return Denoising(steps=20)


def built(task, *words: str):
    return assemble(compose([*SMALL, *words]), task)


def awake(parts):
    """The same with modulations and a head that are no longer zero."""
    torch.manual_seed(1)
    for name, parameter in parts.model.named_parameters():
        if "modulation" in name or "head" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return parts


@torch.no_grad()
def test_before_training_it_predicts_no_noise_which_is_chance(task):
    parts = built(task)
    batch = task.batch("test", torch.arange(task.sizes["test"]))
    prediction = parts.model.eval()(batch.x).prediction
    assert prediction.shape == (359, 64) and not prediction.any()
    assert task.kind.summarise(task.kind.score(prediction, batch.target)) == task.chance("test")
    assert parts.objective(parts.model(batch.x), batch.target)["loss"].item() == pytest.approx(
        task.chance("test")["mse"]
    )


@torch.no_grad()
def test_step_and_class_condition_every_block(task):
    x = task.batch("test", torch.arange(4)).x.double()
    step, category = x.clone(), x.clone()
    step[:, 64] = (x[:, 64] + 0.5) % 1
    category[:, 65:] = x[:, 65:].roll(1, 1)
    silent, model = (parts.model.double().eval() for parts in (built(task), awake(built(task))))
    before = model(x)
    for changed in (step, category):
        after = model(changed)
        assert not torch.allclose(after.prediction, before.prediction, atol=1e-4)
        assert not torch.allclose(after.routings["block1"].logits, before.routings["block1"].logits, atol=1e-6)
        assert torch.equal(silent(changed).routings["block1"].logits, silent(x).routings["block1"].logits)  # adaLN-Zero


def test_steps_are_told_apart():
    found = waves(torch.arange(1, 1001) / 1000)  # (1000, 128)
    gap = torch.cdist(found, found) + 9 * torch.eye(1000)
    assert found.square().sum(-1) == pytest.approx(64 * torch.ones(1000), rel=1e-4) and gap.min() > 0.05


def test_every_router_that_the_matrix_allows_takes_two_steps(task):
    refused = {cell.router for cell in matrix.cells() if cell.column == "model=diffusion (noise)" and cell.refusal}
    allowed = set(registry()["router"]) - refused
    assert refused == {"hash"} and len(allowed) >= 19
    config = compose(SMALL).config
    assert {r for r in allowed if descend(awake(assemble(with_router(config, r), task)))} == allowed


@pytest.mark.parametrize("words", [[], ["router=soft_slots", "router.slots=1"]])
def test_the_twin_has_the_active_flops_of_the_mixture(words, task):
    mixture, twin = built(task, *words), built(task, *words, "model.twin=true")
    assert twin.size.flops == pytest.approx(mixture.size.flops, rel=0.02)
    assert twin.size.active == twin.size.total and mixture.size.active < mixture.size.total
    assert all(isinstance(layer.router, Alone) for layer in twin.model.mixtures.values())


def test_it_wants_noisy_images_and_others_want_none():
    with pytest.raises(UsageError, match=r"model=diffusion \(task=digits\): .*Use task=denoising"):
        assemble(compose(["task=digits", "model=diffusion"]))
    with pytest.raises(UsageError, match=r"model=vision \(task=denoising\)"):
        assemble(compose(["task=denoising", "model=vision"]))
    assert assemble(compose(["task=denoising", "model=layer", "router=dense"])).size.total  # a vector is one too


# -- a run ------------------------------------------------------------------------------------


def short(root, *words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moecli.run._draw", lambda run: None)
        return moecli.train(*SMALL, "trainer.steps=6", "trainer.eval_every=6", *words, runs=root)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return short(tmp_path_factory.mktemp("runs"))


def test_a_run_is_held_against_class_step_and_position(run):
    assert list(run.summary["layers"][0]["nmi"]) == ["class", "step", "position"] == list(run.info["label_names"])
    tokens = TraceReader(run.path).tokens("block1", "test")
    assert len(tokens["label_step"]) == 4 * 359 and set(tokens["label_step"]) == set(range(10))
    assert run.summary["metrics"]["test/mse"] < run.summary["chance"]["test/mse"] + 0.01


def test_samples_are_a_pure_function_of_model_and_seed(run):
    loaded = load(run.path)
    loaded.model.eval()
    written = TraceReader(run.path).samples()
    assert written["image"].shape == (80, 1, 8, 8) and written["class"].tolist() == sorted(8 * list(range(10)))
    assert 0 <= written["image"].min() < written["image"].max() <= 1
    torch.rand(7)  # whatever else has drawn
    assert (loaded.task.samples(loaded.predict, 0)["image"].numpy() == written["image"]).all()
    assert (loaded.task.samples(loaded.predict, 1)["image"].numpy() != written["image"]).any()


def test_samples_are_drawn_where_a_run_has_some(run, tiny_run):
    (picture,) = draw_all(run, ["samples"])
    assert picture.name == "samples.png" and picture.stat().st_size > 5_000
    assert not draw_all(tiny_run, ["samples"])


def test_a_router_that_must_be_told_makes_no_samples(tmp_path):
    run = short(tmp_path, "router=replay")
    assert run.info["status"] == "finished" and not TraceReader(run.path).samples()


def test_nothing_is_predicted_of_new_images(run, tmp_path):
    with pytest.raises(UsageError, match="nothing to predict"):
        predictions(load(run.path), tmp_path / "x.png")
