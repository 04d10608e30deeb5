"""Noise in steps and back again: the identities of DDPM, and batches as pure functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moecli.errors import UsageError
from moecli.tasks.denoising import Denoising, Noise, Steps, bins
from moecli.tasks.digits import Digits


@pytest.fixture(scope="module")
def task():
    return Denoising(steps=50)


def test_a_thousand_steps_are_those_of_the_paper():
    steps = Steps(1000)
    assert steps.beta[[0, -1]].tolist() == pytest.approx([1e-4, 0.02]) and steps.beta.diff().std() < 1e-12
    assert steps.signal[-1].item() == pytest.approx(4.04e-5, rel=0.01)
    assert all(Steps(number).signal[-1] < 1e-4 for number in (20, 50, 200, 4000))


@pytest.mark.parametrize("number", [1, 3, 200])
def test_all_steps_at_once_are_the_steps_one_by_one(number):
    """x_t = sqrt(1 - beta) x_(t-1) + sqrt(beta) noise: its mean's factor and its variance, from x_0 on."""
    steps, factor, variance = Steps(number), 1.0, 0.0
    for t, beta in enumerate(steps.beta.tolist()):
        factor, variance = (1 - beta) ** 0.5 * factor, (1 - beta) * variance + beta
        at = torch.tensor([t])
        clean = steps.noisy(torch.ones(1, 1).double(), at, torch.zeros(1, 1))
        noise = steps.noisy(torch.zeros(1, 1).double(), at, torch.ones(1, 1))
        assert clean.item() == pytest.approx(factor) and noise.item() ** 2 == pytest.approx(variance)


def walk(steps, predict, rows=400, dim=8):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=draw).double()
    for t in reversed(range(steps.number)):
        x = steps.back(x, t, predict(x, steps.signal[t]), draw)
    return x


def test_who_knows_the_only_image_walks_back_to_it():
    image = torch.linspace(-1, 1, 8).double()
    found = walk(Steps(60), lambda x, signal: (x - signal.sqrt() * image) / (1 - signal).sqrt())
    assert torch.allclose(found, image.expand_as(found), atol=1e-9)
    blind = walk(Steps(60), lambda x, signal: torch.zeros_like(x))
    assert (blind - image).abs().mean() > 0.3  # the control


def test_who_knows_the_distribution_walks_back_to_it():
    """Images N(m, s^2): E[noise | x_t] = sqrt(1 - abar) (x_t - sqrt(abar) m) / (abar s^2 + 1 - abar)."""
    m, s = 0.3, 0.15
    found = walk(Steps(300), lambda x, a: (1 - a).sqrt() * (x - a.sqrt() * m) / (a * s * s + 1 - a), rows=1000)
    assert found.mean().item() == pytest.approx(m, abs=4 * s / 8000**0.5)
    # of the two variances that Ho et al. name for a step back ours is the lesser, so the spread comes out a little small
    assert 0.9 * s < found.std().item() < s


def test_a_batch_is_the_image_its_noise_and_its_conditions(task):
    batch, clean = task.batch("valid", torch.arange(200)), Digits().batch("valid", torch.arange(200))
    pixels, share, category = batch.x.split([64, 1, 10], dim=-1)
    step = (share[:, 0] * 50).round().long() - 1
    assert torch.allclose(pixels, task.steps.noisy(2 * clean.x - 1, step, batch.target))
    assert category.argmax(-1).equal(clean.target) and (category.sum(-1) == 1).all()
    assert batch.labels["step"].equal(step // 5) and batch.labels["class"].equal(clean.target)
    assert (
        batch.document.equal(clean.document) and set(step.tolist()) <= set(range(50)) and len(set(step.tolist())) > 40
    )
    assert batch.target.mean().abs() < 0.05 and batch.target.std().item() == pytest.approx(1, abs=0.02)


def test_batches_are_pure(task):
    one, same, other = (task.train_batch(step, 32, 0) for step in (3, 3, 4))
    assert one.x.equal(same.x) and one.target.equal(same.target) and not one.x.equal(other.x)
    assert not task.train_batch(3, 32, 1).target.equal(one.target)
    kept, turned = task.batch("test", torch.tensor([5, 9])), Denoising(steps=50).batch("test", torch.tensor([9, 5]))
    assert kept.x.equal(turned.x.flip(0)) and kept.target.equal(turned.target.flip(0))
    whole = task.train_batch(0, 10**6, 0)  # every visit draws anew, of all images too
    assert not whole.target.equal(task.train_batch(1, 10**6, 0).target)


def test_chance_is_silence(task):
    target = task.batch("test", torch.arange(task.sizes["test"])).target
    assert task.chance("test") == {"mse": pytest.approx(target.double().square().mean().item())}
    assert task.chance("test")["mse"] == pytest.approx(1, abs=0.05)
    kind = Noise(64)
    assert kind.summarise(kind.score(target, target)) == {"mse": 0.0} and not kind.higher_is_better


def test_bins_share_the_steps():
    assert bins(200)[:2] == ["0-19", "20-39"] and bins(3) == ["0-0", "1-1", "2-2"]
    for steps in (1, 7, 12, 1000):
        number = len(bins(steps))
        of_step = np.arange(steps) * number // steps
        assert bins(steps) == [f"{s.min()}-{s.max()}" for s in (np.flatnonzero(of_step == b) for b in range(number))]


def test_other_images_other_noise(tmp_path):
    pixels, label = np.random.default_rng(0).integers(0, 255, (20, 4, 4, 3), dtype=np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "data.npz", x=pixels, y=label)
    task = Denoising(str(tmp_path / "data.npz"), steps=5)
    assert (
        task.image == (3, 4, 4, 3)
        and task.dim == 51
        and task.out == 48
        and task.batch("test", torch.arange(4)).x.shape == (4, 51)
    )
    prints = {Denoising(steps=s, split_seed=seed).fingerprint for s, seed in ((5, 0), (6, 0), (5, 1))} | {
        task.fingerprint
    }
    assert len(prints) == 4
    assert any(fact.name == "steps" for fact in task.facts())
    with pytest.raises(UsageError, match="the digits have ten"):
        Denoising(classes=3)
