"""Multi-head latent attention: keys and values of all heads are made of one short vector, all that a cache keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moecli.config import text
from moecli.errors import UsageError
from moecli.models.attention import Attention, KeysValues, rotate

LATENT = 4  # of keys and values: this many heads' features (DeepSeek-V2, section 2.1.4)


class LatentAttention(Attention):
    """Causal self-attention through c = norm(x W) of C = ``kv_rank`` features: (B, T, D) -> (B, T, D).

    Head h has keys [c K_h, r] and values c V_h, where r is a rotary key of F / 2 features that all heads share, and
    queries [u Q_h, rotated u R_h] with u = norm(x U) of ``q_rank`` features, or u = x without one; they are divided by
    sqrt(3 F / 2).  C + F / 2 numbers are kept of a token: c and r (MLA; DeepSeek-V2, 2024, section 2.1).  A step makes
    the keys and values of all its tokens anew from those.  Raises UsageError where the sizes do not divide.
    """

    rotary_base: float

    def __init__(
        self,
        dim: int,
        heads: int,
        norm: Callable[[int], nn.Module],
        rotary_base: float = 10_000.0,
        head_dim: int | None = None,
        kv_rank: int | None = None,
        q_rank: int | None = None,
    ):
        nn.Module.__init__(self)  # none of the matrices of its base, but its masks
        self.causal, self.rotary_base, self.features = True, rotary_base, _even_halves(dim, heads, head_dim)
        self.turned = self.features // 2  # features of each query, and of the shared key, that tell positions
        rank = kv_rank or LATENT * self.features
        self.widths = [heads * (self.features + self.turned), rank, self.turned]  # of queries, latent and shared key
        self.q_down = nn.Linear(dim, q_rank, bias=False) if q_rank else nn.Identity()
        self.q_norm = norm(q_rank) if q_rank else nn.Identity()
        self.q_up = nn.Linear(q_rank or dim, self.widths[0], bias=False)
        self.kv_down, self.kv_norm = nn.Linear(dim, rank + self.turned, bias=False), norm(rank)
        self.kv_up = nn.Linear(rank, heads * 2 * self.features, bias=False)
        self.out = nn.Linear(heads * self.features, dim, bias=False)

    def step(
        self, x: Tensor, past: KeysValues | None = None, *masks: Tensor | None
    ) -> tuple[Tensor, KeysValues]:  # latents (B, 1, L, C) and turned keys (B, 1, L, F / 2) are what is kept
        start = 0 if past is None else past[0].shape[-2]
        q, q_turned = self._parts(self.q_up(self.q_norm(self.q_down(x))), self.features + self.turned)
        latent, key = self.kv_down(x)[:, None].split(self.widths[1:], dim=-1)  # (B, 1, T, C), (B, 1, T, F / 2)
        latent, key = self.kv_norm(latent), rotate(key, start, self.rotary_base)
        if past is not None:
            latent, key = torch.cat([past[0], latent], dim=-2), torch.cat([past[1], key], dim=-2)
        k, v = self._parts(self.kv_up(latent[:, 0]), 2 * self.features)
        q = torch.cat([q, rotate(q_turned, start, self.rotary_base)], dim=-1)  # (B, H, T, 3 F / 2)
        k = torch.cat([k, key.expand(-1, k.shape[1], -1, -1)], dim=-1)  # (B, H, L, 3 F / 2)
        return self.out(self._attend(q, k, v, *masks).transpose(1, 2).flatten(-2)), (latent, key)

    def _parts(self, x: Tensor, width: int) -> tuple[Tensor, Tensor]:  # (B, T, H W) -> (B, H, T, F), (B, H, T, W - F)
        by_head = x.unflatten(-1, (-1, width)).transpose(1, 2)
        return by_head[..., : self.features], by_head[..., self.features :]


def _even_halves(dim: int, heads: int, head_dim: int | None) -> int:
    if head_dim is None and dim % heads:
        raise UsageError(
            f"model.dim={dim}: each of {heads} heads needs an equal share of it. "
            "Change model.dim or model.heads, or set model.head_dim"
        )
    features = head_dim or dim // heads
    if features % 4:
        raise UsageError(
            f"model.attention=latent: half of a head's {features} features are turned in pairs. "
            "Give a model.head_dim that four divides"
        )
    return features


def refuse_idle(attention: str, **own: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that is set and belongs to another kind of attention than the chosen one."""
    for kind, options in own.items():
        for name, value in options.items():
            if kind != attention and value not in (None, False):
                raise UsageError(
                    f"model.{name}={text(value)} (model.attention={attention}): it belongs to model.attention={kind}. "
                    "Leave it out, or choose that"
                )
