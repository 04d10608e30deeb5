"""A diffusion transformer: from a noisy image, how noisy it is and its class, to the noise in every pixel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from moecli.mixture import Output
from moecli.models.image import Pixels, joined
from moecli.models.model import Known
from moecli.models.patches import PatchModel, attention, feed_forward
from moecli.parts import Parts
from moecli.routing import Routing

FREQUENCIES = 64  # of the step's embedding
LONGEST = 10_000.0  # the ratio of its first frequency to its last


class Modulation(nn.Module):
    """adaLN-Zero (Peebles & Xie, 2023): a condition's shifts, scales and gates, all zero at first."""

    def __init__(self, dim: int, number: int):
        super().__init__()
        self.number, self.linear = number, nn.Linear(dim, number * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:  # (B, D) -> number x (B, 1, D)
        return self.linear(nn.functional.silu(condition))[:, None].chunk(self.number, dim=-1)


class Block(nn.Module):
    """x + g attention(s norm x + b), then x + g feed(s norm x + b), with s, b and g read off the condition."""

    def __init__(self, dim: int, heads: int, feed: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.attention, self.feed, self.modulation = attention(dim, heads), feed, Modulation(dim, 6)

    def forward(
        self, x: Tensor, known: Known, previous: Routing | None, condition: Tensor
    ) -> tuple[Tensor, Routing | None]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        x = x + gate1 * self.attention((1 + scale1) * self.norm(x) + shift1)  # (B, T, D)
        y, routing = feed_forward(self.feed, (1 + scale2) * self.norm(x) + shift2, known, previous)
        return x + gate2 * y, routing


class DiffusionTransformer(PatchModel):
    """A noisy image with its conditions (B, C H W + 1 + classes) -> the noise in each pixel (B, C H W).

    y = W (s norm(z_t) + b), z_t the patches after the last block (DiT; Peebles & Xie, 2023).  The conditions are the
    share of the denoising steps that the image has gone through, from 0 to 1, and its class as a vector of 0 and 1.
    Positions are learned.  Before training every block passes its input on, and the predicted noise is zero.
    """

    needs = frozenset({"noisy image"})
    block = Block

    def __init__(self, parts: Parts, image: Pixels, **options: Any):
        super().__init__(parts, image, **options)
        dim, pixels = self.embedding.out_features, self.embedding.in_features
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.category = nn.Linear(image.conditions - 1, dim, bias=False)
        self.norm, self.modulation = nn.LayerNorm(dim, elementwise_affine=False), Modulation(dim, 2)
        self.head = nn.Linear(dim, pixels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, known: Known = None) -> Output:
        conditions = x[:, self.image.number :]  # (B, 1 + classes)
        condition = self.time(waves(conditions[:, 0])) + self.category(conditions[:, 1:])  # (B, D)
        state, routings = self.through(self.embed(x), known, condition)
        shift, scale = self.modulation(condition)
        patches = self.head((1 + scale) * self.norm(state) + shift)  # (B, T, C side side)
        return Output(joined(patches, self.image, self.side), routings)


def waves(share: Tensor) -> Tensor:
    """Sines and cosines of 1000 times a number from 0 to 1, slower and slower: (B,) -> (B, 2 FREQUENCIES)."""
    slower = torch.arange(FREQUENCIES, device=share.device) / FREQUENCIES
    angle = 1000 * share[:, None] * torch.exp(-math.log(LONGEST) * slower).to(share)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
