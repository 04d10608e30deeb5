"""The rule reads shapes, device and dtype alone, and a kernel can be asked for by name."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from moecli.errors import UsageError
from moecli.experts.feed_forward import FeedForward
from moecli.kernels import choose, fused, matmul
from moecli.kernels.activations import ACTIVATIONS
from moecli.kernels.choose import can_group, chosen, laid_out, using
from moecli.kernels.fused import Matrices, Work
from moecli.plan import Sparse


def plan(tokens: int, experts: int, k: int = 2) -> Sparse:
    expert = (torch.arange(tokens)[:, None] + torch.arange(k)) % experts
    return Sparse.from_choices(expert, torch.zeros(expert.shape), experts)


@pytest.mark.parametrize(
    ("tokens", "experts", "dtype", "widths", "one", "two"),
    [
        (1024, 8, torch.float32, (128, 512, 128), "each", "padded"),
        (4096, 8, torch.float32, (128, 512, 128), "each", "each"),
        (1024, 64, torch.float32, (128, 512, 128), "grouped", "padded"),
        (1024, 64, torch.float32, (128, 2048, 128), "grouped", "grouped"),
        (4096, 8, torch.float32, (128, 128, 128), "each", "padded"),
        (128, 8, torch.float32, (7, 64, 3), "loop", "padded"),
        (1024, 64, torch.float64, (128, 512, 128), "loop", "loop"),
        (4096, 8, torch.float64, (128, 512, 128), "each", "each"),
        (1024, 64, torch.bfloat16, (128, 512, 128), "padded", "padded"),
        (1024, 8, torch.bfloat16, (128, 512, 128), "each", "padded"),
        (1024, 8, torch.bfloat16, (512, 2048, 512), "each", "each"),
        (1024, 64, torch.bfloat16, (512, 2048, 512), "grouped", "grouped"),
    ],
)
def test_the_rule_with_one_thread_and_with_two(tokens, experts, dtype, widths, one, two, monkeypatch):
    x = torch.zeros(tokens, widths[0], dtype=dtype)
    for threads, kernel in ((1, one), (2, two)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert chosen(plan(tokens, experts), x, widths) == kernel
    monkeypatch.delattr(choose.F, "grouped_mm")  # torch before 2.10 has none
    assert chosen(plan(tokens, experts), x, widths) == ("loop" if two == "grouped" else two)


def test_groups_too_uneven_are_not_padded():
    widths = 64, 128, 64
    for tokens, else_by in ((512, "grouped"), (2048, "each")):
        x = torch.zeros(tokens, 64, dtype=torch.bfloat16)
        assert chosen(plan(tokens, 8), x, widths) == "padded"
        to_one = replace(plan(tokens, 8, 1), expert=torch.zeros(tokens, dtype=torch.int64))
        assert chosen(to_one, x, widths) == else_by


def test_a_forced_kernel_is_obeyed_inside_and_forgotten_outside(monkeypatch):
    seen = []
    monkeypatch.setattr(fused, "apply", lambda work, x, *_: seen.append(len(work.layout.stretches)) or x)
    experts, x = FeedForward(8, 8, 4, 16), torch.zeros(6, 8)
    for kernel in ("each", "padded", "grouped"):
        with using(kernel):
            experts.blend(plan(6, 4), x)
    assert seen == [4, 1, 1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert chosen(plan(6, 4), x, (8, 16, 8)) == "grouped"


def test_what_grouped_mm_cannot_do_is_refused_in_words():
    for dtype, widths in ((torch.float64, (64, 64, 64)), (torch.float32, (6, 64, 64))):
        x = torch.zeros(9, widths[0], dtype=dtype)
        assert not can_group(x, widths)
        with using("grouped"), pytest.raises(UsageError, match="multiples of 16 bytes"):
            chosen(plan(9, 3), x, widths)


def test_experts_whose_units_drop_out_are_served_by_the_loop(monkeypatch):
    monkeypatch.setattr(fused, "apply", lambda *_: pytest.fail("no kernel knows dropout"))
    with using("each"):
        FeedForward(8, 8, 4, 16, dropout=0.5).blend(plan(6, 4), torch.zeros(6, 8))


def test_oneDNN_is_left_alone_where_it_is_inexact_or_slower(monkeypatch):
    ask = matmul.onednn_from.__wrapped__
    monkeypatch.setattr(matmul, "_linear", lambda a, weight, bias: (a.bfloat16() @ weight.T.bfloat16()).float())
    assert not matmul._is_exact()
    assert ask() == float("inf")
    monkeypatch.setattr(matmul, "_is_exact", lambda: True)
    for said, numbers in (
        ("vendor_id : GenuineIntel", float("inf")),
        ("vendor_id : AuthenticAMD\ncpu family\t: 26", matmul.TINY),
        ("vendor_id : AuthenticAMD\ncpu family\t: 25", matmul.LARGE),
    ):
        monkeypatch.setattr(matmul.Path, "read_text", lambda self, said=said: said)
        assert ask() == numbers


def test_autocast_computes_in_its_dtype_and_trains_float32_weights():
    experts, x = FeedForward(8, 8, 4, 16), torch.randn(6, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = experts.blend(plan(6, 4), x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == experts.up.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(("kernel", "asks"), [("grouped", False), ("each", True), ("padded", True)])
def test_grouped_asks_the_host_nothing(kernel, asks):
    """Tensors that have shapes and no values: whoever reads one, which would make a GPU wait, is found out."""
    widths = 64, 128, 64
    with FakeTensorMode(), torch.no_grad():
        index = torch.empty(64, dtype=torch.int64)
        routed = Sparse(index, index, torch.empty(64), index, 32, 8)
        x = torch.empty(32, 64, dtype=torch.bfloat16)
        sizes = ((8, 64, 128), (8, 128)) * 2 + ((8, 128, 64), (8, 64))
        matrices = Matrices(*(x.new_empty(size) for size in sizes))
        with pytest.raises(DataDependentOutputException) if asks else nullcontext():
            work = Work(laid_out(kernel, routed, x, widths), ACTIVATIONS["swiglu"], True, torch.add)
            weight = fused._weight(work, x, routed.log_weight)
            y, kept = fused._forward(work, x, weight, matrices)
            wanted = dict.fromkeys(("x", "log_weight", *Matrices._fields), True)
            found = fused._Backward(work, x, weight, matrices, wanted).run(y, kept)
            assert [t.shape for t in found] == [x.shape, index.shape, *sizes]  # type: ignore[union-attr]


def test_a_gpu_groups_what_it_can():
    on_gpu = SimpleNamespace(device=torch.device("cuda"), is_cuda=True, dtype=torch.bfloat16, element_size=lambda: 2)
    assert chosen(plan(9, 3), on_gpu, (64, 128, 64)) == "grouped"  # type: ignore[arg-type]
    assert chosen(plan(9, 3), on_gpu, (6, 128, 64)) == "each"  # type: ignore[arg-type]
