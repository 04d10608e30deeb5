"""Why an input of a finished run went where it went, asked of the live model, layer by layer and token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moecli.analysis.decision import Decision, Explanation, Part
from moecli.diagnosis.question import Question
from moecli.errors import UsageError
from moecli.mixture import MixtureDensity, Output, together
from moecli.models.model import Layer
from moecli.models.size import watched
from moecli.plan import Slots
from moecli.routing import Routing
from moecli.run import Loaded

MOST_CHANGES = 3  # that are told
TRIED = 12  # single features, those that should need the least
BEYOND = 1.02  # of the way to the border, so as to be across
MOST_FEATURES = 64  # of which each has a name worth telling
MOST_SHOWN = 10  # symbols of a change
AT_ONCE = 32  # rows of a text


def explain(loaded: Loaded, asked: Question, at: int | None = None) -> Explanation:
    """Every layer's decision on the question's row; of a text on all its tokens, or on the one ``at`` a position.

    Changes of the input are tried where one token is asked about.  Raises UsageError for a position that is not there.
    """
    loaded.model.eval()
    if _separate(loaded):
        asked = asked.alone(asked.input[None])
    text = "ids" in loaded.task.gives
    symbols = [loaded.task.kind.symbols[i] for i in asked.input.tolist()] if text else None  # type: ignore[attr-defined]
    places = _places(symbols, at)
    with torch.no_grad(), watched(loaded.model) as tokens:
        output = _forward(loaded, asked)
    single = len(places) == 1
    decisions = []
    for name, routing in output.routings.items():
        layer = loaded.model.mixtures[name]
        for place in places:
            if (token := _served(routing, asked.row, place)) is None:
                continue  # another layer's: of the source or of the answer, or no token but padding
            parts = _parts(layer, routing, token, tokens[name].x)
            found = Decision(name, place, symbols[place] if symbols else None, parts)
            decisions.append(replace(found, changes=tuple(_changes(loaded, asked, found))) if single else found)
    prediction = {} if text else _prediction(loaded, output, asked)
    return Explanation(str(loaded.run.path), asked.name, prediction, tuple(decisions), asked.notes)


def _places(symbols: list[str] | None, at: int | None) -> list[int]:
    if symbols is None:
        if at is not None:
            raise UsageError("--at: only a text has positions, and this run's inputs are single rows. Leave it out")
        return [0]
    if at is None:
        return list(range(len(symbols)))
    if not 0 <= at < len(symbols):
        raise UsageError(f"--at {at}: the text has positions 0 to {len(symbols) - 1}. Give one of them")
    return [at]


def _forward(loaded: Loaded, asked: Question) -> Output:
    return loaded.model(asked.x.to(loaded.device), _known(loaded, asked))


def _known(loaded: Loaded, asked: Question) -> dict[str, Tensor]:
    return {name: fact.to(loaded.device) for name, fact in asked.known.items()}


def _served(routing: Routing, row: int, place: int) -> int | None:
    """Which token of the layer stands there, if one does."""
    found = ((routing.example == row) & (routing.position == place)).nonzero()
    return int(found[0, 0]) if len(found) else None


def _token(routing: Routing, row: int, place: int) -> int:
    token = _served(routing, row, place)
    assert token is not None
    return token


def _prediction(loaded: Loaded, output: Output, asked: Question) -> dict[str, Any]:
    answer = loaded.task.kind.answer(output.prediction)
    found = {name: values[asked.row] for name, values in answer.items()}
    return found if asked.target is None else {**found, "target": asked.target}


# -- who did what -------------------------------------------------------------------------------------


@torch.no_grad()
def _parts(layer: Layer, routing: Routing, token: int, x: Tensor) -> tuple[Part, ...]:
    asked, weight = routing.asked.demand[token] > 0, routing.plan.weights[token]  # (E,), (E,)
    share = _contributions(layer, routing, weight, x[token : token + 1])
    nothing: list[Any] = [None] * len(weight)
    logits = nothing if routing.logits is None else routing.logits[token].tolist()
    beliefs = zip(logits, routing.probs[token].tolist(), share or nothing, strict=True)
    parts = [
        Part(e, logit, prob, bool(asked[e]), bool(weight[e] > 0), float(weight[e]), own)
        for e, (logit, prob, own) in enumerate(beliefs)
    ]
    return tuple(sorted(parts, key=lambda part: -(part.prob if part.logit is None else part.logit)))


def _contributions(layer: Layer, routing: Routing, weight: Tensor, x: Tensor) -> list[float] | None:
    """(w_e f_e · y) / |y|² of the routed answer y = sum_e w_e f_e, so that they add up to one: (E,), x (1, *item).

    None for slots, which answer no single token, and where the answer is zero.
    """
    if isinstance(routing.plan, Slots):
        return None
    plan = together(layer.experts, x)
    rows = layer.experts.rows(plan, x)  # (E, *out): one token, every expert
    if isinstance(layer, MixtureDensity):
        rows = layer.family.mean(rows, plan.groups)
    each = weight[:, None].to(rows) * rows.flatten(1)
    y = each.sum(0)
    size = float(y.square().sum())
    return ((each @ y) / size).tolist() if size > 0 else None


# -- what would change it -----------------------------------------------------------------------------


def _changes(loaded: Loaded, asked: Question, found: Decision) -> Iterator[str]:
    """Sentences, each of a change that was tried and did send the token elsewhere, the smallest first."""
    if asked.x.is_floating_point():
        yield from _features(loaded, asked, found)
    else:
        yield from _symbols(loaded, asked, found)


def _separate(loaded: Loaded) -> bool:
    """Whether other rows of a batch have no say: no token has one, or each row of a text is a group of its own."""
    routers = [layer.router for layer in loaded.model.mixtures.values()]
    by_row = "sequence" in loaded.task.gives and all(getattr(router, "group", "auto") == "auto" for router in routers)
    return by_row or all(router.claims(training=False).independent for router in routers)


@torch.no_grad()
def _asked_of(loaded: Loaded, asked: Question, found: Decision, rows: Tensor) -> list[list[int]]:
    """Who would be asked about the token, were its row each of ``rows`` (M, ...)."""
    if _separate(loaded):
        routing = _forward(loaded, asked.alone(rows)).routings[found.layer]
        return [_chosen(routing, _token(routing, row, found.position)) for row in range(len(rows))]
    routings = [_forward(loaded, asked.changed(row)).routings[found.layer] for row in rows]
    return [_chosen(routing, _token(routing, asked.row, found.position)) for routing in routings]


def _chosen(routing: Routing, token: int) -> list[int]:
    """Who is asked about a token; of plans that ask everyone the heaviest."""
    demand = routing.asked.demand[token]
    order = routing.asked.weights[token].argsort(descending=True)
    chosen = [int(e) for e in order if demand[e] > 0]
    return sorted(chosen) if len(chosen) < len(demand) else chosen[:1]


def _names(experts: list[int]) -> str:
    return " and ".join(f"e{e}" for e in experts)


def _features(loaded: Loaded, asked: Question, found: Decision) -> Iterator[str]:
    """One feature or category at a time, the shortest steps first; then all features together."""
    if found.rivals is None or found.margin is None:
        return
    row, slope = asked.input, _slope(loaded, asked, found)
    straight = -BEYOND * found.margin * slope / slope.square().sum().clamp_min(1e-30)
    tries = [*_steps(loaded, slope, row, found.margin), *_categories(loaded, row)]
    before, *after = _asked_of(loaded, asked, found, torch.stack([row, *(moved for _, moved in tries), row + straight]))
    went = [f"{what}: {_names(experts)}" for (what, _), experts in zip(tries, after, strict=False) if experts != before]
    yield from went[:MOST_CHANGES]
    if after[-1] != before:
        size, whole = float(straight.norm()), float(row.norm())
        yield f"all features together by {size:.3g} (the input's own length is {whole:.3g}): {_names(after[-1])}"


def _slope(loaded: Loaded, asked: Question, found: Decision) -> Tensor:
    """Gradient of the margin by the row's features, of the row's shape."""
    held, rival = (part.expert for part in found.rivals or ())
    x = asked.x.to(loaded.device).clone().requires_grad_()
    routing = loaded.model(x, _known(loaded, asked)).routings[found.layer]
    scores: Any = routing.logits
    logits = scores[_token(routing, asked.row, found.position)]  # (E,)
    margin = logits[held] - logits[rival]
    if not margin.requires_grad:
        return torch.zeros_like(asked.input)
    (slope,) = torch.autograd.grad(margin, x)
    return slope[asked.row].cpu()


def _steps(loaded: Loaded, slope: Tensor, row: Tensor, margin: float) -> list[tuple[str, Tensor]]:
    """(what, row) with one feature across the border by its gradient, as far as training has seen it.

    Of features that have a name and take more than two values: half of a category means nothing.
    """
    names = loaded.task.feature_names
    if row.ndim > 1 or len(names) != len(row) or len(names) > MOST_FEATURES:
        return []
    train = _training_rows(loaded)
    low, high, spread = train.amin(0), train.amax(0), train.std(0).clamp_min(1e-12)
    moved = row - BEYOND * margin / slope  # infinite where a feature has no say
    order = ((moved - row).abs() / spread).argsort().tolist()
    free = [j for j in order if low[j] <= moved[j] <= high[j] and len(train[:, j].unique()) > 2]
    place = torch.arange(len(row))
    return [(_shift(loaded, j, float(row[j]), float(moved[j])), row.where(place != j, moved[j])) for j in free[:TRIED]]


def _categories(loaded: Loaded, row: Tensor) -> list[tuple[str, Tensor]]:
    """(what, row) with another category of a column, whose features are named ``column = category``."""
    columns: dict[str, list[int]] = {}
    for j, name in enumerate(loaded.task.feature_names if row.ndim == 1 else []):
        if " = " in name:
            columns.setdefault(name.partition(" = ")[0], []).append(j)
    found = []
    for group in columns.values():
        values = _training_rows(loaded)[:, group].unique(dim=0)  # (M, categories), scaled as the task does
        for value in values[(values != row[group]).any(-1)]:
            what = loaded.task.feature_names[group[int(value.argmax())]]
            found.append((what, row.index_copy(0, torch.tensor(group), value)))
    return found


def _training_rows(loaded: Loaded) -> Tensor:  # (N, D)
    return loaded.task.batch("train", torch.arange(loaded.task.sizes["train"])).x


def _shift(loaded: Loaded, feature: int, before: float, after: float) -> str:
    """In the user's units."""
    center, factor = (units[feature] for units in loaded.task.feature_units())
    old, new = ((value / factor + center) if factor else value for value in (before, after))
    return f"{loaded.task.feature_names[feature]} {old:.4g} → {new:.4g}"


def _symbols(loaded: Loaded, asked: Question, found: Decision) -> Iterator[str]:
    """Every other symbol in the token's place: how many go elsewhere, and where the most go."""
    if not _separate(loaded):  # a pass over the whole batch for each symbol
        return
    row, symbols = asked.input, loaded.task.kind.symbols  # type: ignore[attr-defined]
    others = [i for i in range(len(symbols)) if i != int(row[found.position])]
    rows = row.repeat(len(others) + 1, 1)
    rows[1:, found.position] = torch.tensor(others)
    before, *after = (experts for part in rows.split(AT_ONCE) for experts in _asked_of(loaded, asked, found, part))
    went: dict[str, list[str]] = {}
    for symbol, experts in zip(others, after, strict=True):
        went.setdefault(_names(experts), []).append(symbols[symbol])
    same = went.pop(_names(before), [])
    yield f"{len(others) - len(same)} of the {len(others)} other symbols in its place would go elsewhere"
    for where, there in sorted(went.items(), key=lambda item: -len(item[1]))[:MOST_CHANGES]:
        shown = " ".join(map(repr, there[:MOST_SHOWN])) + (" …" if len(there) > MOST_SHOWN else "")
        yield f"{shown}: {where}"
