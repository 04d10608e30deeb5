"""Which blocks of a deep model have a mixture."""

from __future__ import annotations

from moecli.config import text
from moecli.errors import UsageError


def places(every: int | list[int], number: int) -> list[int]:
    """Indices of ``number`` blocks: every n-th, that is n - 1, 2 n - 1, ..., or those of a list, in order.

    Raises UsageError where that is none, or names a block that is not there.
    """
    if isinstance(every, int):
        found = list(range(every - 1, number, every))
        if not found:
            raise UsageError(
                f"model.every={every}: there are {number} places, and none has a mixture. Lower model.every"
            )
        return found
    missing = [index for index in every if not 0 <= index < number]
    if missing or not every:
        what = f"no place {missing[0]}" if missing else "no place has a mixture"
        raise UsageError(f"model.every={text(every)}: {what}. Choose from 0 to {number - 1}")
    return sorted(set(every))
