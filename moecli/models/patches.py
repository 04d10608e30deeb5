"""What models of images share: patches become tokens, and blocks with mixtures work on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from moecli.mixture import MixtureOfExperts
from moecli.models.attention import Attention, dense
from moecli.models.image import Pixels, cut, patch_side, position_names
from moecli.models.model import Blocks, Known
from moecli.models.places import places
from moecli.parts import Parts
from moecli.routing import Routing, Tokens
from moecli.types import NonNegativeInt, PositiveInt


class PatchModel(Blocks):
    """Base of models whose tokens are the T square patches of an image, each with a learned position.

    A mixture stands in blocks ``every`` - 1, 2 ``every`` - 1, ..., or in those that ``every`` lists; the others have a
    dense GELU layer.
    """

    needs = frozenset({"image"})
    gives = frozenset({"vectors", "sequence"})
    block: ClassVar[type[nn.Module]]  # (dim, heads, feed) -> one block

    def __init__(
        self,
        parts: Parts,
        image: Pixels,
        patch: PositiveInt | None = None,
        dim: PositiveInt = 64,
        depth: PositiveInt = 4,
        heads: PositiveInt = 4,
        every: list[int] | PositiveInt = 2,
        hidden: PositiveInt | None = None,
        shared: NonNegativeInt = 0,
        shared_mix: Literal["add", "gate", "mix"] = "add",
        shared_hidden: PositiveInt | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        names = [f"block{index}" for index in range(depth)]
        sparse = [names[index] for index in places(every, depth)]
        parts = replace(parts, feature_names=())  # a token's features are no pixels
        self.image, self.side = image, patch_side(image, patch)
        self.positions = position_names(image, self.side)
        self.embedding = nn.Linear(image.channels * self.side**2, dim)
        self.position = nn.Parameter(0.02 * torch.randn(len(self.positions), dim))
        sizes: dict[str, Any] = {"dim": dim, "out": dim, "shared": shared, "shared_hidden": shared_hidden}
        feeds = parts.mixtures(sparse, self.overrides, **sizes, shared_mix=shared_mix)
        # a dense layer is drawn also where a mixture takes its place: what a seed gives to the blocks behind stays
        drawn = {name: feeds.get(name, dense("gelu", dim, hidden or 4 * dim)) for name in names}
        self.blocks: Any = nn.ModuleDict({name: type(self).block(dim, heads, feed) for name, feed in drawn.items()})

    def embed(self, x: Tensor) -> Tensor:  # (B, C H W + conditions) -> (B, T, D)
        return self.embedding(cut(x, self.image, self.side)) + self.position

    def through(self, state: Tensor, known: Known, *condition: Tensor) -> tuple[Tensor, dict[str, Routing]]:
        """All blocks, one after the other: (B, T, D) -> the same, and what each mixture decided."""
        routings: dict[str, Routing] = {}
        known = self.of_patches(known, len(state))
        for name, block in self.blocks.items():
            state, routing = block(state, known, next(reversed(routings.values()), None), *condition)
            if routing is not None:
                routings[name] = routing
        return state, routings

    def of_patches(self, known: Known, batch: int) -> dict[str, Tensor]:
        """What is known of each image, of its patches: beside that their position (B, T), and rows of their own."""
        position = torch.arange(len(self.positions), device=self.position.device).expand(batch, -1)
        numbered = {name: fact * len(self.positions) if name == "row" else fact for name, fact in (known or {}).items()}
        return {**numbered, "position": position}


def attention(dim: int, heads: int) -> Attention:
    """Every patch reads every other; what it reads does not depend on where they lie but by their embeddings."""
    return Attention(dim, heads, causal=False, rotary_base=None, qkv_bias=True)


def feed_forward(feed: nn.Module, x: Tensor, known: Known, previous: Routing | None) -> tuple[Tensor, Routing | None]:
    """x (B, T, D) -> y (B, T, D), and the decision where ``feed`` is a mixture; an image is one group of tokens."""
    if not isinstance(feed, MixtureOfExperts):
        return feed(x), None
    y, routing = feed(replace(Tokens.sequences(x, known=known), previous=previous))
    return y.view_as(x), routing
