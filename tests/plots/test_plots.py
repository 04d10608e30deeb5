"""Pictures of synthetic run folders: drawn where the data is, honest in every label, and leaving nothing open."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from matplotlib import _pylab_helpers
from matplotlib.figure import Figure
from matplotlib.text import Text

from moecli.errors import ArtifactError, UsageError
from moecli.plots import curves, fit, labels, load, regions
from moecli.plots.figure import safe, smooth, stem
from moecli.plots.gallery import STANDARD, draw_all, kinds, pictures
from moecli.record.folder import Run

from .looks import assert_clear, texts

HOSTILE = [
    r"$\frac{1$",
    "_hidden",
    "x" * 10_000,
    "中文🙂",
    "<script>",
    "cost $5 to $10",
    "",
    "[/oops]",
    "a\nb",
    "\udcff",
]
PLAIN = [str(digit) for digit in range(10)]


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pixels: the files are written here, not looked at."""
    monkeypatch.setattr("moecli.plots.figure.DPI", 60)


def folder(path: Path, num_experts: int = 8, **info: object) -> Path:
    """A run folder that has nothing to draw."""
    path.mkdir(parents=True)
    config = {"task": "digits", "router": "top_k"}
    (path / "run.json").write_text(json.dumps({"config": config, "layers": {"0": {"experts": num_experts}}, **info}))
    (path / "summary.json").write_text(json.dumps({"chance": {"valid/accuracy": 0.1}}))
    return path


def arrays(path: Path, **fields: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **fields)


def digits(path: Path, names: list[str] = PLAIN, num_experts: int = 8, auxiliary: str = "balance") -> Run:
    """Metrics, usage with drops and tokens of one layer."""
    rng = np.random.default_rng(0)
    info = {"headline": "accuracy", "units": {"loss": "nats"}, "label_names": {"class": names}}
    folder(path, num_experts, kind="classification", **info)
    metrics = [
        {"step": step, "split": split, "name": name, "value": value}
        for step in range(0, 400, 5)
        for split, name, value in (
            ("train", "loss", None if step == 200 else 2.3 / (1 + step)),
            ("train", "total", 3.0),
            ("train", auxiliary, 1 + 1 / (1 + step)),
            ("valid", "accuracy", 1 - 0.9 / (1 + step)),
        )
    ]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in metrics))
    step = np.arange(0, 400, 5)
    asked = rng.multinomial(512, rng.dirichlet(np.full(num_experts, 5.0)), len(step))
    served = np.minimum(asked, 1.25 * 512 / num_experts).astype(int)
    arrays(path / "routing/0/usage-00000000.npz", step=step, asked=asked, served=served)
    label = np.arange(300) % len(names)
    expert = np.stack([label % num_experts, (label + 1) % num_experts], 1)
    weight = rng.dirichlet([2, 1], 300)
    arrays(path / "routing/0/tokens-test-00000400.npz", expert=expert, weight=weight, label_class=label)
    return Run(path)


def gate_of(x: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Softmax of squared distances: (M, D), (E, D) -> (M, E)."""
    logits = -20 * np.square(x[:, None] - centers).sum(-1)
    gate = np.exp(logits - logits.max(1, keepdims=True))
    return gate / gate.sum(1, keepdims=True)


def line(path: Path, num_experts: int = 8, with_experts: bool = True) -> Run:
    """A surface over one feature."""
    rng = np.random.default_rng(1)
    x, centers = np.linspace(-1.1, 1.1, 221)[:, None], np.linspace(-1, 1, num_experts)[:, None]
    gate, experts = gate_of(x, centers), rng.normal(size=num_experts) * (x - centers.T)  # (M, E)
    data_x = rng.uniform(-1, 1, (50, 1))
    fields = {"x": x, "gate": gate, "prediction": (gate * experts).sum(1, keepdims=True), "data_x": data_x}
    more = {"experts": experts[:, :, None]} if with_experts else {}
    folder(path, num_experts, kind="regression", feature_names=["x"])
    arrays(path / "routing/surface.npz", **fields, data_y=np.sin(data_x), **more)
    return Run(path)


def plane(path: Path, kind: str, names: list[str] = PLAIN[:3], num_experts: int = 8) -> Run:
    """A surface over two features; truth and prediction are the same function of them."""
    rng = np.random.default_rng(2)
    axis = np.linspace(-1, 1, 31)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    data_x, centers = rng.uniform(-1, 1, (60, 2)), rng.uniform(-1, 1, (num_experts, 2))
    if kind == "classification":
        truth = np.arange(60) % len(names)
        prediction = rng.dirichlet(np.ones(len(names)), len(x))
    else:
        truth, prediction = data_x[:, :1], x[:, :1]
    folder(path, num_experts, kind=kind, feature_names=["long", "lat"], label_names={"class": names})
    surface = {"x": x, "prediction": prediction, "gate": gate_of(x, centers), "data_x": data_x, "data_y": truth}
    arrays(path / "routing/surface.npz", **surface)
    return Run(path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    """One figure of every kind, and of every variant of it."""
    root = tmp_path_factory.mktemp("runs")
    few, many = digits(root / "digits"), digits(root / "many", num_experts=20)
    return {
        "curves": curves.draw(few)["curves"].figure,
        "load": load.draw(few)["load-0"].figure,
        "load of sixteen": load.draw(digits(root / "sixteen", num_experts=16))["load-0"].figure,
        "load of many": load.draw(many)["load-0"].figure,
        "labels": labels.draw(few)["labels-0-class"].figure,
        "labels of many": labels.draw(many)["labels-0-class"].figure,
        "regions": regions.draw(plane(root / "classes", "classification"))["regions"].figure,
        "regions of values": regions.draw(plane(root / "values", "regression"))["regions"].figure,
        "regions of hostile": regions.draw(plane(root / "hostile", "classification", HOSTILE))["regions"].figure,
        "fit": fit.draw(line(root / "line"))["fit"].figure,
        "fit of many": fit.draw(line(root / "lines", num_experts=20))["fit"].figure,
    }


def test_every_kind_draws_from_its_data_and_nothing_without(tmp_path: Path) -> None:
    assert set(kinds()) == {
        *STANDARD, "coactivation", "confidence", "flow", "layers", "saturation", "simplex", "slots", "text", "vocabulary",
    }  # fmt: skip
    assert len(STANDARD) == 11
    assert all(len(line) > 20 for line in kinds().values())
    whole = [digits(tmp_path / "d"), line(tmp_path / "l"), plane(tmp_path / "p", "classification")]
    paths = [path for run in whole for path in draw_all(run)]
    assert [path.stem for path in paths] == ["curves", "labels-0-class", "load-0", "fit", "regions"]
    assert all(path.parent.name == "plots" and path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert draw_all(Run(folder(tmp_path / "bare"))) == []
    assert not (tmp_path / "bare/plots").exists()


def test_an_interrupted_run_has_curves_without_chance(tmp_path: Path) -> None:
    run = digits(tmp_path / "d")
    (run.path / "summary.json").unlink()
    assert not any("chance" in text for text in texts(curves.draw(run)["curves"].figure))


def test_unknown_kind_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'curve': .*Did you mean curves\?") as error:
        draw_all(Run(folder(tmp_path / "bare")), ["curve"])
    assert "\n" not in str(error.value)


def test_a_failing_picture_is_heard_and_those_before_it_stay(tmp_path: Path) -> None:
    run = digits(tmp_path / "d")
    (run.path / "routing/0/usage-00000000.npz").write_bytes(b"no zip")
    drawing = pictures(run, ["curves", "load"])
    assert next(drawing).is_file()
    with pytest.raises(ArtifactError, match="zip"):
        next(drawing)


def test_titles_name_run_and_layer_and_axes_their_quantity(drawn: dict[str, Figure]) -> None:
    for kind, figure in drawn.items():
        assert figure.get_suptitle().startswith("digits · top_k\n")
        assert kind == "curves" or "layer 0" in figure.get_suptitle(), kind
        assert figure.get_figwidth() == pytest.approx(100 / 25.4)
        assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 8
        assert all(axes.get_ylabel() or axes.get_xlabel() for axes in figure.axes), kind


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("curves", "chance\n0.1"),
        ("load", "uniform 1/8"),
        ("load of many", "uniform 1/20"),
        ("labels", "all · 300"),
        ("regions", "1/8 (uniform)"),
        ("fit", "uniform\n1/8"),
    ],
)
def test_chance_is_marked(drawn: dict[str, Figure], kind: str, text: str) -> None:
    assert any(text in written for written in texts(drawn[kind]))


def test_chance_lines_lie_at_their_value(drawn: dict[str, Figure]) -> None:
    for kind, panel, value in (("curves", 1, 0.1), ("load", 0, 1 / 8), ("fit", 1, 1 / 8)):
        levels = [line for line in drawn[kind].axes[panel].lines if line.get_label() == "_level"]
        assert [list(line.get_ydata()) for line in levels] == [[value, value]]


@pytest.mark.parametrize(("kind", "count"), [("load", 8), ("load of sixteen", 16), ("regions", 8), ("fit", 8)])
def test_as_many_names_as_experts(drawn: dict[str, Figure], kind: str, count: int) -> None:
    names = {text for text in texts(drawn[kind]) if re.fullmatch(r"e\d+", text)}
    assert names == {f"e{expert}" for expert in range(count)}


OVERLAP_FREE = ["curves", "load", "load of sixteen", "load of many", "labels", "regions", "regions of hostile", "fit"]


@pytest.mark.parametrize("kind", [*OVERLAP_FREE, "regions of values"])
def test_no_texts_overlap_or_leave_the_figure(drawn: dict[str, Figure], kind: str) -> None:
    assert_clear(drawn[kind])


def test_shares_equal_those_by_hand(tmp_path: Path) -> None:
    """Asked 4+4 and 6+2, served 4+4 and 4+2: shares 1/2, 1/2 and 2/3, 1/3; dropped 0 and 2 of 8."""
    path = folder(tmp_path / "r", 2)
    asked, served = np.array([[4, 4], [6, 2]]), np.array([[4, 4], [4, 2]])
    arrays(path / "routing/0/usage-00000000.npz", step=np.array([0, 10]), asked=asked, served=served)
    top, bottom = load.draw(Run(path))["load-0"].figure.axes
    assert [list(line.get_ydata()) for line in top.lines[:2]] == [[1 / 2, pytest.approx(2 / 3)], [1 / 2, 1 / 3]]
    assert list(bottom.lines[-1].get_ydata()) == [0, 25]


def test_label_shares_equal_those_by_hand(tmp_path: Path) -> None:
    """Each token counts once: label 0 gives (1, 0) and (.75, .25), label 2 gives (0, 1); nobody serves the last."""
    path = folder(tmp_path / "r", 2, label_names={"class": ["a", "b", "c"]})
    expert, weight = np.array([[0, -1], [0, 1], [1, -1], [-1, -1]]), np.array([[2, 9], [0.3, 0.1], [0.5, 0], [0, 0]])
    label = np.array([0, 0, 2, 1])
    arrays(path / "routing/0/tokens-valid-00000007.npz", expert=expert, weight=weight, label_class=label)
    figure = labels.draw(Run(path))["labels-0-class"].figure
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[87.5, 12.5], [0, 100], [175 / 3, 125 / 3]], rtol=1e-6)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a · 2", "c · 1", "all · 3"]
    assert "valid split, step 7" in figure.get_suptitle()


def test_forty_of_many_label_values_are_shown(tmp_path: Path) -> None:
    figure = labels.draw(digits(tmp_path / "d", [f"word {i}" for i in range(90)]))["labels-0-class"].figure
    assert len(figure.axes[0].get_yticks()) == 41
    assert "the 40 most frequent of 90 values" in figure.get_suptitle().replace("\n", " ")


def test_regions_stand_where_the_grid_says(tmp_path: Path) -> None:
    """The prediction is x itself: it grows to the right and is the same in each row."""
    axes = regions.draw(plane(tmp_path / "p", "regression"))["regions"].figure.axes[1]
    image = axes.images[0].get_array()
    np.testing.assert_allclose(image, np.tile(np.linspace(-1, 1, 31), (31, 1)))


def test_fit_does_without_the_experts_lines(tmp_path: Path) -> None:
    top = fit.draw(line(tmp_path / "l", with_experts=False))["fit"].figure.axes[0]
    assert [drawn.get_label() for drawn in top.lines] == ["test points", "mixture"]


def test_fit_is_strong_where_the_gate_prefers_the_expert(tmp_path: Path) -> None:
    top = fit.draw(line(tmp_path / "l", num_experts=2))["fit"].figure.axes[0]
    strong = [~np.isnan(drawn.get_ydata()) for drawn in top.lines if drawn.get_linewidth() > 2]
    assert len(strong) == 2 and np.all(strong[0] ^ strong[1])


def test_hostile_labels_neither_raise_nor_vanish(tmp_path: Path) -> None:
    auxiliary = r"_$\frac{1$"
    runs = [digits(tmp_path / "d", HOSTILE, auxiliary=auxiliary), plane(tmp_path / "p", "classification", HOSTILE)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len([path for run in runs for path in draw_all(run)]) == 4
    rows = [tick.get_text() for tick in labels.draw(runs[0])["labels-0-class"].figure.axes[0].get_yticklabels()]
    assert [row.rpartition(" · ")[2] for row in rows] == ["30"] * 10 + ["300"]
    assert len(set(rows)) == 11
    legend = regions.draw(runs[1])["regions"].figure.legends[1]
    assert len(legend.get_texts()) == len(HOSTILE)
    assert any(r"\frac" in text for text in texts(curves.draw(runs[0])["curves"].figure))


def test_hostile_layers_and_label_names_stay_in_the_folder(tmp_path: Path) -> None:
    names = ["../up", "a b", "a/b", "a-b", "$x$", "x" * 300, "中"]
    stems = [stem("load", name) for name in names]
    assert len(set(stems)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,80}", found) for found in stems)


@pytest.mark.parametrize("text", HOSTILE)
def test_safe_is_short_plain_and_not_hidden(text: str) -> None:
    shown = safe(text)
    assert shown.strip() and not shown.startswith("_") and "\n" not in shown
    assert len(shown.replace(r"\$", "$")) <= 25
    assert shown.count("$") == shown.count(r"\$")


def test_smooth_is_a_mean_over_what_is_finite() -> None:
    np.testing.assert_allclose(smooth(np.array([1.0, 2, 6, np.nan, 4]), 3), [1.5, 3, 4, np.nan, 4])


def test_nothing_stays_open(tmp_path: Path) -> None:
    run = digits(tmp_path / "d")
    draw_all(run, ["labels"])  # fonts are opened once and kept
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), len(list((run.path / "plots").iterdir()))
    draw_all(run, ["load"])
    (run.path / "plots/load-0.png").unlink()
    (run.path / "plots/load-0.csv").unlink()
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), len(list((run.path / "plots").iterdir()))) == before
    assert not _pylab_helpers.Gcf.figs


def test_a_wrong_backend_and_no_display_do_not_matter() -> None:
    code = "import sys, moecli.plots.figure; assert 'matplotlib.pyplot' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MPLBACKEND": "bogus"}
    env.pop("DISPLAY", None)
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_each_kind_is_one_module_with_one_public_function() -> None:
    for kind in kinds():
        module = import_module(f"moecli.plots.{kind}")
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        assert [name for name in own if not name.startswith("_")] == ["draw"]
