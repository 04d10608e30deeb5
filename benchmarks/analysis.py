"""What measuring costs: a million routed tokens analysed, and the trace's share of a step of the default text model.

python benchmarks/analysis.py            # both, about two minutes on two cores
python benchmarks/analysis.py tokens     # or one of them: tokens, trace
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

TOKENS, DOCUMENTS, LENGTH = 2**20, 2**11, 2**9
STEPS, EVERY = 9, 9  # of the training that is timed; evaluations every so many steps


def tokens() -> None:
    """Reading a layer of 2**20 tokens in 2**11 documents from its run folder, and every measure of it."""
    for num_experts, choices in ((8, 2), (64, 8)):
        with tempfile.TemporaryDirectory() as folder:
            writer = get_context("spawn").Process(target=write, args=(Path(folder), num_experts, choices))
            writer.start()  # in a process of its own, so that its memory does not count
            writer.join()
            from moecli.analysis.measures import measures
            from moecli.record.folder import Run

            run = Run(Path(folder))

            started, worked = time.perf_counter(), time.process_time()
            frame = measures(run)
            seconds, worked = time.perf_counter() - started, time.process_time() - worked
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        what = f"{TOKENS:,} tokens, {choices} of {num_experts} experts: {len(frame)} measures"
        print(f"{what} in {seconds:.1f} s ({worked:.1f} s of the processor), {peak:.2f} GiB")


def write(folder: Path, num_experts: int, choices: int) -> None:
    """A finished run of one layer whose documents have their own taste for experts."""
    from moecli.record.trace import write_arrays

    draw = np.random.default_rng(0)
    document = np.repeat(np.arange(DOCUMENTS, dtype=np.int32), TOKENS // DOCUMENTS)
    taste = draw.dirichlet(np.full(num_experts, 0.3), DOCUMENTS).astype(np.float32)[document]
    order = (np.log(taste + 1e-9) + draw.gumbel(size=taste.shape).astype(np.float32)).argsort(1)[:, ::-1]
    weight = np.sort(draw.random((TOKENS, choices), dtype=np.float32), axis=1)[:, ::-1]
    place = np.arange(TOKENS, dtype=np.int32)
    arrays = {
        "expert": order[:, :choices].astype(np.int16),
        "weight": weight / weight.sum(1, keepdims=True),
        **{name: draw.random(TOKENS, dtype=np.float32) for name in ("entropy", "margin", "logsumexp")},
        **{"position": place % LENGTH, "sequence": place // LENGTH, "document": document},
        **{name: draw.integers(0, 100, TOKENS).astype(np.int32) for name in ("id", "target", "predicted")},
        "label_domain": (document % 4).astype(np.int32),
        "label_character": draw.integers(0, 7, TOKENS).astype(np.int32),
    }
    (folder / "routing" / "layer0").mkdir(parents=True)
    write_arrays(folder / "routing" / "layer0" / "tokens-test-00000001.npz", arrays)
    info = {"status": "interrupted", "layers": {"layer0": {"experts": num_experts}}, "config": {}, "label_names": {}}
    (folder / "run.json").write_text(json.dumps(info))


def trace() -> None:
    """The share of a training step that goes into the trace, at the default length of the default text model."""
    import moecli
    from moecli import config
    from moecli.record.recorder import Recorder
    from moecli.record.trace import Trace
    from moecli.routing import Routing
    from moecli.training import evaluate, gradient

    spent: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[name].append(time.process_time() - started)

        return call

    usage = cached_property(timed("look", Routing.usage.func))  # type: ignore[attr-defined]
    usage.__set_name__(Routing, "usage")
    Routing.usage = usage  # type: ignore[assignment, method-assign]
    Recorder.step = timed("look", Recorder.step)  # type: ignore[method-assign]
    Trace.tokens = timed("evaluation", Trace.tokens)  # type: ignore[method-assign]
    evaluate.assignments = timed("evaluation", evaluate.assignments)
    gradient.Loop.train = timed("step", gradient.Loop.train)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        moecli.train("task=stdlib_text", f"trainer.steps={STEPS}", f"trainer.eval_every={EVERY}", runs=folder)
    steps = config.compose(["task=stdlib_text"]).config["trainer"]["steps"]
    looks = len(range(0, STEPS, gradient.LOOK))
    step = float(np.median(spent["step"]))
    look, evaluation = sum(spent["look"]) / looks, sum(spent["evaluation"]) / (STEPS // EVERY + 1)
    share = (look / gradient.LOOK + evaluation * 10 / steps) / step  # ten evaluations by default
    print(
        f"processor time: a step {1000 * step:.0f} ms; of each {gradient.LOOK}-th {1000 * look:.2f} ms for usage, of each evaluation "
        f"{1000 * evaluation:.0f} ms for tokens: {share:.2%} of {steps} steps"
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or ["tokens", "trace"]:
        {"tokens": tokens, "trace": trace}[name]()
