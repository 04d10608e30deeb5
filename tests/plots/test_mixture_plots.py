"""Pictures of classical mixtures: what they show equals the numbers in the run folder, and they appear only where they apply."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import moecli
from moecli.errors import UsageError
from moecli.plots import film, fit, gates, likelihood, responsibility, selection, tree
from moecli.plots.gallery import draw_all
from moecli.plots.plane import Plane, belief
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

from .looks import assert_clear, texts

E = 4
STEPS = (0, 1, 2, 5)


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moecli.plots.figure.DPI", 60)


def arrays(path: Path, **fields: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **fields)


def mixture(path: Path, experts: int = E, features: int = 2, gate: str = "tree", **config: object) -> Run:
    """Everything that a classical mixture by EM leaves behind."""
    rng = np.random.default_rng(0)
    path.mkdir(parents=True)
    own = {"task": "toy", "router": "dense", "model": "density", "gate": gate, "gate.branching": None, **config}
    info = {"config": own, "layers": {"layer0": {"experts": experts}}, "label_names": {"voice": ["ann", "bob"]}}
    (path / "run.json").write_text(json.dumps({**info, "kind": "regression", "best_step": 6, "fingerprint": "a"}))
    numbers = {"aic": 300.0 / experts, "bic": 310.0 / experts + 20 * experts, "icl": 320.0 / experts + 20 * experts}
    (path / "summary.json").write_text(json.dumps({"criteria": numbers}))
    nll = {"loss": [3.0, 2.0, 1.5, 1.6, 1.4], "joint_nll": [4.0, 3.0, 2.5, 2.4, 2.3]}
    lines = [
        {"step": step, "split": "train", "name": name, "value": value}
        for name, values in nll.items()
        for step, value in enumerate(values)
    ]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    resp = rng.dirichlet(np.full(experts, 0.2), 200)
    arrays(path / "routing/responsibilities.npz", resp=resp, x=rng.normal(size=(200, features)), target=resp[:, :1])
    expert = np.argsort(-resp, 1)
    weight = np.take_along_axis(resp, expert, 1)
    expert[weight < 0.01] = -1  # as the trace writes weights of zero
    arrays(
        path / "routing/layer0/tokens-test-00000006.npz", expert=expert, weight=weight, label_voice=np.arange(200) % 2
    )
    axis = np.linspace(-1, 1, 7)
    x = np.stack(np.meshgrid(*[axis] * features, indexing="ij"), -1).reshape(-1, features)
    surface = {"x": x, "gate": rng.dirichlet(np.ones(experts), len(x)), "prediction": x[:, :1], "data_x": x[:5]}
    arrays(path / "routing/surface.npz", **surface, data_y=x[:5, :1], deviation=0.25 + 0 * x[:, :1])
    for step in STEPS if features == 2 else ():
        frame = {"expert": np.full(len(x), step % experts, np.int16), "prob": np.full(len(x), 1.0, np.float16)}
        arrays(path / f"routing/frame-{step:08d}.npz", **frame)
    return Run(path)


def test_each_is_drawn_where_it_applies_and_only_there(tmp_path: Path) -> None:
    kinds = ["film", "fit", "gates", "likelihood", "responsibility", "tree"]
    plane = draw_all(mixture(tmp_path / "plane"), kinds)
    assert [p.name for p in plane] == [
        "film.gif",
        "gates-voice.png",
        "likelihood.png",
        "responsibility.png",
        "tree.png",
    ]
    line = draw_all(mixture(tmp_path / "line", features=1, gate="linear", model="layer"), kinds)
    assert [p.name for p in line] == ["fit.png", "likelihood.png", "responsibility.png"]
    sparse = mixture(tmp_path / "sparse", router="top_k")
    assert not gates.draw(sparse)
    (sparse.path / "metrics.jsonl").write_text(
        json.dumps({"step": 0, "split": "train", "name": "loss", "value": 1.0}) + "\n"
    )
    assert not likelihood.draw(sparse)  # a training by gradients


def test_likelihoods_rise_under_their_names_and_a_fall_is_crossed(tmp_path: Path) -> None:
    top, bottom = likelihood.draw(mixture(tmp_path / "r"))["likelihood"].figure.axes
    shown = {line.get_label(): line.get_ydata().tolist() for line in top.lines}
    assert shown == {"log p(y | x)": [-3.0, -2.0, -1.5, -1.6, -1.4], "log p(x, y)": [-4.0, -3.0, -2.5, -2.4, -2.3]}
    crosses = [line.get_xydata().tolist() for line in bottom.lines if line.get_marker() == "x"]
    assert crosses[1] == [] and crosses[0] == [[3.0, pytest.approx(0.1)]]
    assert "fell" in bottom.get_title(loc="left")


def test_one_likelihood_is_drawn_where_the_gate_does_not_model_x(tmp_path: Path) -> None:
    run = mixture(tmp_path / "r")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    same = [{**line, "value": 1 / (1 + line["step"])} for line in lines]
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in same))
    top = likelihood.draw(run)["likelihood"].figure.axes[0]
    assert [line.get_label() for line in top.lines] == ["log p(y | x)"]


def test_the_band_is_a_deviation_to_each_side(tmp_path: Path) -> None:
    run = mixture(tmp_path / "r", features=1, gate="linear")
    (band,) = fit.draw(run)["fit"].figure.axes[0].collections
    edges = band.get_paths()[0].vertices
    at_end = edges[np.isclose(edges[:, 0], 1.0), 1]
    assert at_end.max() == pytest.approx(1.25) and at_end.min() == pytest.approx(0.75)


@pytest.mark.parametrize("infinite", [slice(0, 3), slice(None)])
def test_where_the_deviation_is_infinite_there_is_no_band_and_it_is_said(infinite: slice, tmp_path: Path) -> None:
    """The variance of Student's t is infinite for two degrees of freedom and fewer."""
    run = mixture(tmp_path / "r", features=1, gate="linear")
    file = run.path / "routing/surface.npz"
    surface = dict(np.load(file))
    surface["deviation"][infinite] = np.inf
    np.savez(file, **surface)
    assert [path.name for path in draw_all(run, ["fit"])] == ["fit.png"]
    axes = fit.draw(run)["fit"].figure.axes[0]
    assert np.isfinite(axes.get_ylim()).all()
    assert "± 1 standard deviation, where finite" in [text.get_text() for text in axes.get_legend().texts]


def test_histograms_of_a_tree_count_every_row_and_leaves_are_named(tmp_path: Path) -> None:
    run = mixture(tmp_path / "r")
    resp = np.load(run.path / "routing/responsibilities.npz")["resp"]
    figure = tree.draw(run)["tree"].figure
    written = texts(figure)
    assert {f"e{e}" for e in range(E)} <= set(written) and "200 rows" in written
    shares = [resp[:, :2].sum(1), resp[:, 2:].sum(1), *resp.T]  # two nodes, then four leaves
    numbers = [text for text in written if re.fullmatch(r"\d+", text)]
    assert numbers == [f"{100 * share.mean():.0f}" for share in shares]
    bars = figure.axes[0].containers
    assert len(bars) == 6
    counts, _ = np.histogram(shares[0], 10, (0, 1))
    heights = np.array([bar.get_height() for bar in bars[0]])
    np.testing.assert_allclose(heights / heights.max(), counts / counts.max())
    leaf, _ = np.histogram(resp[:, 0] / shares[0], 10, (0, 1), weights=shares[0])
    heights = np.array([bar.get_height() for bar in bars[2]])
    np.testing.assert_allclose(heights / heights.max(), leaf / leaf.max())
    assert not np.allclose(
        leaf / leaf.max(), np.histogram(resp[:, 0], 10, (0, 1))[0] / 200
    )  # the control: of its parent


def test_a_wide_tree_says_which_levels_it_leaves_out(tmp_path: Path) -> None:
    figure = tree.draw(mixture(tmp_path / "r", experts=32))["tree"].figure
    assert "1 deeper levels not shown" in figure.get_suptitle() and len(figure.axes[0].containers) == 30


def test_bars_are_mean_gates_and_missing_experts_count_as_zero(tmp_path: Path) -> None:
    run = mixture(tmp_path / "r")
    figure = gates.draw(run)["gates-voice"].figure
    tokens = np.load(run.path / "routing/layer0/tokens-test-00000006.npz")
    by_hand = np.zeros((200, E))
    for row, (experts, weights) in enumerate(zip(tokens["expert"], tokens["weight"], strict=True)):
        for expert, weight in zip(experts, weights, strict=True):
            by_hand[row, expert] += weight if expert >= 0 else 0
    for value, axes in enumerate(figure.axes):
        heights = [bar.get_height() for bar in axes.patches]
        np.testing.assert_allclose(heights, by_hand[value::2].mean(0), atol=1e-6)
    assert [axes.get_ylabel() for axes in figure.axes] == ["ann", "bob"]
    assert any("uniform\n1/4" in text for text in texts(figure))


def test_colours_mix_by_responsibility(tmp_path: Path) -> None:
    run = mixture(tmp_path / "r")
    arrays(run.path / "routing/responsibilities.npz", resp=np.eye(E)[[0, 1, 1]], x=np.eye(3)[:, :2], target=np.ones(3))
    (points,) = responsibility.draw(run)["responsibility"].figure.axes[0].collections
    first, second, third = points.get_facecolor()[:, :3]
    assert (second == third).all() and not np.allclose(first, second)
    np.testing.assert_allclose(first, [0, 0x72 / 255, 0xB2 / 255])  # the first of Okabe and Ito


def test_a_film_has_a_frame_a_record_and_ends_on_the_best(tmp_path: Path) -> None:
    run = mixture(tmp_path / "r")
    (path,) = draw_all(run, ["film"])
    with Image.open(path) as gif:
        assert gif.n_frames == len(STEPS) + 1
    found = film.draw(run)["film"]
    shown = []
    for number in range(found.length):
        found.show(number)
        shown.append((found.figure.axes[0].get_title(), found.figure.axes[0].images[0].get_array()[0, 0].tolist()))
    assert [title for title, _ in shown] == [*(f"after step {step + 1}" for step in STEPS), "best, step 6"]
    palette = belief(np.arange(E), np.ones(E), E)
    for step, (_, color) in zip(STEPS, shown, strict=False):
        np.testing.assert_allclose(color, palette[step % E])


def test_a_plane_lies_as_an_image_and_anything_else_is_none() -> None:
    x = np.array([[1.0, 0], [0, 1], [0, 0], [1, 1]])
    plane = Plane.of(x)
    assert plane is not None
    np.testing.assert_array_equal(plane.image(x[:, 0] + 10 * x[:, 1]), [[0, 1], [10, 11]])
    assert plane.extent == (-0.5, 1.5, -0.5, 1.5)
    assert Plane.of(x[:3]) is None and Plane.of(x[:, :1]) is None


def test_criteria_over_experts_ring_the_lowest(tmp_path: Path) -> None:
    runs = [mixture(tmp_path / str(experts), experts) for experts in (2, 4, 8)]
    axes = selection.over_experts(runs).figure.axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["AIC", "BIC", "ICL"]
    np.testing.assert_allclose(lines["BIC"], [[e, 310 / e + 20 * e] for e in (2, 4, 8)])
    rings = [line.get_xdata()[0] for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert rings == [8, 4, 4]  # BIC: 155 + 40, 77.5 + 80, 38.75 + 160
    with pytest.raises(UsageError, match="two or more values of num_experts"):
        selection.over_experts(runs[:1])
    other = json.loads((runs[0].path / "run.json").read_text()) | {"fingerprint": "b"}
    (runs[0].path / "run.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match="different data"):
        selection.over_experts([Run(runs[0].path), *runs[1:]])


@pytest.mark.parametrize("kind", ["tree", "gates", "likelihood", "responsibility", "film", "criteria", "fit"])
def test_no_texts_overlap_or_leave_the_figure(kind: str, tmp_path: Path) -> None:
    run = mixture(tmp_path / "r", experts=16 if kind == "tree" else E, features=1 if kind == "fit" else 2)
    drawn = {
        "tree": lambda: tree.draw(run)["tree"].figure,
        "gates": lambda: gates.draw(run)["gates-voice"].figure,
        "likelihood": lambda: likelihood.draw(run)["likelihood"].figure,
        "responsibility": lambda: responsibility.draw(run)["responsibility"].figure,
        "film": lambda: film.draw(run)["film"].figure,
        "criteria": lambda: selection.over_experts([run, mixture(tmp_path / "s", 8)]).figure,
        "fit": lambda: fit.draw(run)["fit"].figure,
    }[kind]()
    assert_clear(drawn, fewest=5)


@pytest.mark.parametrize("trainer", ["em", "gradient"])
def test_a_training_leaves_what_the_pictures_need(trainer: str, tmp_path: Path) -> None:
    words = ["task=regions", "task.rows=150", "model=density", "router=dense", "gate=linear"]
    run = moecli.train(*words, f"trainer={trainer}", "trainer.steps=9", runs=tmp_path)
    reader = TraceReader(run.path)
    found, surface = reader.responsibilities(), reader.surface()
    np.testing.assert_allclose(found["resp"].sum(1), 1, atol=1e-5)
    assert len(found["x"]) == len(found["target"]) == len(found["resp"])
    assert (surface["deviation"] > 0).all() and surface["deviation"].shape == surface["prediction"].shape
    (first, start), *_, (_, end) = reader.frames()
    assert first == 0 and not np.array_equal(start["prob"], end["prob"])  # EM films the copy that it fits
    assert (run.path / "plots/film.gif").is_file() and (run.path / "plots/responsibility.png").is_file()
    assert "failed" not in (run.path / "log.txt").read_text()
