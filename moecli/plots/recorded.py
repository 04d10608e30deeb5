"""The tokens that pictures are drawn of: the last ones recorded of a layer, of the test split where there are any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moecli.errors import ArtifactError
from moecli.record.folder import CHANGED, Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]
MOST_NAMED = 16  # characters of a label's value


@dataclass(frozen=True)
class Recorded:
    """What ``TraceReader.tokens`` holds of a layer, and where it comes from."""

    split: str
    step: int
    tokens: dict[str, Array]  # each (n, ...)

    @property
    def where(self) -> str:
        return f"{self.split} split, step {self.step}"

    @property
    def labels(self) -> list[str]:
        return [key.removeprefix("label_") for key in self.tokens if key.startswith("label_")]

    @property
    def first(self) -> Array:
        """Each token's heaviest expert (n,), -1 where nobody served it."""
        return self.tokens["expert"][:, 0].astype(int)


def last(run: Run, layer: str) -> Recorded | None:
    """None where no token of the layer was recorded.  Raises ArtifactError for tokens of another run."""
    reader = TraceReader(run.path)
    for split in ("test", "valid"):
        steps = reader.steps(layer, split)
        if steps:
            found = Recorded(split, steps[-1], reader.tokens(layer, split))
            _check(run, layer, found.tokens)
            return found
    return None


def _check(run: Run, layer: str, tokens: dict[str, Array]) -> None:
    sizes = {"expert": run.layers[layer]["experts"], "id": len(run.info.get("symbols", []))}
    for name in ("expert", "id") if sizes["id"] else ("expert",):
        numbers = tokens.get(name, np.empty(0))
        if numbers.size and not -1 <= numbers.min() <= numbers.max() < sizes[name]:
            raise ArtifactError(f"{run.path / 'routing' / layer}: {name}s that run.json does not know. {CHANGED}")


def chooses(run: Run) -> bool:
    """Whether a token's experts are a choice: a dense router's are all, however little weight some have."""
    return run.info.get("config", {}).get("router") != "dense"
