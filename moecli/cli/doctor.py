"""moe doctor: is this machine fit to train, or a run sound."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moecli.cli import completion
from moecli.cli.common import Json, Plugin, Runs, example, use
from moecli.errors import ArtifactError, EnvironmentFailure

if TYPE_CHECKING:
    from moecli.analysis.finding import Finding

EPILOG = example("moe doctor", "moe doctor RUN", "moe doctor RUN --json")
MARKS = {"ok": "OK", "skipped": "–", "warning": "warning", "problem": "PROBLEM"}


def doctor(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="A run folder; without it, this machine.", autocompletion=completion.runs),
    ] = None,
    runs: Runs = None,
    plugin: Plugin = None,
    json: Json = False,
) -> None:
    """Check this machine; or a run: whether it is whole, its experts work, it sees no future, its router learned."""
    use(plugin)
    findings = _machine(runs) if run is None else _run(run)
    _print(run, findings, json)
    problems = [finding for finding in findings if finding.level == "problem"]
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        failure = EnvironmentFailure if run is None else ArtifactError
        raise failure(f"{'this machine' if run is None else run}: {problems[0].what}{more}. What to do stands above")


def _machine(runs: Path | None) -> list[Finding]:
    from moecli.diagnosis.environment import check_environment

    return check_environment(runs)


def _run(path: Path) -> list[Finding]:
    from moecli.analysis.doctor import diagnose
    from moecli.diagnosis.learning import diagnose_live
    from moecli.record.folder import Run

    return [*diagnose(Run(path)), *diagnose_live(path)]


def _print(run: Path | None, findings: list[Finding], json: bool) -> None:
    from dataclasses import asdict

    from moecli.record.folder import to_json
    from moecli.report.terminal import visible

    levels = [finding.level for finding in findings]
    if json:
        result = {"run": run and str(run), "sound": "problem" not in levels, "findings": [*map(asdict, findings)]}
        sys.stdout.write(to_json(result).decode())
        return
    for finding in findings:
        print(visible(f" {MARKS[finding.level]:8s} {finding.check:10s} {finding.sentence}"))
    counts = ((levels.count(word), word) for word in ("problem", "warning"))
    print(" " + ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts))
