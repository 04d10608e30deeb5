"""The transformer as it was when it had no options of norm, attention, dense layer and head: a reference, left as it is."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from moecli.mixture import MixtureOfExperts, Output
from moecli.models.model import Model
from moecli.routing import Tokens


class Transformer(Model):
    def __init__(self, parts, vocab_size, dim, depth, heads, every):
        super().__init__()
        names = [f"block{index}" for index in range(every - 1, depth, every)]
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        built = {
            name: parts.mixture(name, index, len(names), dim=dim, out=dim, vocab_size=vocab_size)
            for index, name in enumerate(names)
        }
        self.blocks = nn.ModuleDict(
            {name: Block(dim, heads, built.get(name)) for name in (f"block{index}" for index in range(depth))}
        )
        self.norm = nn.RMSNorm(dim)

    def forward(self, x, known=None):
        state, routings = self.embedding(x), {}
        for name, block in self.blocks.items():
            state, routing = block(state, x, known, next(reversed(routings.values()), None))
            if routing is not None:
                routings[name] = routing
        return Output(F.linear(self.norm(state), self.embedding.weight), routings)


class Block(nn.Module):
    def __init__(self, dim, heads, mixture):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.attention = Attention(dim, heads)
        dense = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.feed = dense if mixture is None else mixture

    def forward(self, x, ids, known, previous):
        x = x + self.attention(self.norm1(x))
        if not isinstance(self.feed, MixtureOfExperts):
            return x + self.feed(self.norm2(x)), None
        tokens = replace(Tokens.sequences(self.norm2(x), ids, known), previous=previous)
        y, routing = self.feed(tokens)
        return x + y.view_as(x), routing


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(-2))


def rotate(x, base=10_000.0):
    t, half = x.shape[-2], x.shape[-1] // 2
    angle = torch.arange(t)[:, None] * base ** (-torch.arange(half) / half)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
