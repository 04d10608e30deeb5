"""The forward dynamics of a robot arm with four joints: how it moves under the torques it is given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moecli.tasks.arm import Arm
from moecli.tasks.kinds import Regression, Scores
from moecli.tasks.task import Fact, InMemory, Split
from moecli.types import Seed, SeveralRows

ARM = Arm(axes=((0, 0, 1), (0, 1, 0), (0, 1, 0), (0, 0, 1)), lengths=(0.4,) * 4, masses=(1.0,) * 4)
RANGES = {"angle": (1.5, "rad"), "speed": (1.0, "rad/s"), "torque": (3.0, "N m")}  # each drawn uniformly in +- this
JOINTS = range(1, 5)
SIDES = ["negative", "positive"]


@dataclass(frozen=True)
class Accelerations(Regression):
    """A regression that also gives the error of Jordan & Jacobs (1994): 1 is always answering the mean."""

    def summarise(self, scores: Scores) -> dict[str, float]:
        target, mean = scores["target"].double(), scores["mean"].double()
        error, spread = (mean - target).square().sum(), (target - target.mean(0)).square().sum()
        return {**super().summarise(scores), "relative_error": (error / spread).item()}


class RobotArm(InMemory):
    """Angles, speeds and torques of four joints (N, 12) -> their accelerations (N, 4), without noise.

    ``rows`` train, a third as many test (15,000 and 5,000 in Jordan & Jacobs, 1994) and a tenth as many
    validate.  Targets are scaled to deviation 1 by training rows; metrics are in rad/s^2.  The labels
    say to which side each joint is bent: the arm's inertia depends on the last three.
    """

    def __init__(self, rows: SeveralRows = 15_000, split_seed: Seed = 0):
        self.feature_names = [f"{quantity} {joint}" for quantity in RANGES for joint in JOINTS]
        sizes = {"train": rows, "valid": max(rows // 10, 1), "test": max(rows // 3, 1)}
        drawn = {name: simulated(count, [split_seed, number]) for number, (name, count) in enumerate(sizes.items())}
        train = drawn["train"][1]
        center, scale = train.mean(0), train.std(0)
        splits = {name: _split(x, (y - center) / scale) for name, (x, y) in drawn.items()}
        targets = tuple(f"acceleration {joint}" for joint in JOINTS)
        kind = Accelerations(targets, tuple(scale.tolist()), tuple(center.tolist()))
        self.adopt(splits, kind, {f"joint {joint}": list(SIDES) for joint in JOINTS})
        self.fingerprint = hashlib.sha256(f"{self.fingerprint} {kind.scale} {kind.center}".encode()).hexdigest()

    def facts(self) -> list[Fact]:
        ranges = ", ".join(f"{name} {reach:g} {unit}" for name, (reach, unit) in RANGES.items())
        rods = ", ".join(f"{length:g} m {mass:g} kg" for length, mass in zip(ARM.lengths, ARM.masses, strict=True))
        return [
            Fact("arm", f"rods of {rods}; joints turn about z, y, y, z; gravity {ARM.gravity} m/s^2"),
            Fact("inputs", f"each uniform in plus or minus: {ranges}"),
            *super().facts(),
        ]


def simulated(count: int, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """States and torques (n, 12) and accelerations (n, 4), rounded so that every machine has the same bits."""
    reach = np.repeat([reach for reach, _ in RANGES.values()], len(JOINTS))
    x = (np.random.default_rng(seed).uniform(-1, 1, (count, len(reach))) * reach).round(6)
    return x, ARM.acceleration(*np.split(x, 3, axis=1)).round(6)


def _split(x: np.ndarray, y: np.ndarray) -> Split:
    inputs, target = (torch.from_numpy(values).float().clone() for values in (x, y))
    bent: Tensor = (inputs[:, : len(JOINTS)] > 0).long()
    return Split(inputs, target, {f"joint {joint}": bent[:, joint - 1].clone() for joint in JOINTS})
