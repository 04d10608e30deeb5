"""How tokens go from the experts of one layer to those of another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def flow(first_a: NDArray[np.integer], first_b: NDArray[np.integer], num_a: int, num_b: int) -> NDArray[np.integer]:
    """Counts (E_a, E_b) of tokens whose first expert is a in one layer and b in the other (Eigen et al., 2013).

    ``first_a`` and ``first_b`` (n,) name the same tokens in the same order; a token that one of the layers does not
    serve (-1) is left out.  The counts add up to the tokens that both serve.
    """
    both = (first_a >= 0) & (first_b >= 0)
    key = first_a[both].astype(np.int64) * num_b + first_b[both]
    return np.bincount(key, minlength=num_a * num_b).reshape(num_a, num_b)
