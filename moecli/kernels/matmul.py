"""Exact matrix products of one expert, by whichever library of the processor is faster at it.

MKL uses only part of a processor that is not Intel's.  There oneDNN, through a private operator of torch, multiplies
float32 as exactly: with AMD's Zen 5 in half the time, with others in 0.7 to 0.95 of it where matrices are large.
It compiles code for each shape that it meets, so its callers pad groups to multiples of ``PAD`` rows.  The choice
hangs on the machine and on shapes, never on a clock, so that a resumed run has the same bits.
"""

from __future__ import annotations

import math
import platform
import re
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

PAD = 32  # rows
EXACT = 1e-5  # relative error that float32 may have, and bfloat16 arithmetic has not
LARGE = 2**18  # numbers of a matrix from which oneDNN is the faster one on any processor but Intel's
TINY = 2**12  # the same with AMD's Zen 5, where only the dearer call counts against it
ZEN5 = 26  # AMD's family whose units are 512 bits wide
WIDE = 4  # columns for each row, from which on a weight gradient is worth oneDNN's extra copy


def product(a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (M, K), weight (K, N) of any strides, bias (N,) -> a @ weight + bias, (M, N)."""
    if _by_onednn(a, weight.numel()):
        return _linear(a, weight.T, bias)
    return a @ weight if bias is None else torch.addmm(bias, a, weight)


def add_product(total: Tensor, a: Tensor, weight: Tensor) -> Tensor:
    """total (M, N), which may be overwritten, + a (M, K) @ weight (K, N)."""
    if _by_onednn(a, weight.numel()):
        return torch.ops.mkldnn._linear_pointwise.binary(a, total, weight.T, None, "add")
    return total.addmm_(a, weight)


def gradient(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Put a.T @ b of a (M, K), b (M, N) into ``out`` (K, N)."""
    if _by_onednn(a, out.numel()) and b.shape[1] >= WIDE * a.shape[1]:
        out.copy_(_linear(a.T, b.T, None))
    else:
        torch.mm(a.T, b, out=out)


def padding(x: Tensor, numbers: int) -> int:
    """Rows of x that groups are padded to a multiple of, for matrices of so many numbers.

    One where no library compiles code for each shape.
    """
    compiles = x.device.type == "cpu" and (x.dtype == torch.bfloat16 or _by_onednn(x, numbers))
    return PAD if compiles else 1


def _by_onednn(a: Tensor, numbers: int) -> bool:
    """Whether oneDNN multiplies rows ``a`` by a matrix of so many numbers."""
    return a.dtype == torch.float32 and a.device.type == "cpu" and numbers >= onednn_from() and len(a) > 0


def _linear(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # (M, K), (N, K), (N,) -> (M, N)
    return torch.ops.mkldnn._linear_pointwise(a, weight, bias, "none", [], "")


@cache
def onednn_from() -> float:
    """Numbers of a matrix from which oneDNN is the faster library here; infinity where it is not, or not exact."""
    info = Path("/proc/cpuinfo")
    said = info.read_text() if info.exists() else platform.processor()
    if "GenuineIntel" in said or not _is_exact():
        return math.inf
    family = re.search(r"cpu family\s*: (\d+)", said)
    return TINY if "AuthenticAMD" in said and family and int(family[1]) >= ZEN5 else LARGE


def _is_exact() -> bool:
    """Whether oneDNN's operator is here, and multiplies float32 as float32."""
    a, weight = torch.linspace(-1, 1, 64 * 48).view(64, 48).sin(), torch.linspace(0, 9, 32 * 48).view(32, 48).cos()
    want = a.double() @ weight.double().T
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found = _linear(a, weight, None)
            twice = torch.ops.mkldnn._linear_pointwise.binary(a, found, weight, None, "add")
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    errors = [float((got - right).abs().max() / right.abs().max()) for got, right in ((found, want), (twice, 2 * want))]
    return max(errors) < EXACT
