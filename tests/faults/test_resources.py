"""Memory, open files and kills by the system: numbers in the message, nothing leaked."""

from __future__ import annotations

import os

import pytest
import torch

import moecli.run
from moecli import config
from moecli.errors import EnvironmentFailure
from moecli.plots.gallery import draw_all
from moecli.record.folder import Run
from moecli.run import assemble, memory, train
from tests.faults.forking import TINY
from tests.faults.test_interruption import one_line, only_run

GIB = 2**30


def limited(size: int) -> str:
    return f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({size}, {size}))"


@pytest.mark.parametrize(
    "words", [["task=digits"], ["task=stdlib_text", "router=hash"], ["task=digits", "expert=several"]]
)
def test_a_model_that_no_machine_holds_is_refused_before_it_is_built(words, moe, tmp_path):
    done = moe("train", *words, "num_experts=1000000000", "--runs", tmp_path, setup=limited(8 * GIB))
    one_line(done, 5, "num_experts=1000000000: the weights alone need more than", "GB. Lower num_experts")
    assert not list(tmp_path.iterdir())


def test_the_count_of_weights_is_that_of_the_model(monkeypatch):
    """One byte less than its weights is refused, as many are not, and counting takes nothing from the generator."""
    composed = config.compose(["task=spirals", "expert=feed_forward", "threads=1"])
    built = assemble(composed)
    size = sum(parameter.nbytes for parameter in built.model.parameters())
    first = {name: tensor.clone() for name, tensor in built.model.state_dict().items()}
    monkeypatch.setattr(moecli.run, "memory", lambda device: size - 1)
    with pytest.raises(EnvironmentFailure, match="num_experts"):
        assemble(composed)
    monkeypatch.setattr(moecli.run, "memory", lambda device: size)
    again = assemble(composed).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_memory_is_the_machine_s_or_what_the_process_is_allowed(moe):
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory(torch.device("cpu")) <= whole
    allowed = f"{limited(20 * GIB)}; from moecli.run import memory, torch; import sys; sys.exit(memory(torch.device('cpu')) == 20 * 2**30)"
    assert moe(setup=allowed).code == (whole > 20 * GIB)


def test_memory_that_runs_out_later_is_one_line_with_numbers(moe, tmp_path):
    setup = "from moecli.training.gradient import Loop, torch; Loop.train = lambda *args: torch.empty(10**15)"
    done = moe("train", *TINY, "--quiet", "--runs", tmp_path, setup=setup)
    one_line(done, 5, "out of memory", "4000000000000000 bytes", "Lower trainer.batch_size")


def test_python_s_own_memory_error_is_the_environment_too(moe):
    setup = "from moecli import config\ndef full(*args): raise MemoryError\nconfig.compose = full"
    one_line(moe("train", "--cfg", setup=setup), 5, "out of memory")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_runs_and_pictures_leave_no_file_open(tmp_path, monkeypatch):
    monkeypatch.setattr(moecli.run, "_draw", lambda run: None)
    run = train(*TINY, runs=tmp_path)
    draw_all(run, ["curves"])
    before = descriptors()
    for _ in range(3):
        train(*TINY, runs=tmp_path)
        draw_all(Run(run.path), ["curves", "load"])
    monkeypatch.setattr(moecli.run, "summarise", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(*TINY, runs=tmp_path)
    assert descriptors() == before
    leaked = os.open(os.devnull, os.O_RDONLY)
    assert descriptors() == before + 1  # the count does count
    os.close(leaked)


@pytest.mark.slow
def test_two_hundred_pictures_with_few_descriptors(moe, tmp_path):
    assert moe("train", *TINY, "--runs", tmp_path).code == 0
    draw = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
    draw += (
        "from pathlib import Path; from moecli.plots.gallery import draw_all; from moecli.record.folder import Run\n"
    )
    draw += f"run = Run(Path({str(only_run(tmp_path).path)!r}))\n"
    draw += "sys.exit(sum(len(draw_all(run, ['curves'])) for _ in range(200)) == 200)"
    assert moe(setup=draw).code == 1


@pytest.mark.slow
def test_ten_thousand_steps_take_no_more_memory(tmp_path, monkeypatch):
    """Resident memory over the second half of a run grows by less than a kilobyte a step."""
    from moecli.training.gradient import Loop

    seen, real = {}, Loop.train

    def watched(loop, step):
        real(loop, step)
        if step in (5_000, 9_999):
            with open("/proc/self/statm") as file:
                seen[step] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    monkeypatch.setattr(Loop, "train", watched)
    monkeypatch.setattr(moecli.run, "_draw", lambda run: None)
    train(*TINY, "trainer.steps=10000", "trainer.eval_every=1000", runs=tmp_path)
    growth = (seen[9_999] - seen[5_000]) / 4_999
    print(f"{growth:.0f} bytes a step")
    assert growth < 1000
