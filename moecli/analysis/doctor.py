"""What a run folder tells of its own health: whether it is whole, and how its experts share the work."""

from __future__ import annotations

from moecli.analysis.balance import check_experts
from moecli.analysis.finding import Finding
from moecli.analysis.intact import check_intact
from moecli.record.folder import Run


def diagnose(run: Run) -> list[Finding]:
    """Everything that reading the folder can find, of finished and unfinished runs; nothing is changed in it."""
    return [*check_intact(run), *check_experts(run)]
