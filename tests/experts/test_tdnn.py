"""Time-delay experts: what the two convolutions are, and that they shift."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from moecli.errors import DataError
from moecli.experts.tdnn import Tdnn
from moecli.plan import Dense, Groups, Sparse

F64 = torch.float64
ROWS, FRAMES, DIM, EXPERTS, OUT = 6, 9, 3, 4, 2


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def experts(num: int = EXPERTS, **options) -> Tdnn:
    return Tdnn(DIM, OUT, num, **{"hidden": 4, **options}).double()


def test_it_is_two_convolutions_and_a_mean_over_time():
    work, x = experts(1), torch.randn(ROWS, FRAMES, DIM, dtype=F64)
    early = work.early.weight[0].T.view(4, DIM, 3)  # (H, D, width): the last axis of a window is time
    late = work.late.weight[0].T.view(4, 4, 5)
    hidden = F.conv1d(x.mT, early, work.early.bias[0]).relu()
    evidence = F.conv1d(hidden, late, work.late.bias[0]).relu().mean(-1)
    expected = evidence @ work.answer.weight[0] + work.answer.bias[0]
    found = work(x, Groups(torch.tensor([ROWS]), even=True))
    assert torch.allclose(found, expected)
    assert not torch.allclose(found, work(x.flip(1), Groups(torch.tensor([ROWS]))), atol=1e-3)  # the control: order


def test_a_shift_within_silence_changes_nothing():
    work = experts()
    with torch.no_grad():
        work.early.bias.zero_()
        work.late.bias.zero_()
    sound = torch.zeros(1, 20, DIM, dtype=F64)
    sound[:, 8:11] = torch.randn(3, DIM, dtype=F64)
    plan = Dense(torch.zeros(1, EXPERTS, dtype=F64))
    assert torch.allclose(work.rows(plan, sound), work.rows(plan, sound.roll(3, 1)))
    assert not torch.allclose(work.rows(plan, sound), work.rows(plan, sound.roll(10, 1)), atol=1e-4)  # cut at the edge


@pytest.mark.parametrize("ragged", [True, False])
def test_gradcheck(ragged):
    work, x = experts(hidden=3), torch.randn(ROWS, FRAMES, DIM, dtype=F64, requires_grad=True)
    logits = torch.randn(ROWS, EXPERTS, dtype=F64)
    top, expert = logits.topk(2)
    plan = Sparse.from_choices(expert, top.log_softmax(-1), EXPERTS) if ragged else Dense(logits.log_softmax(-1))
    parameters = tuple(work.parameters())[:2]
    assert torch.autograd.gradcheck(lambda x, *_: work.blend(plan, x), (x, *parameters), atol=1e-6)


def test_flops_are_what_is_counted_and_the_twin_costs_as_much():
    work, x = experts(), torch.randn(ROWS, FRAMES, DIM, dtype=F64)
    plan = Dense(torch.zeros(ROWS, EXPERTS, dtype=F64))
    with FlopCounterMode(display=False) as counter:
        work.rows(plan, x)
    assert counter.get_total_flops() == ROWS * EXPERTS * work.flops()
    for flops in (2_000, 50_000):
        twin = work.twin(flops)
        assert twin.num_experts == 1 and abs(twin.flops() - flops) <= 0.25 * flops  # within one hidden unit
    assert experts(hidden=8).flops() > experts(hidden=4).flops()


def test_too_few_frames_are_one_line():
    plan = Dense(torch.zeros(1, EXPERTS, dtype=F64))
    with pytest.raises(DataError, match=r"items of 5 frames .* the windows span 7"):
        experts().rows(plan, torch.randn(1, 5, DIM, dtype=F64))
