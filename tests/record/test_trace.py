"""The routing trace gives back what was put in, in order, chunk after chunk."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moecli.compatibility import small_router
from moecli.errors import ArtifactError
from moecli.record import trace
from moecli.record.trace import Trace, TraceReader, assignments
from moecli.routing import Tokens, Usage
from moecli.tasks.task import Batch

FIELDS = ("asked", "served", "ranks", "first", "mass", "entropy", "tokens")


def usage(draw, experts):
    asked, served, *ranks, first = torch.from_numpy(draw.integers(0, 50, (5, experts)))
    return Usage(
        asked,
        served,
        torch.stack(ranks),
        first,
        torch.from_numpy(draw.random(experts)),
        torch.tensor(draw.random()),
        int(draw.integers(1, 99)),
    )


@given(st.integers(0, 260), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_usage_comes_back_in_order_whatever_the_chunks(tmp_path_factory, steps, experts, layers):
    folder, draw = tmp_path_factory.mktemp("trace"), np.random.default_rng(steps)
    recorded, written = Trace(folder), {f"layer{i}": [] for i in range(layers)}
    for step in range(steps):
        now = {name: usage(draw, experts) for name in written}
        recorded.usage(4 * step, now)
        for name, value in now.items():
            written[name].append(value)
    recorded.flush()
    recorded.flush()  # the second has nothing to write
    for name, values in written.items():
        back = TraceReader(folder).usage(name)
        assert len(list((folder / "routing" / name).glob("*.npz"))) == -(-steps // trace.CHUNK)
        if steps:
            assert back["step"].tolist() == [4 * s for s in range(steps)]
        for field in FIELDS if steps else ():
            expected = np.stack([np.asarray(getattr(v, field)) for v in values])
            assert np.array_equal(back[field], expected) and back[field].dtype == expected.dtype
            assert not np.array_equal(back[field] + 1, expected)


def brute(routing, batch, first_sequence):
    """Token by token, in plain Python."""
    rows = []
    weights = routing.plan.weights.detach()
    for n in range(len(weights)):
        ranked = sorted(range(weights.shape[1]), key=lambda e: -weights[n, e].item())[: trace.MOST_EXPERTS]
        example, position = int(routing.example[n]), int(routing.position[n])
        p = routing.probs[n].detach()
        rows.append(
            {
                "expert": [e if weights[n, e] > 0 else -1 for e in ranked],
                "weight": [weights[n, e].item() for e in ranked],
                "entropy": -sum(v * np.log(v) for v in p.tolist() if v > 0),
                "position": position,
                "sequence": example + first_sequence,
                "document": int(batch.document[example]),
                "label_kind": int(batch.labels["kind"][example]),
                "label_place": int(batch.labels["place"][example, position]),
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("router", ["dense", "top_k", "noisy_top_k", "expert_choice", "hash"])
def test_assignments_equal_brute_force(router, tmp_path):
    b, t, seen = 3, 5, []
    built, expected = small_router(router).eval(), []
    for part in range(2):
        torch.manual_seed(part)
        batch = Batch(
            torch.randint(0, 50, (b, t)),
            torch.zeros(b, t),
            {"kind": torch.randint(0, 4, (b,)), "place": torch.randint(0, 9, (b, t))},
            torch.randint(0, 100, (b,)),
            torch.arange(b),
        )
        routing = built(Tokens.sequences(torch.randn(b, t, 8), batch.x))
        seen.append(assignments(routing, batch, part * b))
        expected.append(brute(routing, batch, part * b))
    Trace(tmp_path).tokens(7, "test", "block1", seen)
    reader = TraceReader(tmp_path)
    back = reader.tokens("block1", "test")
    assert reader.steps("block1", "test") == [7] and reader.tokens("block1", "valid") == {}
    for name in expected[0]:
        whole = np.concatenate([part[name] for part in expected])
        assert back[name].shape == whole.shape
        assert np.allclose(back[name], whole, atol=1e-6), name
        if (router, name) not in {("hash", "weight"), ("hash", "entropy")}:  # all the same
            assert not np.allclose(back[name], np.roll(whole, 1, axis=0), atol=1e-6), name


def test_the_last_step_is_read_unless_another_is_asked_for(tmp_path):
    for step in (10, 200, 30):
        Trace(tmp_path).tokens(step, "valid", "layer0", [{"expert": np.array([[step]])}])
    reader = TraceReader(tmp_path)
    assert reader.steps("layer0", "valid") == [10, 30, 200]
    assert reader.tokens("layer0", "valid")["expert"].item() == 200
    assert reader.tokens("layer0", "valid", 30)["expert"].item() == 30


def test_a_run_without_a_trace_reads_as_empty(tmp_path):
    reader = TraceReader(tmp_path)
    assert reader.usage("layer0") == {} and reader.tokens("layer0", "test") == {} and reader.surface() == {}


def test_nothing_is_unpickled(tmp_path):
    folder = tmp_path / "routing" / "layer0"
    folder.mkdir(parents=True)
    np.savez(folder / "usage-00000000.npz", step=np.array([object()], dtype=object))
    with pytest.raises(ArtifactError, match="allow_pickle"):
        TraceReader(tmp_path).usage("layer0")


def filmed(folder, last):
    """A trace whose gate prefers expert ``step % 3`` everywhere, filmed up to step ``last``."""
    film = Trace(folder)
    for step in range(last):
        if film.frame_is_due(step):
            film.frame(step, torch.eye(3)[[step % 3] * 4])
    return film


def test_frames_come_ever_more_rarely_and_say_who_was_preferred(tmp_path):
    filmed(tmp_path, 1000)
    frames = TraceReader(tmp_path).frames()
    steps = [step for step, _ in frames]
    assert steps[:6] == [0, 1, 2, 3, 5, 7] and 15 <= len(steps) <= 25
    assert all((frame["expert"] == step % 3).all() and (frame["prob"] == 1).all() for step, frame in frames)


def test_a_film_goes_on_where_it_was_rewound_to(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    filmed(tmp_path / "whole", 300)
    filmed(tmp_path / "cut", 200).rewind(50)
    assert max(step for step, _ in TraceReader(tmp_path / "cut").frames()) < 50  # the control: it was cut
    filmed(tmp_path / "cut", 300)
    whole, cut = (TraceReader(tmp_path / name).frames() for name in ("whole", "cut"))
    assert [step for step, _ in whole] == [step for step, _ in cut]


def test_relabelling_renames_the_experts_of_a_film(tmp_path):
    filmed(tmp_path, 3).relabel("layer0", torch.tensor([2, 0, 1]))  # what was e2 is e0
    assert [int(frame["expert"][0]) for _, frame in TraceReader(tmp_path).frames()] == [1, 2, 0]
