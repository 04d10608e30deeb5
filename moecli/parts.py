"""Builds the layers of a model, each from its own copy of the configuration, so that none share weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from moecli.config import Config, build, option_node
from moecli.errors import UsageError
from moecli.heads.head import Head
from moecli.mixture import SHARED_MIXES, MixtureDensity, MixtureOfExperts


@dataclass(frozen=True)
class Parts:
    """What each layer is made of; ``used`` collects the groups that some layer took a part from."""

    config: Config
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    feature_names: Sequence[str] = ()  # of the task's examples, for parts that read some of them

    def named(self, names: Sequence[str], overrides: Mapping[str, Mapping[str, Any]]) -> Parts:
        """The same parts with other ones for some layers.  Raises UsageError for a layer that is none."""
        for name in overrides:
            if name not in names:
                raise UsageError(f"model.layers.{name}: no such mixture layer. This model has: {', '.join(names)}")
        return replace(self, overrides=overrides)

    def mixtures(
        self, names: Sequence[str], overrides: Mapping[str, Mapping[str, Any]], **sizes: Any
    ) -> dict[str, MixtureOfExperts]:
        """All mixture layers of a model, in forward order; ``sizes`` are those of ``mixture``."""
        own = self.named(names, overrides)
        return {name: own.mixture(name, index, len(names), **sizes) for index, name in enumerate(names)}

    def mixture(
        self,
        name: str,
        index: int,
        num_layers: int,
        dim: int,
        out: int,
        vocab_size: int = 0,
        shared: int = 0,
        shared_mix: str = "add",
        shared_hidden: int | None = None,
    ) -> MixtureOfExperts:
        """Layer ``name``, the ``index``-th mixture of ``num_layers``, with ``shared`` experts for every token.

        Raises UsageError for ``shared_hidden`` units of experts that have none.
        """
        nodes = self._nodes(name)
        context = {"dim": dim, "out": out, "vocab_size": vocab_size, "layer": index, "num_layers": num_layers}
        router, experts = self._pair(nodes, context)
        if not shared:
            return MixtureOfExperts(router, experts)
        own = nodes if shared_hidden is None else {**nodes, "expert": _with_hidden(nodes["expert"], shared_hidden)}
        together = self._experts(own, {**context, "num_experts": shared})
        return MixtureOfExperts(router, experts, SHARED_MIXES[shared_mix](together, dim))

    def head(self, dim: int, vocab_size: int) -> Head:
        """What a language model says of the next word, from a state of ``dim`` features."""
        self.used.add("head")
        node = self.config.get("head") or option_node("head", "softmax")  # as runs had it before there was a choice
        return build(node, dim=dim, out=vocab_size)

    def density(self, name: str, dim: int, out: int) -> MixtureDensity:
        """The one layer of a classical mixture."""
        nodes = self._nodes(name)
        self.used.add("family")
        router, experts = self._pair(nodes, {"dim": dim, "out": out, "vocab_size": 0, "layer": 0, "num_layers": 1})
        return MixtureDensity(router, experts, build(nodes["family"], out=out, num_experts=nodes["num_experts"]))

    def _nodes(self, name: str) -> Config:
        return {**self.config, **self.overrides.get(name, {})}

    def _pair(self, nodes: Config, context: dict[str, Any]) -> tuple[Any, Any]:
        self.used.update(("router", "expert"))
        context = {**context, "num_experts": nodes["num_experts"], "feature_names": self.feature_names}
        return self._router(nodes, context), self._experts(nodes, context)

    def _router(self, nodes: Config, context: dict[str, Any]) -> Any:
        return build(nodes["router"], gate=partial(self._gate, nodes, context), **context)

    def _gate(self, nodes: Config, context: dict[str, Any], width: int) -> Any:
        self.used.add("gate")
        return build(nodes["gate"], **{**context, "num_experts": width})

    def _experts(self, nodes: Config, context: dict[str, Any]) -> Any:
        return build(nodes["expert"], **context)


def _with_hidden(expert: Config, hidden: int) -> Config:
    if "hidden" not in expert:
        raise UsageError(f"model.shared_hidden={hidden}: these experts have no hidden units. Leave it out")
    return {**expert, "hidden": hidden}
