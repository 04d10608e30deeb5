"""A run may begin from another's weights, or from the experts of several side by side."""

from __future__ import annotations

import pytest
import torch

import moecli
from moecli.errors import ArtifactError, UsageError
from moecli.run import best_weights

SMALL = ("task=piecewise", "task.rows=120", "trainer.steps=3", "trainer.eval_every=3")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two runs of one expert each, from different seeds."""
    root = tmp_path_factory.mktemp("alone")
    return [moecli.train(*SMALL, "num_experts=1", "gate=constant", f"seed={s}", runs=root, name="one") for s in (1, 2)]


def listed(runs) -> str:
    return f"init=[{','.join(str(run.path) for run in runs)}]"


def test_experts_of_several_runs_stand_side_by_side(alone, tmp_path):
    frozen = "trainer.phases=[{steps: 3, train: ['*.router.*']}]"
    together = best_weights(moecli.train(*SMALL, "num_experts=2", frozen, listed(alone), runs=tmp_path))
    sources = [best_weights(run) for run in alone]
    names = [name for name in together if ".experts." in name or ".family." in name]
    assert {name.split(".")[1] for name in names} == {"experts", "family"}
    for name in names:
        assert torch.equal(together[name], torch.cat([source[name] for source in sources]))
        assert not torch.equal(sources[0][name], sources[1][name]) or "family" in name


def test_as_many_experts_as_the_runs_have(alone, tmp_path):
    with pytest.raises(ArtifactError, match="init="):
        moecli.train(*SMALL, "num_experts=3", listed(alone), runs=tmp_path)


def test_weights_that_each_run_has_of_its_own_are_refused(tmp_path):
    words = ("task=digits", "trainer.steps=2", "router=dense", "num_experts=1")
    run = moecli.train(*words, runs=tmp_path, name="headed")
    with pytest.raises(UsageError, match="model=density"):
        moecli.train(*words[:3], "num_experts=2", listed([run, run]), runs=tmp_path)


def test_a_list_is_refused_before_any_work_where_one_is_no_run(alone, tmp_path):
    with pytest.raises(ArtifactError, match="no run folder"):
        moecli.train(*SMALL, f"init=[{alone[0].path},{tmp_path / 'none'}]", runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
