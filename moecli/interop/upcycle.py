"""A trained dense model becomes the start of a mixture: dense layers copied into all experts (Komatsuzaki et al., 2023).

The new model is written as a run of no steps, which ``moe train --config RUN/config.yaml init=RUN`` goes on from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from moecli import config
from moecli.config import Composed, Config, option_node
from moecli.errors import UsageError
from moecli.experts.experts import Experts
from moecli.experts.feed_forward import FeedForward
from moecli.interop.dense import as_expert, as_layer, dense_layers, kind_of
from moecli.mixture import Alone, Mixture
from moecli.models.model import Model
from moecli.record import checkpoint
from moecli.record.checkpoint import Saved
from moecli.record.folder import Run, to_json, write_whole
from moecli.routing import Router
from moecli.run import Built, Loaded, Place, assemble, load, shape, train_built
from moecli.tasks.task import generator
from moecli.training.evaluate import evaluate
from moecli.training.gradient import Best, Job, Judge, prepare

KEPT = 1e-5  # of the largest output: below it two models are one function, up to the rounding of float32
COPIED = ("experts.", "family.")  # what a layer has once for each expert


@dataclass(frozen=True)
class Upcycled:
    """A mixture's first run, and how well it answers as the dense model did."""

    run: Run
    difference: float  # max |y' - y| / max |y| over a batch of the validation split
    before: dict[str, float]  # metrics of the dense model on the validation split
    after: dict[str, float]
    reasons: list[str]  # why the function is not kept, empty where it is


def upcycle(run: Path, words: Sequence[str], place: Place, noise: float = 0.0) -> Upcycled:
    """Build the mixture that ``words`` make of a dense run's configuration, and write it beside other runs.

    ``noise`` is added to each copy, in units of the standard deviation of each tensor.
    Raises UsageError for a run that is no dense one, and for experts that a dense layer cannot be copied into.
    """
    dense = load(run)
    built = mixture_of(dense, words, noise)
    found = difference(dense, built)
    before = evaluate(dense.model, dense.task, "valid", dense.device).metrics
    path = train_built(built, place, _as_it_is).path
    story = {"from": str(run), "noise": noise, "difference": found}
    write_whole(path / "run.json", to_json({**Run(path).info, "upcycled": story}))
    made = Run(path)
    after = {name: made.summary["metrics"][f"valid/{name}"] for name in before}
    return Upcycled(made, found, before, after, [] if found <= KEPT else reasons(built.model, noise))


def mixture_of(dense: Loaded, words: Sequence[str], noise: float = 0.0) -> Built:
    """The mixture of a dense run, its experts copies, its routers as they were drawn.  Raises as ``upcycle`` does."""
    for word in words:
        if word.split("=")[0].split(".")[0] in ("task", "init", "experiment"):
            raise UsageError(
                f"{word} (command line): upcycling changes the model alone. Give it to moe train afterwards"
            )
    _check_dense(dense)
    dense = _in_place(dense, words)
    built = assemble(Composed(_settings(dense, words), frozenset()), dense.task)
    checkpoint.restore(built.model, _copied(dense, built, noise), str(dense.run.path))
    return built


def _check_dense(dense: Loaded) -> None:
    for name, layer in dense.model.mixtures.items():
        if layer.experts.num_experts > 1:
            raise UsageError(
                f"{dense.run.path}: its layer {name} has {layer.experts.num_experts} experts, and upcycling begins from "
                "a dense model. Train one with model.twin=true"
            )


def _as_it_is(job: Job, saved: Saved | None) -> Best:
    """In place of a training: the evaluation and the checkpoint of step 0."""
    prepare(job, 128)
    judge = Judge(job)
    job.record.begin(0)
    judge.evaluate(0)
    return judge.best


# -- places ------------------------------------------------------------------------------------


def _in_place(dense: Loaded, words: Sequence[str]) -> Loaded:
    """The same function with one expert wherever the mixture has several, and a dense layer in every other block.

    Raises UsageError for a layer that would be neither.
    """
    if not any(word.lstrip("+").startswith("model.every=") for word in words):
        return dense
    skeleton, model = _skeleton(dense, words), copy.deepcopy(dense.model)
    for name, layer in dense_layers(model).items():
        if name in skeleton.mixtures:
            model.replace(name, as_expert(layer))
    left = {name: layer for name, layer in model.mixtures.items() if name not in skeleton.mixtures}
    for name, layer in left.items():
        kind = kind_of(layer)
        if kind is None or name not in dense_layers(skeleton) or _not_one(layer.router):
            raise UsageError(
                f"{dense.run.path}: its layer {name} is none that a block without a mixture has (gelu with biases, "
                f"swiglu without). Let it become a mixture: name it in model.every too"
            )
        model.replace(name, as_layer(layer.experts, kind[0]))  # type: ignore[arg-type]
    return replace(dense, model=model, config=_resized(dense, model) if left else dense.config)


def _skeleton(dense: Loaded, words: Sequence[str]) -> Model:
    """The mixture without its weights, to see where its layers are; whatever its experts will be made of."""
    bare = _bare(dense)
    settings = {**bare, "model": {**bare["model"], "layers": {}}, "expert": option_node("expert", "feed_forward")}
    amended = config.amend({**settings, **_advice(settings, words)}, words)
    return shape(Composed(amended, frozenset()), dense.task).model


def _resized(dense: Loaded, model: Model) -> Config:
    """The configuration with the kind and the hidden units that all dense layers of the model have."""
    kinds = {kind_of(layer) for layer in dense_layers(model).values()}
    feed, hidden = cast(tuple[str, int], next(iter(kinds)))
    if len(kinds) > 1 or (feed != "gelu" and "feed" not in dense.config["model"]):
        raise UsageError(
            f"{dense.run.path}: its dense layers are not alike, and blocks without a mixture are. "
            "Let those that differ become mixtures: name them in model.every too"
        )
    sizes = {"feed": feed, "hidden": hidden}
    known = {key: value for key, value in sizes.items() if key in dense.config["model"]}
    return {**dense.config, "model": {**dense.config["model"], **known}}


# -- the configuration ------------------------------------------------------------------------


def _settings(dense: Loaded, words: Sequence[str]) -> Config:
    """The dense run's configuration with a mixture of its dense layers, and the words over it."""
    nodes = {name: _expert_node(dense, name) for name in dense.model.mixtures}
    common, bare = next(iter(nodes.values())), _bare(dense)
    stored = {name: layer for name, layer in bare["model"]["layers"].items() if name in nodes}
    wanted = [word for word in words if word.startswith("expert.")]
    own = {
        name: {**stored.get(name, {}), "expert": config.amend({**bare, "expert": node}, wanted)["expert"]}
        for name, node in nodes.items()
        if node != common or "expert" in stored.get(name, {})
    }
    settings = {
        **bare,
        "model": {**bare["model"], "layers": {**stored, **own}},
        "expert": common,
        "choices": {**bare["choices"], "expert": _choice(dense)},
    }
    return config.amend({**settings, **_advice(settings, words)}, words)


def _bare(dense: Loaded) -> Config:
    """The run's configuration with what a twin leaves out: a gate, and mixtures."""
    model = {**dense.config["model"], "twin": False, "layers": dense.config["model"].get("layers") or {}}
    gate = dense.config["gate"] or option_node("gate", "linear")
    choices = {**dense.config["choices"], "gate": dense.config["choices"]["gate"] or "linear"}
    return {**dense.config, "init": None, "model": model, "gate": gate, "choices": choices}


def _choice(dense: Loaded) -> str:
    first = next(iter(dense.model.mixtures.values()))
    return "feed_forward" if isinstance(first.router, Alone) else dense.config["choices"]["expert"]


def _expert_node(dense: Loaded, name: str) -> Config:
    """What experts are built of whose one copy is the dense layer ``name``."""
    layer = dense.model.mixtures[name]
    experts: Experts = layer.experts
    if not isinstance(layer.router, Alone):
        return {**dense.config, **(dense.config["model"]["layers"].get(name, {}))}["expert"]
    if not isinstance(experts, FeedForward):
        raise UsageError(f"{dense.run.path}: its layer {name} is no feed-forward layer, and only those are copied")
    return option_node("expert", "feed_forward") | {
        "hidden": experts.up.weight.shape[-1],
        "activation": experts.activation,
        "bias": experts.bias,
        "dropout": experts.dropout,
    }


def _advice(settings: Config, words: Sequence[str]) -> Config:
    """The auxiliary terms that a router named by the words recommends, which the words may change again."""
    named = [word for word in words if word.startswith("router=")]
    if not named:
        return {}
    advised = config.compose(named).config
    choices = {**settings["choices"], "auxiliary": advised["choices"]["auxiliary"]}
    return {"auxiliary": advised["auxiliary"], "choices": choices}


# -- the weights ------------------------------------------------------------------------------


def _copied(dense: Loaded, built: Built, noise: float) -> dict[str, Tensor]:
    """The mixture's weights: experts are copies, routers stay as they were drawn, all else is the dense model's.

    Raises UsageError for a tensor that the dense model does not have, or has in another shape.
    """
    have, draw = dense.model.state_dict(), generator(built.config["seed"])
    routers, experts = (_names(built.model, parts) for parts in (("router.",), COPIED))
    weights: dict[str, Tensor] = {}
    for name, own in built.model.state_dict().items():
        if name in routers:
            weights[name] = own
            continue
        one = have.get(name)
        if one is not None and name in experts:
            one = _spread(one, len(own), noise, draw)
        if one is None or one.shape != own.shape:
            raise UsageError(_misfit(name, own, one, dense))
        weights[name] = one
    return weights


def _names(model: Model, parts: Sequence[str]) -> set[str]:
    """Names of the tensors in these parts of the mixture layers."""
    paths = [path for path, module in model.named_modules() if module in set(model.mixtures.values())]
    starts = tuple(f"{path}.{part}" for path in paths for part in parts)
    return {name for name in model.state_dict() if name.startswith(starts)}


def _spread(one: Tensor, num_experts: int, noise: float, draw: torch.Generator) -> Tensor:  # (1, ...) -> (E, ...)
    several = one.expand(num_experts, *one.shape[1:]).clone()
    if noise and one.is_floating_point():
        several += noise * one.std(unbiased=False) * torch.randn(several.shape, generator=draw).to(several)
    return several


def _misfit(name: str, own: Tensor, one: Tensor | None, dense: Loaded) -> str:
    has = "none" if one is None else f"one of {tuple(one.shape)}"
    return (
        f"{name} ({dense.run.path}): the mixture has a tensor of {tuple(own.shape)} there, and the dense model {has}. "
        "Leave the sizes of model and expert as they were, and model.shared out"
    )


# -- how well the function is kept ------------------------------------------------------------


@torch.no_grad()
def difference(dense: Loaded, built: Built) -> float:
    """Max |y' - y| / max |y| of both models' outputs on the first batch of the validation split."""
    batch = next(dense.task.batches("valid", 256)).to(dense.device)
    y, new = (_answer(model, batch.x, batch.known) for model in (dense.model, built.model))
    return ((new - y).abs().max() / y.abs().max()).item()


def _answer(model: nn.Module, x: Tensor, known: Mapping[str, Tensor]) -> Tensor:
    prediction: Any = model.eval()(x, known).prediction
    return prediction.mean if isinstance(prediction, Mixture) else prediction


def reasons(model: Model, noise: float) -> list[str]:
    """Why copies answer otherwise than one of them: their weights do not sum to one, or there is noise."""
    found = [f"noise of {noise:g} standard deviations was added to the copies"] if noise else []
    found += [why for layer in model.mixtures.values() for why in _not_one(layer.router)]
    return list(dict.fromkeys(found))


def _not_one(router: Router) -> list[str]:
    """What keeps a router's weights from summing to one in evaluation: itself, or a filter."""
    if not router.own.density:
        return [router.reasons["density"]]
    return [f.reasons["density"] for f in router.filters if not f.narrow(router.own, router, training=False).density]
