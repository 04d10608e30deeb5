"""Metrics are scikit-learn's, calibration is what brute force says, and chance is a constant guess's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch.distributions import Independent, Normal

from moecli.compatibility import small_router
from moecli.mixture import Mixture
from moecli.routing import Tokens
from moecli.tasks.kinds import Classification, Language, Regression, calibration_error, confusion, macro_f1

pytestmark = pytest.mark.filterwarnings("ignore:A single label was found")
seeds = st.integers(0, 2**32 - 1)


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 6), seeds)
@settings(max_examples=60, deadline=None)
def test_classification_equals_scikit_learn(size, classes, present, seed):
    draw = torch.Generator().manual_seed(seed)
    kind = Classification(tuple(map(str, range(classes))))
    logits = torch.randn(size, classes, generator=draw).double() * 2
    target = torch.randint(0, min(present, classes), (size,), generator=draw)  # often a single class
    found = kind.summarise(kind.score(logits, target))
    probs, predicted = logits.softmax(-1).numpy(), logits.argmax(-1).numpy()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(target, predicted), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(target, predicted, average="macro"), abs=1e-12)
    nll = -np.log(probs[np.arange(size), target]).mean()
    assert found["nll"] == pytest.approx(nll, abs=1e-5)  # scored in float32
    if classes > 1:
        assert nll == pytest.approx(metrics.log_loss(target, probs, labels=range(classes)), abs=1e-12)
        worse = kind.summarise(kind.score(logits, (target + 1) % classes))
        assert worse["nll"] != pytest.approx(found["nll"], abs=1e-9)


@given(st.integers(1, 80), st.integers(1, 5), seeds)
@settings(max_examples=100, deadline=None)
def test_confusion_and_f1_equal_scikit_learn(size, classes, seed):
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(0, classes, (size,), generator=draw) for _ in range(2))
    assert np.array_equal(confusion(a, b, classes), metrics.confusion_matrix(b, a, labels=range(classes)))
    assert macro_f1(a, b, classes) == pytest.approx(metrics.f1_score(b, a, average="macro"), abs=1e-12)


def brute_calibration(confidence, correct, bins=15):
    total = 0.0
    for b in range(bins):
        inside = [
            i for i, c in enumerate(confidence) if (b <= c * bins < b + 1) or (b == bins - 1 and c * bins >= bins)
        ]
        if inside:
            gap = sum(confidence[i] for i in inside) / len(inside) - sum(correct[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(gap)
    return total


@given(st.integers(1, 200), seeds)
@settings(max_examples=100, deadline=None)
def test_calibration_error_equals_brute_force(size, seed):
    draw = torch.Generator().manual_seed(seed)
    confidence = torch.rand(size, generator=draw, dtype=torch.float64)
    confidence[torch.rand(size, generator=draw) < 0.1] = 1.0
    correct = torch.rand(size, generator=draw) < confidence
    expected = brute_calibration(confidence.tolist(), correct.tolist())
    assert calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_calibration_of_planted_cases():
    half = torch.full((100,), 0.75)
    assert calibration_error(half, torch.arange(100) % 4 > 0) == pytest.approx(0, abs=1e-7)
    assert calibration_error(half, torch.ones(100, dtype=torch.bool)) == pytest.approx(0.25, abs=1e-7)
    assert calibration_error(torch.ones(5), torch.zeros(5, dtype=torch.bool)) == pytest.approx(1)


@given(st.integers(2, 60), st.integers(1, 3), seeds)
@settings(max_examples=150, deadline=None)
def test_regression_equals_scikit_learn_in_the_users_units(size, targets, seed):
    draw = torch.Generator().manual_seed(seed)
    y, mean = (torch.randn(size, targets, generator=draw, dtype=torch.float64) for _ in range(2))
    scale, center = torch.rand(targets, generator=draw).double() + 0.1, torch.randn(targets, generator=draw).double()
    kind = Regression(tuple(map(str, range(targets))), tuple(scale.tolist()), tuple(center.tolist()))
    found = kind.summarise(kind.score(mean, y))
    real, guess = (y * scale + center).numpy(), (mean * scale + center).numpy()
    assert found["r2"] == pytest.approx(metrics.r2_score(real, guess), rel=1e-9, abs=1e-9)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(real, guess), rel=1e-12)
    assert found["rmse"] == pytest.approx(math.sqrt(metrics.mean_squared_error(real, guess)), rel=1e-12)
    assert kind.summarise(kind.score(mean + 0.1, y))["rmse"] != pytest.approx(found["rmse"], rel=1e-12)


def test_a_constant_target_has_no_r2():
    kind = Regression(("y",))
    found = kind.summarise(kind.score(torch.randn(9, 1), torch.ones(9, 1)))
    assert math.isnan(found["r2"]) and math.isfinite(found["rmse"])


def test_the_nll_of_a_density_is_in_the_users_units():
    torch.manual_seed(0)
    router = small_router("dense")
    routing = router(Tokens.items(torch.randn(6, 8)))
    mean, sd, y, scale = torch.randn(24, 1), torch.rand(24, 1) + 0.5, torch.randn(6, 1), 3.0
    mixture = Mixture(routing, Independent(Normal(mean, sd), 1), mean, torch.zeros(6))
    kind = Regression(("y",), (scale,), (5.0,))
    log_w = routing.probs.double().log()
    rows = Normal(mean.double().view(4, 6).T * scale + 5, sd.double().view(4, 6).T * scale)
    expected = -(log_w + rows.log_prob(y.double() * scale + 5)).logsumexp(-1).mean().item()
    assert kind.summarise(kind.score(mixture, y))["nll"] == pytest.approx(expected, abs=1e-5)
    assert Regression(("y",)).summarise(kind.score(mixture, y))["nll"] != pytest.approx(expected, abs=1e-2)


@given(st.integers(1, 6), st.integers(1, 7), st.integers(2, 9), seeds)
@settings(max_examples=30, deadline=None)
def test_language_metrics(windows, length, symbols, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(windows, length, symbols, generator=draw)
    target = torch.randint(0, symbols, (windows, length), generator=draw)
    names = [*map(chr, range(97, 96 + symbols)), "é"]  # the last has two bytes
    kind = Language(tuple(names))
    found = kind.summarise(kind.score(logits, target))
    probs = logits.double().softmax(-1).flatten(0, 1).numpy()
    nll = metrics.log_loss(target.flatten(), probs, labels=range(symbols))
    assert found["nll"] == pytest.approx(nll, abs=1e-5)
    assert found["bits_per_byte"] == pytest.approx(
        nll * target.numel() / math.log(2) / sum(len(names[i].encode()) for i in target.flatten().tolist()), rel=1e-4
    )
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]), rel=1e-12)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(target.flatten(), probs.argmax(-1)), abs=1e-6)


# -- chance -------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(1, 5), seeds)
@settings(max_examples=30, deadline=None)
def test_chance_of_classes_is_the_best_constant_guess(size, classes, seed):
    draw = torch.Generator().manual_seed(seed)
    train, target = (
        torch.randint(0, classes, (200,), generator=draw),
        torch.randint(0, classes, (size,), generator=draw),
    )
    kind = Classification(tuple(map(str, range(classes))))
    chance, share = kind.chance(train, target), train.bincount(minlength=classes) / 200
    common = np.full(size, int(share.argmax()))
    assert chance["accuracy"] == pytest.approx(metrics.accuracy_score(target, common), abs=1e-12)
    assert chance["macro_f1"] == pytest.approx(metrics.f1_score(target, common, average="macro"), abs=1e-12)
    assert chance["nll"] == pytest.approx(-share.double()[target].log().mean().item(), abs=1e-5)


def test_chance_on_the_training_split_beats_every_other_constant_guess():
    train = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    kind = Classification(("a", "b", "c"))
    best = kind.chance(train, train)["nll"]
    for other in torch.distributions.Dirichlet(torch.ones(3)).sample((50,)):
        assert kind.summarise(kind.score(other.log().expand(10, -1), train))["nll"] >= best - 1e-6
    assert best == pytest.approx(-(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2)), abs=1e-6)


def test_a_class_that_training_never_saw_costs_but_stays_finite():
    chance = Classification(("a", "b")).chance(torch.zeros(9, dtype=torch.int64), torch.tensor([1]))
    assert math.isfinite(chance["nll"]) and chance["nll"] > 20 and chance["accuracy"] == 0


def test_chance_of_real_targets_is_the_training_mean():
    train, target = torch.randn(50, 2), torch.randn(20, 2) + 1
    found = Regression(("a", "b")).chance(train, target)
    guess = train.double().mean(0).expand(20, -1)
    assert found["r2"] == pytest.approx(metrics.r2_score(target, guess), abs=1e-5)
    assert found["r2"] < 0
    assert Regression(("a", "b")).chance(train, train)["r2"] == pytest.approx(0, abs=1e-6)


def test_chance_of_a_language_is_its_unigrams():
    train, target = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 1])
    found = Language(("a", "b")).chance(train, target)
    assert found["nll"] == pytest.approx(-(math.log(0.75) + 2 * math.log(0.25)) / 3, abs=1e-9)
    assert found["accuracy"] == pytest.approx(1 / 3, abs=1e-6)


# -- answers ------------------------------------------------------------------------------------------


def test_answers_are_in_the_users_words_and_units():
    classes = Classification(("red", "green")).answer(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    assert classes["predicted"] == ["green", "red"]
    assert classes["probability"] == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-3))], abs=1e-6)
    real = Regression(("price",), (10.0,), (100.0,)).answer(torch.tensor([[0.5], [-1.0]]))
    assert real == {"predicted price": [105.0, 90.0]}
