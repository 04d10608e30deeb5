"""What blocks are made of beside their mixture: norms, self-attention, dense feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moecli.errors import UsageError

KeysValues = tuple[Tensor, Tensor]  # (B, H', T, F) each, keys already turned by their positions


def norm_of(kind: Literal["rms", "layer"], dim: int, eps: float | None = None) -> nn.Module:
    """RMSNorm (Zhang & Sennrich, 2019) or LayerNorm (Ba et al., 2016); without ``eps`` with torch's own of each."""
    build = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}[kind]
    return build(dim) if eps is None else build(dim, eps=eps)


class Attention(nn.Module):
    """Self-attention with H heads of F features, by default D / H: (B, T, D) -> (B, T, D) (Vaswani et al., 2017).

    Each of ``kv_heads`` keys and values serves H / ``kv_heads`` heads of queries (Ainslie et al., 2023).  Positions
    turn queries and keys (Su et al., 2021), unless ``rotary_base`` is None.  With ``qk_norm``, a factory of norms, all
    features of the queries, and all of the keys, are normed before they are split into heads (OLMoE, 2024).
    Raises UsageError where the sizes do not divide.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        causal: bool = True,
        rotary_base: float | None = 10_000.0,
        qk_norm: Callable[[int], nn.Module] | None = None,
        qkv_bias: bool = False,
        head_dim: int | None = None,
    ):
        super().__init__()
        kv_heads = kv_heads or heads
        _check_sizes(dim, heads, kv_heads, rotary_base, head_dim)
        self.causal, self.rotary_base, self.features = causal, rotary_base, head_dim or dim // heads
        self.widths = [number * self.features for number in (heads, kv_heads, kv_heads)]  # of queries, keys and values
        self.qkv = nn.Linear(dim, sum(self.widths), bias=qkv_bias)
        self.out = nn.Linear(self.widths[0], dim, bias=False)
        self.q_norm, self.k_norm = (qk_norm(width) if qk_norm else nn.Identity() for width in self.widths[:2])

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.step(x)[0]

    def step(
        self, x: Tensor, past: KeysValues | None = None, here: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """The same for tokens that follow those of ``past``, and the keys and values of all L.

        Where ``here`` (B, L) is false there is no token to attend to; ``bias`` (H, T, L) is added to the logits.
        """
        q, k, v = self.qkv(x).split(self.widths, dim=-1)
        q, k = split_heads(self.q_norm(q), self.features), split_heads(self.k_norm(k), self.features)
        v = split_heads(v, self.features)  # (B, H or H', T, F)
        if self.rotary_base is not None:
            start = 0 if past is None else past[0].shape[-2]
            q, k = rotate(q, start, self.rotary_base), rotate(k, start, self.rotary_base)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=-2), torch.cat([past[1], v], dim=-2)
        return self.out(self._attend(q, k, v, here, bias).transpose(1, 2).flatten(-2)), (k, v)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, here: Tensor | None, bias: Tensor | None
    ) -> Tensor:  # (B, H, T, F), (B, H', L, F) x 2 -> (B, H, T, F)
        new, seen = q.shape[-2], k.shape[-2]
        plain = here is None and bias is None and (not self.causal or new == seen)  # what needs no mask is faster
        mask = None if plain else masked(visible(new, seen, self.causal, here, q.device), bias, q.dtype)
        grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal and plain, **grouped)


def visible(new: int, seen: int, causal: bool, here: Tensor | None, device: torch.device) -> Tensor:
    """Who sees whom, for the last ``new`` = T of ``seen`` = L places: bool (T, L), or (B, 1, T, L) with ``here`` (B, L).

    Everyone sees itself, so that padding, which nobody else sees, has something to see: no softmax is empty.
    """
    everyone = torch.ones(new, seen, dtype=torch.bool, device=device)
    allowed = everyone.tril(seen - new) if causal else everyone
    if here is None:
        return allowed
    itself = everyone.tril(seen - new).triu(seen - new)
    return (allowed & here[:, None, None, :]) | itself


def masked(allowed: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What attention takes for a mask: bool, or the bias (H, T, L) to add, minus infinity where nothing is seen."""
    return allowed if bias is None else bias.to(dtype).masked_fill(~allowed, -torch.inf)


def split_heads(x: Tensor, features: int) -> Tensor:  # (B, T, H F) -> (B, H, T, F)
    return x.unflatten(-1, (-1, features)).transpose(1, 2)


class CrossAttention(nn.Module):
    """What each of T places takes from S places of a source, none of which is hidden: (B, T, D) -> (B, T, D).

    Keys and values of the source are made once, by ``remember``, and serve every step.  Raises UsageError where the
    sizes do not divide.
    """

    def __init__(self, dim: int, heads: int, head_dim: int | None = None):
        super().__init__()
        _check_sizes(dim, heads, heads, None, head_dim)
        self.features = head_dim or dim // heads
        width = heads * self.features
        self.q, self.kv = nn.Linear(dim, width, bias=False), nn.Linear(dim, 2 * width, bias=False)
        self.out = nn.Linear(width, dim, bias=False)

    def remember(self, source: Tensor) -> KeysValues:  # (B, S, D) -> (B, H, S, F) x 2
        k, v = self.kv(source).chunk(2, dim=-1)
        return split_heads(k, self.features), split_heads(v, self.features)

    def forward(self, x: Tensor, source: KeysValues, here: Tensor | None = None) -> Tensor:
        """Where ``here`` (B, S) is false there is no token to attend to; a source without any answers zero."""
        q, mask = split_heads(self.q(x), self.features), None
        if here is not None:
            empty = ~here.any(1, keepdim=True)  # (B, 1)
            mask = (here | empty)[:, None, None, :]
        y = F.scaled_dot_product_attention(q, *source, mask).transpose(1, 2).flatten(-2)  # (B, T, H F)
        return self.out(y if here is None else y.masked_fill(empty[:, None], 0.0))


def _check_sizes(dim: int, heads: int, kv_heads: int, rotary_base: float | None, head_dim: int | None) -> None:
    if head_dim is not None and head_dim % 2 and rotary_base is not None:
        raise UsageError(f"model.head_dim={head_dim}: rotary positions turn pairs of features. Give an even number")
    if head_dim is None and (dim % heads or (rotary_base is not None and dim // heads % 2)):
        share = "an equal share of it" if rotary_base is None else "an even share of it, for rotary positions"
        raise UsageError(
            f"model.dim={dim}: each of {heads} heads needs {share}. Change model.dim or model.heads, or set model.head_dim"
        )
    if heads % kv_heads:
        raise UsageError(
            f"model.kv_heads={kv_heads}: {heads} heads do not divide among so many. Change model.kv_heads or model.heads"
        )


def rotate(x: Tensor, start: int = 0, base: float = 10_000.0) -> Tensor:
    """Turn each pair of features by an angle that grows with the position, from ``start`` on: (B, H, T, F) -> the same."""
    t, half = x.shape[-2], x.shape[-1] // 2
    precise = torch.promote_types(x.dtype, torch.float32)
    frequency = base ** (-torch.arange(half, dtype=precise, device=x.device) / half)
    angle = torch.arange(start, start + t, device=x.device)[:, None] * frequency  # (T, F / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class SwiGlu(nn.Module):
    """(silu(x U) * (x G)) V without biases (Shazeer, 2020): (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up, self.gate = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)) * self.gate(x))


def dense(kind: str, dim: int, hidden: int) -> nn.Module:
    """The feed-forward layer of a block without a mixture: ``gelu`` with biases, or ``swiglu`` without."""
    if kind == "swiglu":
        return SwiGlu(dim, hidden)
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
