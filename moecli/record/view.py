"""What a training shows: a live table in a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.text import Text

from moecli.record.folder import naming, open_own

SHOWN_EXPERTS = 8  # in the live load bar
LOOKED = 80  # steps after which dead experts would have been seen
REFRESH = 0.15  # seconds between two pictures of the live table
BAR = 30  # characters of the progress bar


@dataclass
class Progress:
    """Where a training stands: the newest of everything."""

    step: int = 0
    steps: int = 1
    first: int = 0  # where this attempt began
    values: dict[str, float] = field(default_factory=dict)
    headline: str = ""
    valid: str = ""  # "valid accuracy 0.972 (chance 0.100, best 0.974)"
    load: list[float] = field(default_factory=list)  # of the first mixture layer
    layer: str = ""
    warnings: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> str:
        passed = time.monotonic() - self.started
        seconds = round(passed / max(self.step - self.first, 1) * (self.steps - self.step))
        return f"{seconds // 60}:{seconds % 60:02d} left"

    @property
    def losses(self) -> str:
        shown = {"train loss": self.values.get("loss")} | {
            name: value for name, value in self.values.items() if name not in ("loss", "total", "grad_norm")
        }
        return "   ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)


class Watched:
    """Standard output, which may go away: a closed terminal or pipe ends no training, and the log has it all."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Quiet:
    """Shows nothing, but keeps the log."""

    def __init__(self, console: Console, log: Path):
        self.console, self.log = console, log
        self.file = open(open_own(log, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8")  # noqa: SIM115

    def say(self, text: str) -> None:
        with naming(self.log):
            self.file.write(text + "\n")
            self.file.flush()

    def show(self, progress: Progress) -> None:
        pass

    def evaluated(self, progress: Progress) -> None:
        self.say(plain_line(progress))

    def warn(self, progress: Progress, text: str) -> None:
        self.say(f"warning: {text}")

    def close(self) -> None:
        with naming(self.log):
            self.file.close()


class Lines(Quiet):
    """A line at each evaluation, for pipes and log files."""

    def say(self, text: str) -> None:
        super().say(text)
        self.console.print(Text(text), soft_wrap=True)


class Table(Quiet):
    """Progress, losses and a load bar, drawn in place."""

    def __init__(self, console: Console, log: Path):
        super().__init__(console, log)
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.live.start()
        self.drawn = 0.0

    def say(self, text: str) -> None:
        super().say(text)
        self.live.console.print(Text(text), soft_wrap=True)

    def show(self, progress: Progress) -> None:
        if time.monotonic() - self.drawn > REFRESH:
            self.drawn = time.monotonic()
            self.live.update(picture(progress), refresh=True)

    def evaluated(self, progress: Progress) -> None:
        Quiet.say(self, plain_line(progress))

    def close(self) -> None:
        self.live.stop()
        super().close()


def plain_line(progress: Progress) -> str:
    width = len(str(progress.steps))
    return f"step {progress.step:>{width}}/{progress.steps}   {progress.losses}   {progress.valid}   {progress.left}"


def picture(progress: Progress) -> Text:
    """Three lines: how far, how well, who works."""
    done = round(BAR * progress.step / progress.steps)
    text = Text(f" step {progress.step:>5}/{progress.steps}  ")
    text.append("━" * done, "green").append("━" * (BAR - done), "bright_black").append(f"  {progress.left}\n")
    text.append(f" {progress.losses}   {progress.valid}\n")
    return text.append(load_bar(progress)) if progress.load else text


def load_bar(progress: Progress) -> str:
    top = max(progress.load)
    bars = [f"e{e} {'▇' * round(6 * s / top)} {s:.0%}" for e, s in enumerate(progress.load[:SHOWN_EXPERTS])]
    more = " …" if len(progress.load) > SHOWN_EXPERTS else ""
    looked = "no dead experts" if progress.step - progress.first >= LOOKED else ""
    state = f"{len(progress.warnings)} warnings" if progress.warnings else looked
    return f" load {progress.layer}  {'  '.join(bars)}{more}   {state}"


View = Quiet


def view(log: Path, quiet: bool = False) -> View:
    """The view that fits where standard output goes; ``log`` keeps what was said."""
    console = Console(highlight=False, file=cast(TextIO, Watched(sys.stdout)))
    kind: Callable[[Console, Path], View] = Quiet if quiet else Table if console.is_terminal else Lines
    return kind(console, log)
