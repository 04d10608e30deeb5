"""What a configuration would need: parameters, FLOPs, memory and traffic, counted without building its weights."""

from __future__ import annotations

from typing import Any, cast

import torch

from moecli import config
from moecli.config import Composed, Config, build
from moecli.errors import UsageError
from moecli.models.model import Model
from moecli.models.size import cache_growth, measure, roles
from moecli.models.weightless import Counted
from moecli.run import shape, unit

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
EXACT = 4  # bytes of a number that an optimizer keeps, whatever the dtype of the weights
TRAINING = 3  # a backward pass costs about two forward passes (Kaplan et al., 2020)


def account(composed: Composed, dtype: str = "float32", expert_parallel: int = 1) -> dict[str, Any]:
    """What ``moe size --json`` prints, all memory and traffic in bytes.

    Raises UsageError for a width that does not divide the experts, and for parts that need numbers to be built or run.
    """
    try:
        found = shape(composed)
        size = measure(found.model, found.x)
        layers = _layers(found.model, size.rows, BYTES[dtype], expert_parallel)
    except (RuntimeError, NotImplementedError) as error:
        said = str(error).split("\n")[0]
        raise UsageError(
            f"moe size: a part needs numbers, and here are only shapes ({said}). Use moe train --dry-run"
        ) from error
    cached = cache_growth(found.model)
    return {
        "parameters": {"total": size.total, "active": size.active, **roles(found.model)},
        "unit": unit(found.task),
        "flops": {"forward": size.flops, "training": TRAINING * size.flops},
        "memory": _memory(found.config, size.total, dtype),
        "cache": None if cached is None else cached * BYTES[dtype],
        "expert_parallel": expert_parallel,
        "layers": layers,
    }


def _memory(settings: Config, total: int, dtype: str) -> dict[str, Any]:
    """Of weights, and where an optimizer trains them of gradients and of what it keeps, activations apart."""
    weights = total * BYTES[dtype]
    if "optimizer" not in config.part_class(settings["trainer"]).uses:
        return {"dtype": dtype, "weights": weights, "gradients": 0, "optimizer": 0}
    copy = (
        0 if dtype == "float32" else 1
    )  # of the weights, that small steps do not vanish in (Micikevicius et al., 2018)
    kept = total * (copy + numbers_kept(settings["optimizer"])) * EXACT
    return {"dtype": dtype, "weights": weights, "gradients": weights, "optimizer": kept}


def numbers_kept(optimizer: Config) -> int:
    """What an optimizer keeps of each parameter, seen after a step of it: AdamW two moments, plain SGD none."""
    one = torch.nn.Parameter(torch.zeros(2))
    one.grad = torch.zeros(2)
    made: torch.optim.Optimizer = build(optimizer, params=[one])
    made.step()
    return sum(torch.is_tensor(value) and value.shape == one.shape for value in made.state[one].values())


def _layers(model: Model, rows: dict[str, float], size: int, width: int) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "experts": layer.experts.num_experts,
            "rows_per_token": rows[name],
            "all_to_all": exchanged(cast(Counted, layer.experts), rows[name], size, width),
        }
        for name, layer in model.mixtures.items()
    }


def exchanged(experts: Counted, rows: float, size: int, width: int) -> float:
    """Bytes that the rows of one token cross between devices with: rows (D + Y) size (W - 1) / W.

    A row of D numbers goes to its expert and one of Y comes back, and of W devices that share the experts evenly
    W - 1 are not the token's own.  Raises UsageError where the experts cannot be shared evenly.
    """
    if experts.num_experts % width:
        raise UsageError(
            f"--expert-parallel {width}: {experts.num_experts} experts are not shared evenly by so many devices. "
            "Choose a number that divides them"
        )
    return rows * (experts.read + experts.out) * size * (width - 1) / width
