"""scikit-learn's estimators by name: made, fitted to rows, and read as what an expert says.  Nothing here needs torch.

The names are a fixed list, so that a configuration reaches these classes and no others.
"""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moecli.errors import UsageError

LEAST = 1e-6  # probability: no expert is surer than that of a class being absent, or of one that it never saw

CLASSIFIERS = (
    "discriminant_analysis.LinearDiscriminantAnalysis", "discriminant_analysis.QuadraticDiscriminantAnalysis",
    "dummy.DummyClassifier", "ensemble.AdaBoostClassifier", "ensemble.BaggingClassifier",
    "ensemble.ExtraTreesClassifier", "ensemble.GradientBoostingClassifier", "ensemble.HistGradientBoostingClassifier",
    "ensemble.RandomForestClassifier", "gaussian_process.GaussianProcessClassifier",
    "linear_model.LogisticRegression", "linear_model.Perceptron", "linear_model.RidgeClassifier",
    "linear_model.SGDClassifier", "naive_bayes.BernoulliNB", "naive_bayes.GaussianNB",
    "neighbors.KNeighborsClassifier", "neural_network.MLPClassifier", "svm.LinearSVC", "svm.NuSVC", "svm.SVC",
    "tree.DecisionTreeClassifier", "tree.ExtraTreeClassifier",
)  # fmt: skip
REGRESSORS = (
    "dummy.DummyRegressor", "ensemble.AdaBoostRegressor", "ensemble.BaggingRegressor", "ensemble.ExtraTreesRegressor",
    "ensemble.GradientBoostingRegressor", "ensemble.HistGradientBoostingRegressor", "ensemble.RandomForestRegressor",
    "gaussian_process.GaussianProcessRegressor", "kernel_ridge.KernelRidge", "linear_model.ARDRegression",
    "linear_model.BayesianRidge", "linear_model.ElasticNet", "linear_model.GammaRegressor",
    "linear_model.HuberRegressor", "linear_model.Lasso", "linear_model.LinearRegression",
    "linear_model.PoissonRegressor", "linear_model.QuantileRegressor", "linear_model.Ridge",
    "linear_model.SGDRegressor", "linear_model.TheilSenRegressor", "linear_model.TweedieRegressor",
    "neighbors.KNeighborsRegressor", "neural_network.MLPRegressor", "svm.LinearSVR", "svm.NuSVR", "svm.SVR",
    "tree.DecisionTreeRegressor", "tree.ExtraTreeRegressor",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Which estimator, with which options.  Raises UsageError for a name or an option that there is not."""

    name: str
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        names = CLASSIFIERS + REGRESSORS
        if self.name not in names:
            close = difflib.get_close_matches(self.name, names, 1, cutoff=0.4)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UsageError(
                f"expert.estimator={self.name}: no estimator that can be an expert.{hint} Choose a classifier or "
                "regressor of scikit-learn by its module and name: svm.SVC, tree.DecisionTreeRegressor"
            )

    @property
    def classifies(self) -> bool:
        return self.name in CLASSIFIERS

    def make(self, seed: int) -> Any:
        """A fresh estimator; its ``random_state`` is ``seed`` unless the options set one."""
        module, _, name = self.name.partition(".")
        cls = getattr(importlib.import_module(f"sklearn.{module}"), name)
        known = cls().get_params(deep=False)
        for option in self.options:
            if option not in known:
                close = difflib.get_close_matches(option, known, 1)
                hint = f" Did you mean {close[0]}?" if close else ""
                raise UsageError(
                    f"expert.options.{option} (expert.estimator={self.name}): no such option.{hint} "
                    f"It takes: {', '.join(sorted(known))}"
                )
        return cls(**({"random_state": seed} if "random_state" in known else {}), **dict(self.options))


@dataclass(frozen=True)
class Part:
    """What one expert is fitted to: x (n, D) float64, y (n,) classes or (n, Y) real values."""

    recipe: Recipe
    seed: int
    expert: int
    x: np.ndarray
    y: np.ndarray

    def fit(self) -> tuple[Any, list[str]]:
        """(the fitted estimator, what scikit-learn warned of), the same bits on any number of threads.

        Rows of a single class are answered with that class, because many classifiers refuse them.
        Raises UsageError where scikit-learn refuses the options or the rows.
        """
        from threadpoolctl import threadpool_limits

        with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):
            warnings.simplefilter("always")
            try:
                fitted = self._estimator().fit(self.x, self.y)
            except (ValueError, TypeError, ArithmeticError, np.linalg.LinAlgError) as error:
                said = " ".join(str(error).split()).rstrip(".")
                raise UsageError(
                    f"expert.estimator={self.recipe.name} (e{self.expert}, {len(self.y)} rows): {said}. "
                    "Change expert.options, or use fewer experts"
                ) from error
        return fitted, [f"e{self.expert}: {' '.join(str(w.message).split())}" for w in caught]

    def _estimator(self) -> Any:
        if self.recipe.classifies and len(np.unique(self.y)) == 1:
            from sklearn.dummy import DummyClassifier

            return DummyClassifier()
        estimator = self.recipe.make(self.seed)
        if self.recipe.classifies or self.y.ndim == 1:
            return estimator
        from sklearn.multioutput import MultiOutputRegressor

        return MultiOutputRegressor(estimator)  # many regressors take one target only


def answer(estimator: Any, x: np.ndarray, out: int, classifies: bool) -> np.ndarray:
    """What a fitted estimator says of x (n, D): means, or log-probabilities of the classes, (n, out).

    Probabilities where it gives any, else the softmax of its decision function (for two classes the sigmoid);
    none is below ``LEAST``.  Raises UsageError for a decision function that has not a column a class.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        if not classifies:
            return np.asarray(estimator.predict(x), np.float64).reshape(len(x), out)
        log_probs = np.full((len(x), out), np.log(LEAST))
        log_probs[:, estimator.classes_] = _log_probs(estimator, x)
        return np.maximum(log_probs, np.log(LEAST))


def _log_probs(estimator: Any, x: np.ndarray) -> np.ndarray:  # (n, D) -> (n, classes that it saw)
    if hasattr(estimator, "predict_proba"):
        with np.errstate(divide="ignore"):
            return np.log(estimator.predict_proba(x))
    score = np.asarray(estimator.decision_function(x), np.float64)
    if score.ndim == 1:
        score = np.stack([np.zeros_like(score), score], -1)
    if score.shape[1] != len(estimator.classes_):
        raise UsageError(
            "expert.options.decision_function_shape=ovo: a score for each pair of classes is none for each class. "
            "Leave it out"
        )
    top = score.max(-1, keepdims=True)
    return score - top - np.log(np.exp(score - top).sum(-1, keepdims=True))
