"""The machine's own check: a line each, and what is wrong with a remedy."""

from __future__ import annotations

import os
from collections import namedtuple
from importlib import metadata

import pytest
import torch
from packaging.requirements import Requirement

from moecli.diagnosis import environment
from moecli.diagnosis.environment import check_environment, fault, tiny_training
from moecli.errors import EnvironmentFailure


def levels(findings):
    return [finding.level for finding in findings]


def test_this_machine_can_train(tmp_path):
    findings = check_environment(tmp_path / "not" / "there")
    assert "problem" not in levels(findings) and len(findings) >= 8
    assert {finding.check for finding in findings} == {"environment"}
    said = " ".join(finding.what for finding in findings)
    for needle in ("python 3.", f"torch {torch.__version__}", "extra parquet", "core", "GB free", "parts", "same bits"):
        assert needle in said, needle
    assert not list(tmp_path.iterdir())


def test_a_requirement_is_met_or_not():
    assert fault(Requirement("torch")) is None
    assert fault(Requirement("torch<0.1")) == f"is {metadata.version('torch')}"
    assert fault(Requirement("no-such-package-of-moecli")) == "missing"


def test_another_version_is_a_warning_and_a_missing_package_a_problem(monkeypatch):
    monkeypatch.setattr(
        environment, "requirements", lambda: [Requirement("torch<0.1"), Requirement("not-there-moe>=1")]
    )
    old, missing = environment._requirements()
    assert (old.level, missing.level) == ("warning", "problem")
    assert old.do == "python -m pip install 'torch<0.1'" and "not-there-moe" in missing.do


def test_a_missing_extra_says_how_to_get_it(monkeypatch):
    wanted = Requirement("not-there-moe>=1; extra == 'parquet'")
    monkeypatch.setattr(environment, "requirements", lambda: [wanted])
    found = {finding.what: finding for finding in environment._extras()}
    finding = found["extra parquet: not-there-moe missing"]
    assert finding.level == "skipped" and "pip install 'moecli[parquet]'" in finding.do


def test_a_full_disk_and_one_that_cannot_be_written(tmp_path, monkeypatch):
    assert levels(environment._disk(tmp_path)) == ["ok"]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda place: usage(1e6))
    assert levels(environment._disk(tmp_path)) == ["warning"]
    (tmp_path / "file").write_text("")
    (finding,) = environment._disk(tmp_path / "file")
    assert finding.level == "problem" and "MOE_RUNS" in finding.do


def test_more_threads_than_cores_are_a_warning(monkeypatch):
    monkeypatch.setattr(environment.torch, "get_num_threads", lambda: 10_000)
    (finding,) = environment._cores()
    assert finding.level == "warning" and "OMP_NUM_THREADS" in finding.do


def test_other_bits_and_a_loss_that_does_not_fall_are_told(monkeypatch):
    digests = iter("ab")
    monkeypatch.setattr(environment, "_train_tiny", lambda: environment._Tiny([1.0, 0.5], next(digests)))
    assert tiny_training().level == "warning"
    monkeypatch.setattr(environment, "_train_tiny", lambda: environment._Tiny([1.0, 1.0], "a"))
    assert tiny_training().level == "problem"


def test_a_training_that_fails_is_a_problem(monkeypatch):
    def fail():
        raise EnvironmentFailure("device=cuda: no GPU. Use device=cpu")

    monkeypatch.setattr(environment, "_train_tiny", fail)
    assert tiny_training().level == "problem"


def test_the_tiny_training_leaves_generator_and_threads_alone():
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first, again = environment._train_tiny(), environment._train_tiny()
    assert first == again and len(first.losses) == environment.STEPS
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_problem(tmp_path):
    tmp_path.chmod(0o500)
    assert levels(environment._disk(tmp_path / "runs")) == ["problem"]
