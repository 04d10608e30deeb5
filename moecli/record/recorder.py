"""What a trainer tells as it goes: into the run folder, and to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from moecli.record.folder import LineFile
from moecli.record.trace import Trace
from moecli.record.view import Progress, View
from moecli.routing import Usage


class Recorder:
    """Metrics and timings a line each, the routing trace, and the view.

    ``watch`` says what the gate believes over a plane, (M, E), where there is one to film; ``told`` hears the step
    and the metrics of each evaluation, and may end the training by raising Interrupted.
    """

    def __init__(
        self,
        folder: Path,
        view: View,
        watch: Callable[[], Tensor] | None = None,
        told: Callable[[int, Mapping[str, float]], None] | None = None,
    ):
        self.folder, self.view, self.watch, self.told = folder, view, watch, told
        self.refresh: Callable[[], None] = lambda: None  # who trains a copy of the model brings the model up to date
        self.metrics, self.timing = LineFile(folder / "metrics.jsonl"), LineFile(folder / "timing.jsonl")
        self.trace, self.progress = Trace(folder), Progress()

    def begin(self, steps: int, first: int = 0) -> None:
        """From the start, whatever an attempt without a checkpoint left is cut."""
        if first == 0:
            self.rewind(0, {"metrics": 0, "timing": 0})
        self.progress = Progress(step=first, steps=steps, first=first, warnings=self.progress.warnings)

    def position(self) -> dict[str, int]:
        """Where the files stand, for a checkpoint; all of them are on the disk up to here."""
        self.trace.flush()
        return {"metrics": self.metrics.flush(), "timing": self.timing.flush()}

    def rewind(self, step: int, position: Mapping[str, int]) -> None:
        """Cut the files to what a checkpoint of ``step`` had seen."""
        self.metrics.cut(position["metrics"])
        self.timing.cut(position["timing"])
        self.trace.rewind(step)

    def step(self, step: int, values: Mapping[str, float], usages: Mapping[str, Usage]) -> None:
        """Training values of one step (losses as they are, without weights), and who worked."""
        self.metrics.append({"step": step, "split": "train", "name": n, "value": v} for n, v in values.items())
        self.trace.usage(step, usages)
        if self.watch is not None and self.trace.frame_is_due(step):
            self.refresh()
            self.trace.frame(step, self.watch())
        losses = {n: v for n, v in values.items() if n != "lr"}
        self.progress.step, self.progress.values = step, losses
        for layer, usage in list(usages.items())[:1]:
            self.progress.layer, self.progress.load = layer, usage.load.tolist()
        self.view.show(self.progress)

    def evaluated(self, step: int, split: str, metrics: Mapping[str, float], note: str) -> None:
        self.metrics.append({"step": step, "split": split, "name": n, "value": v} for n, v in metrics.items())
        self.timing.append([{"step": step, "name": "seconds", "value": time.monotonic() - self.progress.started}])
        self.progress.step, self.progress.valid = step, note
        self.view.evaluated(self.progress)
        if self.told is not None:
            self.told(step, metrics)

    def warn(self, text: str) -> None:
        self.progress.warnings.append(text)
        self.view.warn(self.progress, text)

    def note(self, text: str) -> None:
        """A line of the log that is no warning."""
        self.view.say(text)

    def close(self) -> None:
        with ExitStack() as closing:  # all of them, also where the disk takes no more
            for part in (self.metrics, self.timing, self.view):
                closing.callback(part.close)
            self.trace.flush()
