"""A formula such as ``y ~ a + C(kind) + a:b | z`` -> what the experts read (left of the bar) and the gate (right of it).

The grammar is formulaic's, which is R's (Wilkinson & Rogers, 1973).  All that is estimated (categories, knots,
the centres of ``center`` and ``poly``) comes from training rows and is kept for new ones.  A formula is text in
a configuration, so it may call nothing but the functions named here.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moecli.errors import DataError, EnvironmentFailure, UsageError
from moecli.tasks.frames import file_of, finite_numbers, is_numeric, one_line, refuse_where, texts

FUNCTIONS = frozenset((
    "C", "I", "log", "log2", "log10", "exp", "exp2", "exp10", "center", "scale", "standardize", "poly", "bs", "cc",
    "cr", "cs", "Treatment", "Sum", "Helmert", "Diff", "Poly",
))  # fmt: skip
METHODS = {
    "np": frozenset((
        "log", "log1p", "log2", "log10", "exp", "expm1", "sqrt", "square", "abs", "sign", "sin", "cos", "tan", "tanh",
    )),
    "contr": frozenset(("treatment", "sum", "helmert", "diff", "poly", "sas")),
}  # fmt: skip
MOST_POWER = 20
PLAIN = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant, ast.keyword, ast.List, ast.Tuple,
    ast.Load, ast.Name, ast.Attribute, ast.Call, ast.Compare, ast.cmpop,
)  # fmt: skip
COLORS = re.compile(r"\x1b\[[0-9;]*m|[⧛⧚]")
QUOTED = re.compile(r"`([^`]*)`")


class Design:
    """A formula, first as it is written, and after ``fit`` as an encoding of rows.

    Raises UsageError for a formula that cannot be used, EnvironmentFailure without formulaic.
    """

    def __init__(self, formula: str):
        self.formula = formula
        self.answer, parts = self._parsed()
        self.parts = {"expert": parts[0], "gate": parts[-1]}
        self.has_bar = len(parts) == 2
        self.targets = [name for part in self.answer for name in _columns_of(part)]
        features = [name for part in parts for term in part for name in _columns_of(term)]
        self.variables = list(dict.fromkeys(features))
        self.coded = {name for part in parts for term in part for name in _within_c(term)}

    def _parsed(self) -> tuple[list[Any], list[Any]]:
        """(terms of the left side, a formula for each part of the right side), all checked."""
        formulaic = _formulaic()
        try:
            parsed = formulaic.Formula(self.formula)
            left, right = parsed.lhs, parsed.rhs
        except (formulaic.errors.FormulaicError, SyntaxError, ValueError, RecursionError) as error:
            raise self._refusal(COLORS.sub("", str(error).split("\n")[0])) from error
        except AttributeError:
            raise self._refusal("it has no target, as in y ~ a") from None
        parts = list(right) if isinstance(right, tuple) else [right]
        if len(parts) > 2:
            raise self._refusal("it has more than one bar")
        if isinstance(left, tuple) or not list(left):
            raise self._refusal("it has no target, as in y ~ a")
        for part in parts:
            if not any(_is_constant(term) for term in part):
                raise self._refusal(
                    "it removes the constant, which is not its own: use expert.bias=false or gate.bias=false"
                )
        for factor in (factor for part in [left, *parts] for term in part for factor in term.factors):
            _refuse_calls(factor, self._refusal)
        return list(left), parts

    def _refusal(self, why: str) -> UsageError:
        why = one_line(why).rstrip(".")
        return UsageError(f"bad formula (task.formula={self.formula}): {why}. Write it like 'y ~ a + C(kind) | z'")

    def answers(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The left side's columns: as they are, or of what is computed from them."""
        columns = {}
        for term in self.answer:
            name = ":".join(factor.expr for factor in term.factors)
            if name in frame.columns:
                columns[name] = frame[name]
            else:
                values = self._matrix(term_formula(term), self._raw(frame, _columns_of(term))).to_numpy("float64")
                if values.shape[1] != 1:
                    raise self._refusal(f"{name!r} is no single number")
                columns[name] = pd.Series(values[:, 0], index=frame.index, name=name)
                refuse_where(
                    ~np.isfinite(values[:, 0]), columns[name], "no finite target", f"is {name} here. Mend the row"
                )
        return pd.DataFrame(columns)

    @staticmethod
    def _raw(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
        return pd.DataFrame({name: finite_numbers(frame[name]) for name in names})

    def fit(self, frame: pd.DataFrame) -> None:
        """Take categories, knots and centres from these rows, which are those of training."""
        self.numeric = {name for name in self.variables if is_numeric(frame[name])}
        self.levels = {n: sorted(set(texts(frame[n]))) for n in self.variables if n not in self.numeric}
        cells = self._cells(frame)
        self.specs = {group: self._matrix(part, cells).model_spec for group, part in self.parts.items()}
        self.reads = {group: _features(spec.column_names) for group, spec in self.specs.items()}
        self.names = list(dict.fromkeys([*self.reads["expert"], *self.reads["gate"]]))
        if not self.names:
            raise self._refusal("no feature is left of the bar or right of it")

    def matrix(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows -> columns ``names`` of float64, in the frame's order.  Raises DataError for what training has not seen."""
        cells = self._cells(frame)
        found: dict[str, Any] = {}
        for spec in self.specs.values():
            found |= {name: column for name, column in self._matrix(spec, cells).items()}
        columns = {name: pd.Series(found[name].to_numpy("float64"), frame.index, name=name) for name in self.names}
        for column in columns.values():
            refuse_where(
                ~np.isfinite(column.to_numpy()),
                column,
                "no finite number",
                "comes of the formula here. Mend the row or the formula",
            )
        return pd.DataFrame(columns)

    def _cells(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The variables as formulaic is to see them: whole numbers that are coded as such, other text as text."""
        cells = {}
        for name in self.variables:
            if name not in self.numeric:
                self._refuse_unseen(frame[name], name)
                cells[name] = np.array(texts(frame[name]), dtype=object)
                continue
            values = finite_numbers(frame[name])
            whole = name in self.coded and bool((values == values.round()).all())
            cells[name] = values.astype(np.int64) if whole else values
        return pd.DataFrame(cells, index=pd.RangeIndex(len(frame)))

    def _refuse_unseen(self, cells: pd.Series, name: str) -> None:
        known = set(self.levels[name])
        unseen = np.array([text not in known for text in texts(cells)])
        why = "is in no training row. Mend it, merge it with another, or try another task.split_seed"
        refuse_where(unseen, cells, "unseen category", why)

    def _matrix(self, formula: Any, cells: pd.DataFrame) -> Any:
        """Of a formula or of what was estimated for one; whatever formulaic says becomes one line."""
        errors = _formulaic().errors
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", errors.DataMismatchWarning)
                warnings.filterwarnings("ignore", category=RuntimeWarning)  # log(-1): refused by its row later
                return formula.get_model_matrix(cells, context={}, output="pandas", na_action="ignore")
        except errors.DataMismatchWarning as warning:
            raise DataError(
                f"unseen category ({file_of(cells)}): {one_line(COLORS.sub('', str(warning)).split('They are')[0]).rstrip('. ')}. "
                "Mend it, or try another task.split_seed"
            ) from warning
        except (errors.FormulaicError, ValueError, TypeError, ArithmeticError) as error:
            raise self._refusal(COLORS.sub("", str(error))) from error


def term_formula(term: Any) -> Any:
    """One term by itself, without a constant."""
    return _formulaic().Formula([term])


def _formulaic() -> Any:
    try:
        import formulaic
        import formulaic.errors
    except ImportError as error:
        raise EnvironmentFailure(
            "task.formula: formulas need the package formulaic. pip install 'moecli[formula]'"
        ) from error
    return formulaic


def _features(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != "Intercept"]


def _is_constant(term: Any) -> bool:
    return [factor.expr for factor in term.factors] == ["1"]


def _tree(factor: Any) -> tuple[ast.Expression, dict[str, str]]:
    """A factor's expression with `quoted names` as plain ones, and what those stand for."""
    quoted: dict[str, str] = {}

    def plain(found: re.Match[str]) -> str:
        quoted[f"quoted_{len(quoted)}"] = found[1]
        return f"quoted_{len(quoted) - 1}"

    return ast.parse(QUOTED.sub(plain, factor.expr), mode="eval"), quoted


def _names(factor: Any, within: str | None = None) -> Iterator[str]:
    """Columns that a factor reads, or those inside calls of ``within``."""
    if factor.eval_method.value == "lookup":
        if within is None:
            yield factor.expr
    elif factor.eval_method.value == "python":
        tree, quoted = _tree(factor)
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        roots: list[ast.AST] = [tree] if within is None else [n for n in calls if n.func.id == within]  # type: ignore[attr-defined]
        called = {id(n.func) for n in calls} | {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        for node in (node for root in roots for node in ast.walk(root)):
            if isinstance(node, ast.Name) and id(node) not in called and node.id not in FUNCTIONS:
                yield quoted.get(node.id, node.id)


def _columns_of(term: Any) -> list[str]:
    return [name for factor in term.factors for name in _names(factor)]


def _within_c(term: Any) -> list[str]:
    return [name for factor in term.factors for name in _names(factor, within="C")]


def _refuse_calls(factor: Any, refusal: Any) -> None:
    """A formula may compute with columns, and do nothing else."""
    if factor.eval_method.value != "python":
        return
    try:
        tree, _ = _tree(factor)
    except SyntaxError as error:
        raise refusal(f"{factor.expr!r} is no expression") from error
    for node in ast.walk(tree):
        if not isinstance(node, PLAIN) or (isinstance(node, ast.Call) and not _may_call(node.func)):
            raise refusal(
                f"{factor.expr!r} may use only {', '.join(sorted(FUNCTIONS))} and np.log, np.sqrt and the like"
            )
        if isinstance(node, ast.Attribute) and not _may_call(node):
            raise refusal(f"{factor.expr!r} reaches into {ast.unparse(node)}")
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and not _small(node.right):
            raise refusal(f"{factor.expr!r} has a power that is no number up to {MOST_POWER}")


def _may_call(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr in METHODS.get(node.value.id, ())
    return isinstance(node, ast.Name) and node.id in FUNCTIONS


def _small(node: ast.expr) -> bool:
    node = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) <= MOST_POWER
