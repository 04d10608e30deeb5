"""A user's own table: the rows of a file -> features, and classes or real targets.

Every statistic (mean, spread, categories, quartiles) comes from training rows alone.  Nothing is
guessed silently: what is done with each column stands in ``facts``, and a cell that fits nowhere is a
DataError that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from moecli.errors import DataError, UsageError
from moecli.tasks.files import shown, user_path
from moecli.tasks.formula import Design
from moecli.tasks.frames import (
    as_text,
    file_of,
    finite_numbers,
    is_numeric,
    listed,
    located,
    normal,
    numbers,
    place_of,
    read_table,
    refuse_commas,
    refuse_missing,
    refuse_where,
    require_columns,
    texts,
    typed,
    without,
)
from moecli.tasks.kinds import Classification, Kind, Regression
from moecli.tasks.task import Fact, InMemory, Split, three_way
from moecli.types import Seed

MAX_CATEGORIES = 50
MAX_CLASSES = 20  # an integer target of more distinct values is regression
MIN_ROWS = 10
MIN_GROUPS = 4  # fewer leave a part of the split empty
QUARTERS = ["lowest quarter", "second quarter", "third quarter", "highest quarter"]
UNSEEN = "(not in training)"


class Table(InMemory):
    """Regression or classification on the rows of a file."""

    fitted = True
    design: Design | None = None  # where a formula says what is read
    weights: str | None = None  # the column that says how much each row counts

    def __init__(
        self,
        path: str,
        target: str | list[str] | None = None,
        features: list[str] | None = None,
        drop: list[str] | None = None,
        formula: str | None = None,
        weights: str | None = None,
        missing: Literal["refuse", "drop"] = "refuse",
        standardize: bool = True,
        kind: Literal["auto", "classification", "regression"] = "auto",
        test_path: str | None = None,
        group: str | None = None,
        split_seed: Seed = 0,
    ):
        frame = located(path)
        if formula is not None:
            _refuse_two_ways(target, features, drop)
            self.design = Design(formula)
            target, features = self.design.targets, self.design.variables
        self.weights = weights
        self.roles = Roles.of(frame, _asked(target), features, drop, group, weights)
        self.missing, self.standardize = missing, standardize
        self.rows_read = {str(user_path(path)): len(frame)}
        frame = self._usable(frame)
        _refuse_few(frame, str(user_path(path)))
        parts = split_rows(frame, group, split_seed, separate_test=test_path is not None)
        if test_path is not None:
            test = self._test_rows(test_path, frame)
            parts["test"] = torch.arange(len(frame), len(frame) + len(test))
            frame = normal(pd.concat([frame, test]))
        frame = typed(frame)
        self._adopt_features(frame, parts)
        self._adopt_targets(frame, parts, kind)

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """New rows as features: (n, D) float32, in the frame's order.

        Raises DataError for an absent column, a missing value, a text where numbers are, and a category
        that no training row has.
        """
        require_columns(frame, self.roles.features)
        frame = normal(frame[self.roles.features])
        refuse_missing(frame, "fill them")
        _refuse_unseen(self.columns, frame)
        return self._features(frame)

    @property
    def reads(self) -> dict[str, list[str]]:
        """Which features the gate and the experts read, where a formula with a bar says so."""
        return self.design.reads if self.design is not None and self.design.has_bar else {}

    def feature_units(self) -> tuple[list[float], list[float]]:
        numeric = [c if isinstance(c, Numeric) else Numeric(n) for c in self.columns for n in c.feature_names]
        return [column.center for column in numeric], [column.factor for column in numeric]

    def new_rows(self, file: Path) -> tuple[Tensor, dict[str, list[Any]]]:
        return self.encode(read_table(file)), {}

    def new_targets(self, file: Path) -> Tensor | None:
        frame = read_table(file)
        if any(name not in frame.columns or frame[name].isna().all() for name in self.roles.targets):
            return None
        if self.design is not None:
            if frame[self.roles.targets].isna().any(axis=None):  # nothing can be computed from a missing cell
                return None
            frame = self.design.answers(frame[self.roles.targets])
        kind: Any = self.kind
        if isinstance(kind, Classification):
            codes = Categorical(str(frame.columns[0]), kind.classes).codes(class_names(frame.iloc[:, 0]))
            return torch.from_numpy(codes)
        raw = np.stack([numbers(frame[name]) for name in kind.targets], axis=1)
        return torch.from_numpy((raw - np.array(kind.center)) / np.array(kind.scale)).float()

    def facts(self) -> list[Fact]:
        rows = ", ".join(f"{count} of {file}" for file, count in self.rows_read.items())
        dropped = sum(self.rows_read.values()) - sum(self.sizes.values())
        return [
            Fact("rows read", rows),
            Fact("rows left out for missing values", str(dropped)),
            *(Fact(f"{group} reads", listed(names) or "nothing") for group, names in self.reads.items()),
            *(Fact(treatment, listed(names)) for treatment, names in self._treatments().items()),
            *super().facts(),
        ]

    def _treatments(self) -> dict[str, list[str]]:
        """What is done with columns -> the columns, each in one place."""
        treatments: dict[str, list[str]] = {"target": self.roles.targets}
        treatments["columns of the formula"] = self.design.variables if self.design else []
        for column in self.columns:
            treatments.setdefault(f"columns {column.treatment}", []).append(column.described())
        treatments["columns that are the group"] = [self.roles.group] if self.roles.group else []
        treatments["columns that weigh the rows"] = [self.weights] if self.weights else []
        treatments["columns left out"] = self.roles.left_out
        return {treatment: names for treatment, names in treatments.items() if names}

    def _usable(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The columns with a role, and the rows in which none of them is missing."""
        frame = frame[self.roles.used]
        _refuse_empty_columns(frame)
        if self.missing == "refuse":
            refuse_missing(frame, "fill them, or drop their rows with task.missing=drop")
        return frame.dropna()

    def _test_rows(self, test_path: str, train: pd.DataFrame) -> pd.DataFrame:
        if str(user_path(test_path)) in self.rows_read:
            raise UsageError(f"one file twice (task.test_path): {test_path} is task.path too. Leave test_path out")
        test = located(test_path)
        self.rows_read[str(user_path(test_path))] = len(test)
        require_columns(test, self.roles.used)
        test = self._usable(test)
        if not len(test):
            raise DataError(f"no rows ({user_path(test_path)}): each misses a value. Fill them")
        if self.roles.group is not None:
            _refuse_shared_groups(train[self.roles.group], test[self.roles.group])
        return test

    def _adopt_features(self, frame: pd.DataFrame, parts: dict[str, Tensor]) -> None:
        train = parts["train"].numpy()
        if self.design is not None:
            self.design.fit(frame.iloc[train])
            frame = self.design.matrix(frame)
        names = self.roles.features if self.design is None else self.design.names
        self.columns = [fit_column(frame[name], train, self.standardize) for name in names]
        self.feature_names = [name for column in self.columns for name in column.feature_names]
        if len(self.rows_read) > 1:  # in a separate test file; a rare category may fall out of a random split
            _refuse_unseen(self.columns, frame.iloc[parts["test"].numpy()])

    def _adopt_targets(self, frame: pd.DataFrame, parts: dict[str, Tensor], kind: str) -> None:
        targets = frame[self.roles.targets] if self.design is None else self.design.answers(frame)
        fit = fit_classes if is_classification(targets, list(targets.columns), kind) else fit_reals
        fitted = fit(targets, parts["train"], self.standardize)
        for column in self._texts(frame, parts["train"].numpy()):
            if isinstance(column, Categorical):
                name = column.name if column.name not in fitted.labels else f"column {column.name}"
                fitted.labels[name], fitted.label_names[name] = column.label(frame[column.name])
        x, document, weight = self._features(frame), self._document(frame), self._weight(frame)
        splits = {
            name: Split(
                x[i],
                fitted.target[i],
                {k: label[i] for k, label in fitted.labels.items()},
                document[i],
                None if weight is None else _some(weight[i], name),
            )
            for name, i in parts.items()
        }
        self.adopt(splits, fitted.kind, fitted.label_names)

    def _texts(self, frame: pd.DataFrame, train: np.ndarray) -> list[Categorical]:
        """Columns of text that are read: each is a label too."""
        if self.design is None:
            return [column for column in self.columns if isinstance(column, Categorical)]
        fitted = [fit_column(frame[name], train, False) for name in self.design.levels]
        return [column for column in fitted if isinstance(column, Categorical)]

    def _features(self, frame: pd.DataFrame) -> Tensor:  # -> (n, D) float32
        if self.design is not None:
            frame = self.design.matrix(frame)
        encoded = [column.encode(frame[column.name]) for column in self.columns]
        return torch.from_numpy(np.concatenate(encoded, axis=1)).clone()  # into memory of torch's own alignment

    def _document(self, frame: pd.DataFrame) -> Tensor:  # -> (N,) int64
        if self.roles.group is None:
            return torch.arange(len(frame))
        return torch.from_numpy(group_numbers(frame[self.roles.group]))

    def _weight(self, frame: pd.DataFrame) -> Tensor | None:  # -> (N,) float32
        if self.weights is None:
            return None
        values = finite_numbers(frame[self.weights])
        refuse_where(values < 0, frame[self.weights], "negative weight", "is no weight. Give numbers of at least 0")
        return torch.tensor(values, dtype=torch.float32)


@dataclass(frozen=True)
class Roles:
    """What each column of the file is there for."""

    targets: list[str]
    features: list[str]
    group: str | None
    left_out: list[str]
    weights: str | None = None

    @property
    def used(self) -> list[str]:
        return [*self.features, *self.targets, *(name for name in (self.group, self.weights) if name)]

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        target: str | list[str],
        features: list[str] | None,
        drop: list[str] | None,
        group: str | None,
        weights: str | None = None,
    ) -> Roles:
        """Raises DataError for a column that is not there, UsageError for one with two roles."""
        targets = [target] if isinstance(target, str) else list(target)
        asked = {"task.target": targets, "task.features": features or [], "task.drop": drop or []}
        asked["task.group"] = [group] if group is not None else []
        asked["task.weights"] = [weights] if weights is not None else []
        _refuse_two_roles(asked)
        for names in asked.values():
            require_columns(frame, names)
        taken = {*targets, *asked["task.drop"], *asked["task.group"], *asked["task.weights"]}
        chosen = features or [name for name in frame.columns if name not in taken]
        if not targets or not chosen:
            what = "features" if targets else "target"
            raise DataError(f"no {what} ({file_of(frame)}): no column is left for it. Set task.{what} to a column")
        left_out = [name for name in frame.columns if name not in {*chosen, *targets, group, weights}]
        return cls(targets, list(chosen), group, left_out, weights)


@dataclass(frozen=True)
class Numeric:
    """A column of numbers: (value - center) * factor, where a constant column's factor is 0."""

    name: str
    center: float = 0.0
    factor: float = 1.0

    @property
    def treatment(self) -> str:
        if not self.factor:
            return "constant in training, set to 0"
        return "kept as they are" if (self.center, self.factor) == (0.0, 1.0) else "standardised by training rows"

    @property
    def feature_names(self) -> list[str]:
        return [self.name]

    def described(self) -> str:
        return self.name

    def encode(self, cells: pd.Series) -> np.ndarray:  # (n,) -> (n, 1) float32
        values = (finite_numbers(cells) - self.center) * self.factor
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        refuse_where(~np.isfinite(narrow), cells, "number too large", "is beyond 1e38. Scale the column")
        return narrow[:, None]


@dataclass(frozen=True)
class Categorical:
    """A column of texts: one 0/1 feature for each category of training, none of them for another."""

    name: str
    categories: tuple[str, ...]

    @property
    def treatment(self) -> str:
        return "one-hot"

    @property
    def feature_names(self) -> list[str]:
        return [f"{self.name} = {category}" for category in self.categories]

    def described(self) -> str:
        return f"{self.name} (one-hot of {len(self.categories)})"

    def codes(self, cells: pd.Series) -> np.ndarray:  # -> (n,) int64, -1 where not seen in training
        number = {category: index for index, category in enumerate(self.categories)}
        return np.array([number.get(cell, -1) for cell in texts(cells)], dtype=np.int64)

    def encode(self, cells: pd.Series) -> np.ndarray:  # (n,) -> (n, k) float32
        return (self.codes(cells)[:, None] == np.arange(len(self.categories))).astype(np.float32)

    def label(self, cells: pd.Series) -> tuple[Tensor, list[str]]:
        """Numbers (n,) and the names they stand for."""
        codes = torch.from_numpy(self.codes(cells))
        if not bool((codes < 0).any()):
            return codes, list(self.categories)
        return codes.where(codes >= 0, len(self.categories)), [*self.categories, UNSEEN]


@dataclass(frozen=True)
class Targets:
    """Targets of all rows, and the labels that follow from them."""

    kind: Kind
    target: Tensor  # (N,) int64 or (N, Y) float32
    labels: dict[str, Tensor]
    label_names: dict[str, list[str]]


def fit_column(cells: pd.Series, train: np.ndarray, standardize: bool) -> Numeric | Categorical:
    """How a column becomes features, from its ``train`` rows."""
    name = str(cells.name)
    if is_numeric(cells):
        values = finite_numbers(cells)[train]
        if not standardize:
            return Numeric(name)
        center, spread = _center_and_spread(values)
        return Numeric(name, center, 1 / spread if spread else 0.0)
    categories = sorted(set(texts(cells.iloc[train])))
    if len(categories) > MAX_CATEGORIES:
        why = f"its training rows hold {len(categories)} different texts, and at most {MAX_CATEGORIES} become features"
        raise DataError(f"too many categories ({place_of(cells, 0)}): {why}. Leave it out with {without(name)}")
    return Categorical(name, tuple(categories))


def is_classification(frame: pd.DataFrame, targets: list[str], kind: str) -> bool:
    if len(targets) > 1:
        if kind == "classification":
            raise UsageError(
                "several targets (task.target): a classification has one. Name one, or task.kind=regression"
            )
        return False
    if kind != "auto":
        return kind == "classification"
    cells = frame[targets[0]]
    refuse_commas(cells)
    if cells.nunique() > MAX_CLASSES:
        return not is_numeric(cells)
    values = numbers(cells)  # NaN, which is not its own round, where a cell is text
    return bool(np.isnan(values).any() or (values == values.round()).all())


def fit_classes(frame: pd.DataFrame, train: Tensor, standardize: bool) -> Targets:
    """One column -> class numbers, numeric classes in the order of their value."""
    cells = frame.iloc[:, 0]
    own = class_names(cells)
    numeric = own is not cells
    classes = sorted(set(texts(own.iloc[train.numpy()])), key=float if numeric else None)
    if len(set(own)) < 2:
        raise DataError(
            f"one class only ({place_of(cells, 0)}): every row is {shown(own.iloc[0])}. Add rows of another"
        )
    codes = Categorical(str(cells.name), tuple(classes)).codes(own)
    why = "has no training row. Remove it, merge it, or try another task.split_seed"
    refuse_where(codes < 0, cells, "class without training", why)
    if len(classes) < 2:
        raise DataError(f"one class only ({place_of(cells, 0)}): in training. Try another task.split_seed")
    target = torch.from_numpy(codes)
    return Targets(Classification(tuple(classes)), target, {"class": target}, {"class": classes})


def class_names(cells: pd.Series) -> pd.Series:
    """Each cell's class as text, where 1, 1.0 and "01" are one in a column of nothing but numbers."""
    values = numbers(cells)
    if np.isnan(values).any():
        return cells
    return pd.Series([as_text(value) for value in values], cells.index, dtype=object)


def fit_reals(frame: pd.DataFrame, train: Tensor, standardize: bool) -> Targets:
    """Each column by its training rows; ``Regression.scale`` leads back to the targets' units."""
    columns = [_fit_real(frame[name], train.numpy(), standardize) for name in frame.columns]
    raw = np.stack([finite_numbers(frame[name]) for name in frame.columns], axis=1)  # (N, Y)
    target = torch.from_numpy(np.concatenate([c.encode(frame[c.name]) for c in columns], axis=1)).clone()
    scale, center = tuple(1 / c.factor for c in columns), tuple(c.center for c in columns)
    kind = Regression(tuple(c.name for c in columns), scale, center)
    names = [f"{c.name} quartile" if len(columns) > 1 else "target quartile" for c in columns]
    labels = {name: quarters(values, train) for name, values in zip(names, raw.T, strict=True)}
    return Targets(kind, target, labels, {name: list(QUARTERS) for name in names})


def _fit_real(cells: pd.Series, train: np.ndarray, standardize: bool) -> Numeric:
    refuse_commas(cells)
    values = numbers(cells)
    refuse_where(np.isnan(values), cells, "text in a regression target", "is no number. Mend it or pick another target")
    center, spread = _center_and_spread(finite_numbers(cells)[train])
    if not spread:
        why = f"every training row is {values[train[0]]:g}"
        raise DataError(f"constant target ({place_of(cells, 0)}): {why}. Pick another task.target")
    return Numeric(str(cells.name), center, 1 / spread) if standardize else Numeric(str(cells.name))


def _center_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; a spread of exactly 0 where all values are equal."""
    if values.min() == values.max():
        return float(values[0]), 0.0
    size = np.abs(values).max()  # so that no square overflows or vanishes
    return float((values / size).mean() * size), float((values / size).std() * size)


def quarters(values: np.ndarray, train: Tensor) -> Tensor:  # (N,) -> (N,) int64 in 0..3
    bounds = np.quantile(values[train.numpy()], [0.25, 0.5, 0.75])
    return torch.from_numpy(np.searchsorted(bounds, values, side="left")).long()


def split_rows(frame: pd.DataFrame, group: str | None, seed: int, separate_test: bool) -> dict[str, Tensor]:
    """Rows of each part; the rows of one group stay together."""
    shares = {"test": 0.0} if separate_test else {}
    if group is None:
        return three_way(len(frame), seed, **shares)
    number = torch.from_numpy(group_numbers(frame[group]))
    num_groups = int(number.max()) + 1
    if num_groups < MIN_GROUPS:
        why = f"{num_groups} groups cannot be split in three"
        raise DataError(
            f"too few groups ({place_of(frame[group], 0)}): {why}. Use at least {MIN_GROUPS}, or no task.group"
        )
    parts = three_way(num_groups, seed, **shares)
    return {name: torch.isin(number, part).nonzero()[:, 0] for name, part in parts.items()}


def group_numbers(cells: pd.Series) -> np.ndarray:  # (n,) -> (n,) int64
    return np.unique(np.array(texts(cells), dtype=object), return_inverse=True)[1].astype(np.int64)


# Refusals, each one line: what (where): why. what to do


def _refuse_empty_columns(frame: pd.DataFrame) -> None:
    for name in frame.columns:
        if frame[name].isna().all():
            raise DataError(f"empty column ({place_of(frame[name], 0)}): every value is missing. Use {without(name)}")


def _refuse_few(frame: pd.DataFrame, file: str) -> None:
    if len(frame) < MIN_ROWS:
        raise DataError(f"too few rows ({file}): {len(frame)} without missing values. Give at least {MIN_ROWS}")


def _refuse_unseen(columns: Sequence[Numeric | Categorical], frame: pd.DataFrame) -> None:
    for column in columns:
        if isinstance(column, Categorical):
            cells = frame[column.name]
            known = listed([shown(category) for category in column.categories])
            why = f"is not among those of training, {known}. Mend it, or train with {without(column.name)}"
            refuse_where(column.codes(cells) < 0, cells, "unseen category", why)


def _refuse_shared_groups(train: pd.Series, test: pd.Series) -> None:
    shared = np.isin(texts(test), list(set(texts(train))))
    refuse_where(shared, test, "group on both sides", "is a group of the training file too. Keep a group in one file")


def _refuse_two_ways(target: object, features: object, drop: object) -> None:
    for key, value in (("target", target), ("features", features), ("drop", drop)):
        if value is not None:
            raise UsageError(f"task.{key} beside task.formula: the formula says what is read. Leave out task.{key}")


def _asked(target: str | list[str] | None) -> str | list[str]:
    if target is None:
        raise UsageError(
            "no target (task.target): which column to predict is not said. Give task.target=COLUMN or task.formula='COLUMN ~ …'"
        )
    return target


def _some(weight: Tensor, split: str) -> Tensor:
    if not float(weight.sum()) > 0:
        raise DataError(f"no weight (task.weights): every {split} row weighs 0. Try another task.split_seed")
    return weight


def _refuse_two_roles(asked: dict[str, list[str]]) -> None:
    owner: dict[str, str] = {}
    for key, names in asked.items():
        for name in names:
            if name in owner:
                raise UsageError(f"column named twice ({key}): {shown(name)} is in {owner[name]} too. Name it once")
            owner[name] = key
