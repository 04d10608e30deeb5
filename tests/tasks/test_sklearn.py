"""scikit-learn's tables go through the user's table: same cells, same split, same statistics."""

import pandas as pd
import pytest
import torch
from sklearn import datasets

from moecli.tasks.sklearn import Sklearn
from moecli.tasks.table import Table
from moecli.tasks.task import SPLITS

# rows, columns, and classes or targets
TABLES = {
    "iris": (150, 4, 3),
    "wine": (178, 13, 3),
    "breast_cancer": (569, 30, 2),
    "diabetes": (442, 10, 1),
    "linnerud": (20, 3, 3),
}


@pytest.mark.parametrize("name", TABLES)
def test_each_table_is_whole_and_standardised(name):
    task, (rows, dim, out) = Sklearn(name), TABLES[name]
    assert (sum(task.sizes.values()), task.dim, task.out) == (rows, dim, out)
    assert ("classes" in task.gives) == (name in ("iris", "wine", "breast_cancer"))
    assert task.splits["train"].x.mean(0).abs().max() < 1e-4
    assert task.fingerprint == Sklearn(name).fingerprint != Sklearn(name, split_seed=1).fingerprint
    assert all(fact.value for fact in task.facts())


@pytest.mark.parametrize(("name", "target"), [("iris", "target"), ("diabetes", "target")])
def test_a_table_is_what_its_csv_would_be(name, target, tmp_path):
    frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    frame.to_csv(tmp_path / "same.csv", index=False)
    here, there = Sklearn(name), Table(str(tmp_path / "same.csv"), target)
    for part in SPLITS:
        assert torch.equal(here.splits[part].x, there.splits[part].x)
        assert torch.equal(here.splits[part].target, there.splits[part].target)
    other = Table(str(tmp_path / "same.csv"), target, split_seed=1)
    assert not torch.equal(here.splits["test"].x, other.splits["test"].x)


def test_classes_have_their_names_and_new_rows_are_read(tmp_path):
    task, bunch = Sklearn("iris"), datasets.load_iris(as_frame=True)
    assert task.kind.classes == ("setosa", "versicolor", "virginica")
    pd.DataFrame(bunch.data).to_csv(tmp_path / "new.csv", index=False)
    rows, _ = task.new_rows(tmp_path / "new.csv")
    assert sorted(rows.tolist()) == sorted(torch.cat([task.splits[part].x for part in SPLITS]).tolist())
