"""Two lines and outliers: the planted gate, lines, noise and shares; a clean test."""

import pytest
import torch

from moecli.tasks.outliers import OUTLIER_AT, Outliers, true_mean, unit_noise
from moecli.tasks.task import generator


def test_without_noise_every_point_lies_on_the_line_of_its_label():
    task = Outliers(rows=2000, noise=0.0, share=0.2)
    for name, part in task.splits.items():
        x, y, regime = part.x[:, 0], part.target[:, 0], part.labels["regime"]
        expected = torch.stack([x, -x, torch.full_like(x, OUTLIER_AT)])[regime, torch.arange(len(x))]
        assert torch.equal(y, expected), name
        assert torch.equal(part.labels["outlier"], (regime == 2).long())


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_outliers_have_their_share_and_never_test(share):
    task = Outliers(rows=5000, share=share)
    assert task.sizes == {"train": 5000, "valid": 1250, "test": 10_000}
    assert task.splits["train"].labels["outlier"].double().mean().item() == pytest.approx(share, abs=0.02)
    assert not task.splits["test"].labels["outlier"].any()
    assert task.label_names == {"regime": ["rising line", "falling line", "outlier"], "outlier": ["no", "yes"]}


def test_the_gate_is_logistic_and_the_mean_is_the_true_one():
    part = Outliers(rows=50_000, share=0.0).splits["train"]
    x, rising = part.x[:, 0], (part.labels["regime"] == 0).float()
    for low in torch.arange(-1, 1, 0.1):
        here = (x >= low) & (x < low + 0.1)
        assert rising[here].mean().item() == pytest.approx((10 * x[here]).sigmoid().mean().item(), abs=0.04)
        assert part.target[here].mean().item() == pytest.approx(true_mean(x[here]).mean().item(), abs=0.02)
    assert (part.target[:, 0] - x).square().mean() > 2 * (part.target[:, 0] - true_mean(x)).square().mean()


@pytest.mark.parametrize(
    ("kind", "variance", "absolute"), [("normal", 1.0, 0.798), ("laplace", 2.0, 1.0), ("student_t", 5 / 3, 0.949)]
)
def test_noise_is_of_its_kind(kind, variance, absolute):
    """E|n| is sqrt(2 / pi), 1, and for Student's t with 5 degrees of freedom 0.949."""
    drawn = unit_noise(kind, 200_000, generator(0, 1)).double()
    assert drawn.var().item() == pytest.approx(variance, rel=0.05)
    assert drawn.abs().mean().item() == pytest.approx(absolute, rel=0.01)
    assert drawn.mean().item() == pytest.approx(0, abs=0.02)


def test_another_seed_is_other_data():
    assert Outliers().fingerprint == Outliers().fingerprint != Outliers(split_seed=1).fingerprint
    assert Outliers(kind="laplace").fingerprint != Outliers().fingerprint
