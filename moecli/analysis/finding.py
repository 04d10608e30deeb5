"""One thing that `moe doctor` found: how bad it is, what it is, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from moecli.errors import MoeError

Level = Literal["ok", "skipped", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """``problem``: what is there cannot be relied on.  ``warning``: it can, but look.  ``skipped``: does not apply."""

    level: Level
    check: str  # environment, intact, experts, causality or router
    what: str
    why: str = ""
    do: str = ""  # what to do about it
    measured: dict[str, Any] = field(default_factory=dict)  # the numbers behind it

    @property
    def sentence(self) -> str:
        """What (why). What to do."""
        why = f" ({self.why})" if self.why else ""
        return f"{self.what}{why}" + (f". {self.do}" if self.do else "")


def damaged(findings: Iterable[Finding]) -> list[Finding]:
    """Those that leave something unusable."""
    return [finding for finding in findings if finding.level == "problem"]


def from_error(level: Level, check: str, error: MoeError) -> Finding:
    """An error's one line, its last sentence being what to do."""
    what, _, do = str(error).rpartition(". ")
    return Finding(level, check, what or do, do=do if what else "")
