"""The arm obeys mechanics: energy, power, a textbook's double pendulum; and the task is scored as in 1994."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from moecli.tasks.arm import Arm
from moecli.tasks.robot_arm import ARM, RANGES, RobotArm

DRAW = np.random.default_rng(0)


def states(count, joints=4):
    return DRAW.uniform(-1.5, 1.5, (count, joints)), DRAW.uniform(-2, 2, (count, joints))


def moved(arm, q, v, torque, steps, dt):
    """Fourth-order Runge-Kutta."""

    def slope(q, v):
        return v, arm.acceleration(q, v, torque)

    for _ in range(steps):
        k1 = slope(q, v)
        k2 = slope(q + dt / 2 * k1[0], v + dt / 2 * k1[1])
        k3 = slope(q + dt / 2 * k2[0], v + dt / 2 * k2[1])
        k4 = slope(q + dt * k3[0], v + dt * k3[1])
        q, v = (x + dt / 6 * (a + 2 * b + 2 * c + d) for x, a, b, c, d in zip((q, v), k1, k2, k3, k4, strict=True))
    return q, v


def test_energy_stays_without_torque():
    q, v = states(8)
    before, kinetic = ARM.energy(q, v), ARM.energy(q, v) - ARM.energy(q, np.zeros_like(v))
    after, speed = moved(ARM, q, v, np.zeros_like(q), steps=25, dt=4e-3)
    assert ARM.energy(after, speed) == pytest.approx(before, abs=1e-6)
    drift = ARM.energy(after, speed) - ARM.energy(after, np.zeros_like(v)) - kinetic
    assert np.abs(drift).max() > 0.05  # gravity did work meanwhile, so neither part alone stays


def test_torque_times_speed_is_power():
    q, v = states(20)
    torque, dt = DRAW.uniform(-3, 3, q.shape), 1e-4
    gained = ARM.energy(*moved(ARM, q, v, torque, 1, dt)) - ARM.energy(*moved(ARM, q, v, torque, 1, -dt))
    assert gained / (2 * dt) == pytest.approx((torque * v).sum(1), abs=1e-4)
    assert gained / (2 * dt) != pytest.approx((torque * v)[:, :3].sum(1), abs=1e-4)


def test_forward_dynamics_invert_inverse_dynamics():
    q, v = states(50)
    a = DRAW.uniform(-9, 9, q.shape)
    assert ARM.acceleration(q, v, ARM.torque(q, v, a)) == pytest.approx(a, abs=1e-8)
    mass = ARM.mass_matrix(q)
    assert mass == pytest.approx(mass.transpose(0, 2, 1), abs=1e-12)
    assert np.linalg.eigvalsh(mass).min() > 0
    assert ARM.torque(q, 0 * v, a) - ARM.torque(q, 0 * v, 0 * a) == pytest.approx(np.einsum("nij,nj->ni", mass, a))


def test_two_parallel_joints_are_the_textbooks_double_pendulum():
    """Thin rods of length l and mass m about horizontal axes, q1 from the horizontal, q2 relative, positive downward."""
    (l1, l2), (m1, m2), g = (0.7, 0.4), (1.3, 0.8), 9.81
    arm = Arm(axes=((0, 1, 0), (0, 1, 0)), lengths=(l1, l2), masses=(m1, m2), radius=0.0, rotor=0.0)
    q, v = states(30, 2)
    c2, s2 = np.cos(q[:, 1]), np.sin(q[:, 1])
    m22 = m2 * l2**2 / 3 + 0 * c2
    m12 = m22 + m2 * l1 * l2 / 2 * c2
    m11 = m1 * l1**2 / 3 + m2 * l1**2 + m22 + m2 * l1 * l2 * c2
    assert arm.mass_matrix(q) == pytest.approx(np.stack([np.stack([m11, m12], -1), np.stack([m12, m22], -1)], 1))
    h = m2 * l1 * l2 / 2 * s2
    weight2 = -m2 * g * l2 / 2 * np.cos(q.sum(1))
    weight1 = -(m1 / 2 + m2) * g * l1 * np.cos(q[:, 0]) + weight2
    bias = np.stack([-h * (2 * v[:, 0] * v[:, 1] + v[:, 1] ** 2) + weight1, h * v[:, 0] ** 2 + weight2], -1)
    assert arm.torque(q, v, 0 * v) == pytest.approx(bias)
    assert arm.torque(q, v, 0 * v, gravity=0.0) != pytest.approx(bias)


@pytest.fixture(scope="module")
def task():
    return RobotArm()


def test_sizes_ranges_and_labels(task):
    assert task.sizes == {"train": 15_000, "valid": 1_500, "test": 5_000} and (task.dim, task.out) == (12, 4)
    x = task.splits["train"].x
    reach = torch.tensor([reach for reach, _ in RANGES.values()]).repeat_interleave(4)
    assert bool((x.abs() <= reach).all()) and (x.abs().amax(0) / reach).min() > 0.99
    for joint in range(4):
        assert torch.equal(task.splits["train"].labels[f"joint {joint + 1}"], (x[:, joint] > 0).long())
    rows = {tuple(row) for name in task.splits for row in task.splits[name].x[:, :3].tolist()}
    assert len(rows) == sum(task.sizes.values()), "no row is in two parts"
    assert RobotArm(rows=50).fingerprint == RobotArm(rows=50).fingerprint != RobotArm(rows=50, split_seed=1).fingerprint


def test_targets_are_the_arms_accelerations(task):
    test = task.splits["test"]
    q, v, torque = np.split(test.x.double().numpy(), 3, axis=1)
    target = test.target.double().numpy() * task.kind.scale + task.kind.center
    assert target == pytest.approx(ARM.acceleration(q, v, torque), abs=1e-3, rel=1e-4)


def test_relative_error_is_one_at_the_mean_and_a_third_of_it_linear(task):
    test = task.splits["test"]
    assert task.chance("test")["relative_error"] == pytest.approx(1, abs=2e-3)
    perfect = task.kind.summarise({"target": test.target, "mean": test.target})
    assert perfect["relative_error"] == 0 and perfect["r2"] == 1
    line = LinearRegression().fit(task.splits["train"].x, task.splits["train"].target)
    found = task.kind.summarise({"target": test.target, "mean": torch.from_numpy(line.predict(test.x))})
    assert 0.25 < found["relative_error"] < 0.35  # Jordan & Jacobs (1994) report 0.31 for their arm
