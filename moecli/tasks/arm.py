"""A robot arm's equations of motion: joint angles, speeds and torques -> accelerations, all rows at once.

Vectors (n, 3) are in the frame of the ground, z up.  The inverse dynamics are the recursive
Newton-Euler equations (Luh, Walker & Paul, 1980); they are linear in the accelerations, which is how
the forward dynamics invert them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Arm:
    """Uniform rods in a row, each along its own x axis and turned by a joint at its near end.  SI units."""

    axes: tuple[tuple[float, float, float], ...]  # of each joint, in the frame of the rod before
    lengths: tuple[float, ...]
    masses: tuple[float, ...]
    radius: float = 0.05  # of every rod
    rotor: float = 0.02  # inertia of each joint's motor, kg m^2
    gravity: float = 9.81

    def torque(self, q: Array, v: Array, a: Array, gravity: float | None = None) -> Array:
        """Inverse dynamics: angles, speeds, accelerations, each (n, J) -> torques (n, J)."""
        lift = self.gravity if gravity is None else gravity  # standing still under gravity is being pushed up
        turn, axis = self._frames(q)
        rods = turn[..., 0] * np.array(self.lengths)[:, None]  # (n, J, 3) from joint to joint
        force, moment = self._inertial(turn, axis, rods, v, a, lift)
        torque = self.rotor * a
        carried_force, carried_moment = np.zeros_like(force[:, 0]), np.zeros_like(force[:, 0])
        for j in reversed(range(len(self.axes))):  # each joint carries the rods beyond it
            carried_moment = (
                carried_moment
                + moment[:, j]
                + np.cross(rods[:, j] / 2, force[:, j])
                + np.cross(rods[:, j], carried_force)
            )
            carried_force = carried_force + force[:, j]
            torque[:, j] += (axis[:, j] * carried_moment).sum(-1)
        return torque

    def mass_matrix(self, q: Array) -> Array:
        """(n, J) -> (n, J, J): a column is the torque of one unit acceleration, without speed or gravity."""
        units = np.eye(len(self.axes))
        columns = [self.torque(q, np.zeros_like(q), np.broadcast_to(unit, q.shape), gravity=0.0) for unit in units]
        return np.stack(columns, axis=-1)

    def acceleration(self, q: Array, v: Array, torque: Array) -> Array:
        """Forward dynamics: M(q) a = torque - (what the joints must bear anyway); each (n, J)."""
        free = torque - self.torque(q, v, np.zeros_like(q))
        return np.linalg.solve(self.mass_matrix(q), free[..., None])[..., 0]

    def energy(self, q: Array, v: Array) -> Array:
        """Kinetic plus potential, (n,) in joules: constant without torque."""
        turn, _ = self._frames(q)
        rods = turn[..., 2, 0] * np.array(self.lengths)  # (n, J) rise of each rod
        height = rods.cumsum(-1) - rods / 2
        kinetic = 0.5 * np.einsum("ni,nij,nj->n", v, self.mass_matrix(q), v)
        return kinetic + self.gravity * (height * np.array(self.masses)).sum(-1)

    def _frames(self, q: Array) -> tuple[Array, Array]:
        """Each rod's frame (n, J, 3, 3), axes as columns, and each joint's axis (n, J, 3)."""
        frame, frames, axes = np.broadcast_to(np.eye(3), (len(q), 3, 3)), [], []
        for j, axis in enumerate(self.axes):
            axes.append(frame @ np.array(axis))
            frame = frame @ rotation(np.array(axis), q[:, j])
            frames.append(frame)
        return np.stack(frames, 1), np.stack(axes, 1)

    def _inertial(self, turn: Array, axis: Array, rods: Array, v: Array, a: Array, lift: float) -> tuple[Array, Array]:
        """The force and the moment that move each rod: both (n, J, 3)."""
        spin = np.zeros((len(v), 3))  # angular velocity
        swing = np.zeros_like(spin)  # angular acceleration
        joint = np.broadcast_to([0.0, 0.0, lift], spin.shape)  # acceleration of the near end
        forces, moments = [], []
        for j, mass in enumerate(self.masses):
            turning = axis[:, j] * v[:, j, None]
            swing = swing + axis[:, j] * a[:, j, None] + np.cross(spin, turning)
            spin = spin + turning
            along = np.cross(swing, rods[:, j]) + np.cross(spin, np.cross(spin, rods[:, j]))
            inertia = turn[:, j] @ np.diag(self._moments(j)) @ turn[:, j].transpose(0, 2, 1)
            forces.append(mass * (joint + along / 2))
            moments.append(_times(inertia, swing) + np.cross(spin, _times(inertia, spin)))
            joint = joint + along
        return np.stack(forces, 1), np.stack(moments, 1)

    def _moments(self, j: int) -> Array:
        """A solid cylinder's moments of inertia about its centre: along it and across."""
        along = self.radius**2 / 2
        across = (3 * self.radius**2 + self.lengths[j] ** 2) / 12
        return self.masses[j] * np.array([along, across, across])


def rotation(axis: Array, angle: Array) -> Array:
    """Rodrigues' formula: unit axis (3,), angles (n,) -> (n, 3, 3)."""
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    sine, cosine = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)


def _times(matrix: Array, vector: Array) -> Array:  # (n, 3, 3), (n, 3) -> (n, 3)
    return (matrix @ vector[..., None])[..., 0]
