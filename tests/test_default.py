"""The default run keeps what the README shows: quality over seeds, on the task's fixed split."""

from __future__ import annotations

import statistics

import pytest

import moecli


@pytest.mark.slow
def test_the_default_reaches_its_accuracy_over_five_seeds(tmp_path):
    found = [moecli.train(f"seed={seed}", runs=tmp_path).summary["metrics"]["test/accuracy"] for seed in range(5)]
    assert statistics.mean(found) >= 0.97
    assert min(found) >= 0.955
