"""Learning rates in closed form."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.training.schedules import Constant, Cosine


@given(st.integers(1, 500), st.floats(0, 0.99), st.floats(0, 0.99))
@settings(max_examples=200, deadline=None)
def test_cosine_rises_linearly_and_falls_along_half_a_cosine(steps, warmup, final):
    rate, rise = Cosine(warmup, final), round(warmup * steps)
    for step in range(steps):
        if step < rise:
            expected = (step + 1) / rise
        else:
            angle = math.pi * (step - rise) / max(steps - rise, 1)
            expected = final + (1 - final) * (1 + math.cos(angle)) / 2
        assert rate(step, steps) == pytest.approx(expected, abs=1e-12)
        assert 0 < rate(step, steps) <= 1 or final == 0
    shares = [rate(step, steps) for step in range(steps)]
    assert shares[:rise] == sorted(shares[:rise]) and shares[rise:] == sorted(shares[rise:], reverse=True)
    if rise < steps:
        assert shares[rise] == pytest.approx(1)
    assert rate(steps, steps) == pytest.approx(final, abs=1e-12) or rise == steps


def test_other_options_give_other_rates():
    assert Cosine(0.1, 0.0)(50, 100) != Cosine(0.2, 0.0)(50, 100) != Cosine(0.2, 0.5)(50, 100)


def test_constant_is_one():
    assert {Constant()(step, 100) for step in range(100)} == {1.0}
