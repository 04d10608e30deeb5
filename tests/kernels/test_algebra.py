"""What parts of several kinds compute with."""

from __future__ import annotations

import pytest
import torch

from moecli.kernels.algebra import SHORT, log_softmax


@pytest.mark.parametrize("width", [1, SHORT - 1, SHORT, 64])
def test_log_softmax_is_the_same_whichever_way_rows_lie(width):
    x = torch.randn(9, width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_softmax, x)
    torch.testing.assert_close(log_softmax(x), x.log_softmax(-1))
