"""The tables that scikit-learn brings along, as if they were a user's own; nothing is downloaded."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from moecli.tasks.frames import normal, typed
from moecli.tasks.table import Roles, Table
from moecli.tasks.task import three_way
from moecli.types import Seed


class Sklearn(Table):
    """Iris, wine and breast cancer are classifications, diabetes and Linnerud's exercises regressions."""

    def __init__(
        self,
        name: Literal["iris", "wine", "breast_cancer", "diabetes", "linnerud"] = "iris",
        standardize: bool = True,
        split_seed: Seed = 0,
    ):
        frame, targets = shipped(name)
        frame.index = pd.MultiIndex.from_product([[f"scikit-learn's {name}"], range(1, len(frame) + 1)])
        self.roles = Roles.of(frame, targets, None, None, None)
        self.missing, self.standardize = "refuse", standardize
        self.rows_read = {f"scikit-learn's {name}": len(frame)}
        frame, parts = typed(normal(frame)), three_way(len(frame), split_seed)
        self._adopt_features(frame, parts)
        self._adopt_targets(frame, parts, "auto")


def shipped(name: str) -> tuple[pd.DataFrame, list[str]]:
    """The table with classes by their names, and its target columns."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    frame, targets = bunch.frame, list(bunch.target_names) if name == "linnerud" else ["target"]
    if "target_names" in bunch and name != "linnerud":
        frame = frame.assign(target=[str(bunch.target_names[number]) for number in frame["target"]])
    return frame, targets
