"""A vision transformer: an image is a row of patches that all read each other, its class the head of their mean."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from moecli.mixture import Output
from moecli.models.image import Pixels
from moecli.models.model import Known
from moecli.models.patches import PatchModel, attention, feed_forward
from moecli.parts import Parts
from moecli.routing import Routing


class Block(nn.Module):
    """x + attention(norm x), then x + feed(norm x), where ``feed`` is a mixture or a dense layer."""

    def __init__(self, dim: int, heads: int, feed: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.feed = attention(dim, heads), feed

    def forward(self, x: Tensor, known: Known, previous: Routing | None) -> tuple[Tensor, Routing | None]:
        x = x + self.attention(self.norm1(x))  # (B, T, D)
        y, routing = feed_forward(self.feed, self.norm2(x), known, previous)
        return x + y, routing


class VisionTransformer(PatchModel):
    """Pixels (B, C H W) -> logits (B, Y): y = W mean_t norm(z_t) + b, z_t the patches after the last block.

    Pre-norm blocks as in ViT (Dosovitskiy et al., 2021); the mean takes the class token's place, so that every
    token is a patch.  Patches see the whole image, so routers that are not causal (expert choice, slots) serve too.
    """

    block = Block

    def __init__(self, parts: Parts, image: Pixels, out: int, **options: Any):
        super().__init__(parts, image, **options)
        self.norm, self.head = nn.LayerNorm(self.embedding.out_features), nn.Linear(self.embedding.out_features, out)

    def forward(self, x: Tensor, known: Known = None) -> Output:  # (B, C H W) -> (B, Y)
        state, routings = self.through(self.embed(x), known)
        return Output(self.head(self.norm(state).mean(1)), routings)
