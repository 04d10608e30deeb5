"""Shared by all tests: no window is opened, no thread raced for, and one tiny run for who reads runs."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

import moecli


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A finished run of 20 steps; whoever changes its files copies the folder first."""
    root = tmp_path_factory.mktemp("runs")
    return moecli.train("task=piecewise", "task.rows=200", "trainer.steps=20", runs=root, name="tiny")


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = (
        False  # else pytest-xdist begins with the files of many tests, and README's tour is last
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: begun last, one would keep a worker busy when the other has nothing left."""
    items.sort(key=lambda item: item.path.name not in ("test_readme.py", "test_contract.py"))
