"""Any estimator of scikit-learn as an expert of a hard mixture, fitted to rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moecli.errors import ArtifactError, UsageError
from moecli.experts.estimators import Part, Recipe, answer
from moecli.experts.experts import Experts
from moecli.experts.workers import Pool
from moecli.plan import Groups

PROBES = 32  # training rows whose predictions a checkpoint keeps


class Sklearn(Experts):
    """f_e = the estimator fitted to the training rows of expert e (Collobert, Bengio & Bengio, 2002).

    A classifier answers with log-probabilities of all classes, a regressor with means.  No gradient passes.
    An expert without rows is fitted to all of them by ``dummy``: it answers with the shares of the classes,
    or the mean.  A checkpoint holds no estimator but whose row each training row is, and predictions for a
    few; ``restored`` fits anew and compares.  Raises UsageError for an estimator or option that there is not.
    """

    needs = frozenset({"vectors", "parts"})
    gives = frozenset({"part fit"})

    def __init__(
        self,
        dim: int,
        out: int,
        num_experts: int,
        estimator: str = "svm.SVC",
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.dim, self.out, self.num_experts = dim, out, num_experts
        self.recipe, self.columns = Recipe(estimator, options or {}), slice(None)
        self.recipe.make(0)
        self.estimators: list[Any] = []
        self.register_buffer("part", torch.zeros(0, dtype=torch.int64))  # (N,) the expert of each training row
        self.register_buffer("probe", torch.zeros(0, dim))  # (P, D) training rows
        self.register_buffer("answers", torch.zeros(0, num_experts, out, dtype=torch.float64))  # (P, E, Y)

    def bind(self, x: Tensor, y: Tensor, seed: int) -> None:
        """Know the training rows x (N, D), y (N,) classes or (N, Y): loading a checkpoint fits to them.

        Raises UsageError for a classifier of real targets, and a regressor of classes.
        """
        if self.recipe.classifies == y.is_floating_point():
            is_a, targets = ("classifier", "real") if self.recipe.classifies else ("regressor", "classes")
            other = "svm.SVR" if self.recipe.classifies else "svm.SVC"
            raise UsageError(
                f"expert.estimator={self.recipe.name} (task): it is a {is_a}, and the targets are {targets}. "
                f"Use for example expert.estimator={other}"
            )
        self.x, self.seed = x, seed
        self.y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        self.part = torch.full((len(x),), -1)
        self.probe = x[:: -(-len(x) // PROBES)].clone()
        self.answers = torch.zeros(len(self.probe), self.num_experts, self.out, dtype=torch.float64)

    def fit_parts(self, part: Tensor, pool: Pool, stopped: Callable[[], object] = bool) -> list[str]:
        """Fit each expert to its rows, part (N,); returns what scikit-learn warned of.

        Raises UsageError where it refuses some rows, Stopped where ``stopped()`` says so.
        """
        fitted = pool.fit([self._part(part, expert) for expert in range(self.num_experts)], stopped)
        self.estimators = [estimator for estimator, _ in fitted]
        self.part.copy_(part)
        self.answers.copy_(self._answers())
        return [text for _, warned in fitted for text in warned]

    def _part(self, part: Tensor, expert: int) -> Part:
        seed = int(np.random.SeedSequence([self.seed, expert]).generate_state(1)[0])
        rows = (part == expert).nonzero()[:, 0].cpu()
        if len(rows):
            return Part(self.recipe, seed, expert, self._features(self.x[rows]), self.y[rows].cpu().numpy())
        dummy = Recipe("dummy.DummyClassifier" if self.recipe.classifies else "dummy.DummyRegressor", {})
        return Part(dummy, seed, expert, self._features(self.x), self.y.cpu().numpy())

    def restored(self, source: str) -> None:
        """After a checkpoint was read: fit to the rows that it names.  Raises ArtifactError where the fit differs."""
        if not len(self.part) or bool((self.part < 0).any()):
            return
        kept = self.answers.clone()
        with Pool(1) as pool:
            self.fit_parts(self.part.clone(), pool)
        if not torch.equal(kept, self.answers):
            raise ArtifactError(
                f"{source}: experts fitted anew to its rows do not predict what they did. Use the scikit-learn, "
                "the machine and the data that it was trained with"
            )

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:  # (R, D) -> (R, Y), zero before any fit
        if not self.estimators:
            return rows.new_zeros(len(rows), self.out)
        parts = enumerate(groups.split(rows.detach()))
        found = np.concatenate([self._predict(e, part) for e, part in parts if len(part)] or [np.zeros((0, self.out))])
        return torch.from_numpy(found).to(rows)

    def _answers(self) -> Tensor:
        return torch.from_numpy(np.stack([self._predict(e, self.probe) for e in range(self.num_experts)], 1))

    def _predict(self, expert: int, x: Tensor) -> np.ndarray:  # (n, D) -> (n, Y)
        return answer(self.estimators[expert], self._features(x), self.out, self.recipe.classifies)

    def _features(self, x: Tensor) -> np.ndarray:
        return x[:, self.columns].double().cpu().numpy()

    def reading(self, columns: Sequence[int]) -> Experts:
        """Not wrapped: the experts must see whole training rows."""
        self.columns = list(columns)  # type: ignore[assignment]
        return self

    def flops(self) -> int:
        return 0  # none that torch could count

    def twin(self, flops: float) -> Experts:
        """One estimator for all rows, whatever it costs."""
        one = Sklearn(self.dim, self.out, 1, self.recipe.name, dict(self.recipe.options))
        one.columns = self.columns
        return one
