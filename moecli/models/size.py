"""How large and how dear a model is: parameters total and active, FLOPs per token, counted on a real batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moecli.experts.experts import Experts
from moecli.families.family import Family
from moecli.heads.head import Head
from moecli.kernels.choose import using
from moecli.mixture import Shared
from moecli.models.attention import Attention, CrossAttention
from moecli.models.model import Known, Layer, Model
from moecli.models.relative import RelativePositions
from moecli.routing import Router, Tokens

# What a parameter is for, by the module that it lies in, however deep; the first line that fits counts.
ROLES: dict[str, tuple[type, ...]] = {
    "router": (Router,),
    "expert": (Experts, Shared),
    "family": (Family,),
    "norm": (nn.RMSNorm, nn.LayerNorm),
    "attention": (Attention, CrossAttention, RelativePositions),
    "embedding": (nn.Embedding,),
    "head": (Head,),
}
OUTPUT = ("output", "head")  # a model's own last linear map, by its name


@dataclass(frozen=True)
class Size:
    """``flops`` and ``active`` are per token (an example where examples are not sequences)."""

    total: int
    active: int
    flops: int
    rows: dict[str, float]  # rows of expert work per token, by layer


@torch.no_grad()
def measure(model: Model, x: Tensor, known: Known = None) -> Size:
    """Run the model once in evaluation on x and count; x (B, D) or ids (B, T), whose padding counts as tokens."""
    x = x if x.is_floating_point() else x.clamp_min(0)
    was_training = model.training
    model.eval()
    seen = sample(model, x, known)
    flops = _counted(model, x, known) / _num_tokens(x)
    model.train(was_training)
    rows = {name: _rows(model.mixtures[name], tokens) for name, tokens in seen.items()}
    total = sum(p.numel() for p in model.parameters())
    idle = sum(_idle(layer, rows[name]) for name, layer in model.mixtures.items())
    return Size(total, round(total - idle), round(flops), rows)


def sample(model: Model, x: Tensor, known: Known = None) -> dict[str, Tokens]:
    """The tokens that reach each mixture layer when the model reads x."""
    with watched(model) as seen, torch.no_grad():
        model(x, known)
    return seen


@contextmanager
def watched(model: Model) -> Iterator[dict[str, Tokens]]:
    """What is yielded holds the tokens that reached each mixture layer when the model was last called."""
    seen: dict[str, Tokens] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0]))
        for name, layer in model.mixtures.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def roles(model: Model) -> dict[str, int]:
    """How many parameters are of routers, experts (shared ones too), attention, embedding, ...; the rest is ``dense``."""
    counts = dict.fromkeys([*ROLES, "dense"], 0)
    for name, parameter in model.named_parameters():
        counts[_role(model, name)] += parameter.numel()
    return {role: count for role, count in counts.items() if count}


def _role(model: Model, name: str) -> str:
    *path, _ = name.split(".")
    around = [model.get_submodule(".".join(path[: end + 1])) for end in range(len(path))]
    found = (role for role, kinds in ROLES.items() if any(isinstance(module, kinds) for module in around))
    return next(found, "head" if path and path[0] in OUTPUT else "dense")


def cache_growth(model: Model) -> int | None:
    """Numbers that generation keeps of each further token, keys and values or latents; None for a model that cannot go on from a past."""
    if type(model).step is Model.step:
        return None
    looking_back = [module for module in model.modules() if isinstance(module, Attention) and module.causal]
    return sum(sum(attention.widths[1:]) for attention in looking_back)


def make_twin(model: Model, x: Tensor, known: Known = None) -> None:
    """Put in place of each mixture one dense expert with the mixture's FLOPs per token, router included."""
    model.eval()
    for name, tokens in sample(model, x, known).items():
        layer = model.mixtures[name]
        model.replace(name, layer.twin(layer_flops(layer, tokens)))
    model.train()


@torch.no_grad()
def layer_flops(layer: Layer, tokens: Tokens) -> float:
    """Of router, routed and shared experts and the way between, per token."""
    return _counted(layer, tokens) / len(tokens.x)


def _counted(module: nn.Module, *arguments: Any) -> int:
    # fused attention hides its products from the counter on a CPU, and kernels pad; the plain ones do neither
    with (
        sdpa_kernel(SDPBackend.MATH),
        using("loop"),
        FlopCounterMode(display=False, custom_mapping=RECURRENT) as counter,
    ):
        module(*arguments)
    return counter.get_total_flops()


def _of_layer(x: list[int], of_input: list[int], of_hidden: list[int], *_: Any, **__: Any) -> int:
    """FLOPs of one recurrent layer, from the shapes of x (T, B, D) and of its two matrices."""
    return 2 * math.prod(x[:-1]) * (math.prod(of_input) + math.prod(of_hidden))


def _of_layers(x: list[int], weights: list[list[int]], *_: Any, **__: Any) -> int:
    """FLOPs of several, from the shapes of x (T, B, D) and of all their matrices and biases."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


# fused recurrences that torch's counter does not know, on a CPU and on a GPU
RECURRENT = {torch.ops.aten.mkldnn_rnn_layer: _of_layer, torch.ops.aten._cudnn_rnn: _of_layers}


def _rows(layer: Layer, tokens: Tokens) -> float:
    return int(layer.router(tokens).plan.groups.counts.sum()) / len(tokens.x)


def _idle(layer: Layer, rows: float) -> float:
    """Parameters of experts that a token does not touch."""
    share = min(rows / layer.experts.num_experts, 1.0)
    return (1 - share) * sum(p.numel() for p in layer.experts.parameters())


def _num_tokens(x: Tensor) -> int:
    return len(x) if x.is_floating_point() else x.numel()
