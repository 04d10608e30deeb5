"""Planted problems are what they say, splits are fixed, and batches are a pure function of (seed, step)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.tasks.digits import Digits, handwritten
from moecli.tasks.task import SPLITS, generator, order, three_way
from moecli.tasks.toys import Piecewise, Regions, Spirals

TOYS = [Piecewise, Regions, Spirals]
sizes = st.integers(1, 60)


@given(sizes, st.integers(1, 70), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_each_epoch_takes_every_example_once(size, batch, seed):
    if batch >= size:
        assert order(size, 3, batch, seed).tolist() == list(range(size))
        return
    taken = torch.cat([order(size, step, batch, seed) for step in range(-(-3 * size // batch))])
    for epoch in range(3):
        assert sorted(taken[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))
    assert all(len(order(size, step, batch, seed)) == batch for step in range(5))


def test_order_is_a_pure_function_of_seed_and_step():
    first = [order(100, step, 8, 3) for step in range(40)]
    torch.manual_seed(1)
    again = {step: order(100, step, 8, 3) for step in reversed(range(40))}  # asked for in another order
    assert all(torch.equal(first[step], again[step]) for step in range(40))
    assert not all(torch.equal(first[step], order(100, step, 8, 4)) for step in range(40))
    assert not torch.equal(first[0], first[1])
    epochs = [torch.cat([order(80, step, 8, 3) for step in range(e * 10, e * 10 + 10)]) for e in range(3)]
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_private_generators_leave_the_global_one_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    drawn = torch.rand(2, generator=generator(1, 2))
    Piecewise(rows=50)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(2, generator=generator(1, 2)), drawn)
    assert not torch.equal(torch.rand(2, generator=generator(2, 1)), drawn)


@given(st.integers(1, 500), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_splits_are_disjoint_complete_and_fixed(size, seed):
    parts = three_way(size, seed)
    together = torch.cat([parts[name] for name in SPLITS])
    assert sorted(together.tolist()) == list(range(size))
    assert all(torch.equal(part, part.sort().values) for part in parts.values())
    assert all(torch.equal(parts[n], three_way(size, seed)[n]) for n in SPLITS)
    assert len(parts["test"]) == round(0.2 * size) and len(parts["valid"]) == round(0.15 * size)
    if size > 50:
        assert not torch.equal(parts["test"], three_way(size, seed + 1)["test"])


@pytest.mark.parametrize("task", [*TOYS, Digits])
def test_a_task_is_the_same_again_and_another_with_another_seed(task):
    one, same, other = task(), task(), task(split_seed=1)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    for split in SPLITS:
        a, b = (t.batch(split, torch.arange(t.sizes[split])) for t in (one, same))
        assert torch.equal(a.x, b.x) and torch.equal(a.target, b.target) and a.labels.keys() == b.labels.keys()
    assert (
        sum(one.sizes.values()) == {"Piecewise": 1000, "Spirals": 1500, "Regions": 2000, "Digits": 1797}[task.__name__]
    )


@pytest.mark.parametrize("task", [*TOYS, Digits])
def test_sizes_labels_and_facts_agree(task):
    one = task()
    batch = one.train_batch(5, 32, 0)
    assert batch.x.shape == (32, one.dim) and len(one.feature_names) == one.dim
    assert torch.equal(batch.x, one.train_batch(5, 32, 0).x) and not torch.equal(batch.x, one.train_batch(5, 32, 1).x)
    for name, values in one.label_names.items():
        whole = torch.cat([one.splits[s].labels[name] for s in SPLITS])
        assert whole.min() >= 0 and whole.max() < len(values) and len(set(values)) == len(values)
        assert len(whole.unique()) == len(values), "every name is used"
    joined = torch.cat([b.x for b in one.batches("test", 50)])
    assert torch.equal(joined, one.splits["test"].x)
    assert {f.name for f in one.facts()} >= {"rows", "features", "targets", "chance on test"}
    grid = one.grid()
    assert grid is None or grid.shape[1] == one.dim


def whole(task):
    return [torch.cat([getattr(task.splits[s], f) for s in SPLITS]).double() for f in ("x", "target")] + [
        torch.cat([task.splits[s].labels["regime"] for s in SPLITS])
    ]


def residual(x, y, degree_free):
    """Largest distance of y from its best linear fit, constant included."""
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    assert len(x) > degree_free
    return (y - design @ torch.linalg.lstsq(design, y).solution).abs().max().item()


@pytest.mark.parametrize("regimes", [1, 2, 4, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_piecewise_without_noise_is_a_line_in_each_planted_part(regimes, seed):
    x, y, regime = whole(Piecewise(regimes=regimes, noise=0.0, split_seed=seed))
    for r in range(regimes):
        inside = regime == r
        low, high = -1 + 2 * r / regimes, -1 + 2 * (r + 1) / regimes
        assert bool(((x[inside] >= low - 1e-6) & (x[inside] <= high + 1e-6)).all())
        assert residual(x[inside], y[inside], 5) < 1e-5
    if regimes > 1:
        assert residual(x, y, 5) > 0.1  # and no line overall
    noisy = whole(Piecewise(regimes=regimes, noise=0.3, split_seed=seed))
    assert residual(noisy[0][noisy[2] == 0], noisy[1][noisy[2] == 0], 5) > 0.1


@pytest.mark.parametrize("regimes", [1, 3, 5])
def test_regions_without_noise_are_linear_in_each_cell_and_cells_are_nearest_centres(regimes):
    x, y, regime = whole(Regions(regimes=regimes, noise=0.0))
    assert len(regime.unique()) == regimes
    for r in range(regimes):
        assert residual(x[regime == r], y[regime == r], 5) < 1e-5
    if regimes > 1:
        assert residual(x, y, 5) > 0.1


def test_noise_has_the_deviation_that_was_asked_for():
    clean, noisy = whole(Piecewise(rows=5000, noise=0.0)), whole(Piecewise(rows=5000, noise=0.2))
    assert torch.equal(clean[0], noisy[0])
    assert (noisy[1] - clean[1]).std().item() == pytest.approx(0.2, rel=0.05)


def test_spirals_without_noise_lie_on_their_arm():
    task = Spirals(noise=0.0, turns=1.5)
    x, arm = (torch.cat([getattr(task.splits[s], f) for s in SPLITS]).double() for f in ("x", "target"))
    radius = x.norm(dim=1)
    angle = torch.atan2(x[:, 1], x[:, 0])
    expected = radius * 1.5 * 2 * math.pi + arm * math.pi
    off = (angle - expected + math.pi) % (2 * math.pi) - math.pi
    assert off[radius > 0.01].abs().max() < 1e-4
    assert abs(arm.mean().item() - 0.5) < 0.01
    quarter = torch.cat([task.splits[s].labels["quarter turn"] for s in SPLITS])
    inside = (radius * 6 - quarter).abs()
    assert bool(((radius * 6 >= quarter - 1e-4) & (inside <= 1 + 1e-4)).all())


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    task, theirs, (pixels, digits) = Digits(), load_digits(), handwritten()
    assert np.array_equal(pixels, theirs.images) and np.array_equal(digits, theirs.target)
    assert task.batch("test", torch.tensor([0])).x.max() <= 1
    assert sum(s.x.double().sum() for s in task.splits.values()).item() == pytest.approx(pixels.sum() / 16)
    assert task.chance("test")["accuracy"] < 0.2
