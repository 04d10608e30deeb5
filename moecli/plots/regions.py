"""Decision regions in the plane: which expert the gate prefers, beside what the mixture predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from moecli.plots.figure import KEY, MARKERS, Picture, class_colors, expert_key, heading, new, safe, styled
from moecli.plots.plane import Extent, Plane, belief, tint
from moecli.record.folder import Run
from moecli.record.trace import TraceReader

Array = np.ndarray[Any, Any]
LISTED = len(MARKERS)  # classes a legend can list
POINTS: dict[str, Any] = {"s": 9, "edgecolors": "black", "linewidths": 0.4}


@styled
def draw(run: Run) -> dict[str, Picture]:
    """The gate on the left, the mixture on the right, test points on both."""
    surface = TraceReader(run.path).surface()
    plane = Plane.of(surface["x"]) if surface and run.layers else None
    if plane is None:
        return {}
    gate, prediction, extent = plane.image(surface["gate"]), plane.image(surface["prediction"]), plane.extent
    classes, num_experts = run.info.get("kind") == "classification", gate.shape[-1]
    height = _height(num_experts, _class_names(run, prediction.shape[-1]) if classes else [])
    figure, grid = new(_title(run, num_experts), height, 1, 2, sharex=True, sharey=True)
    left, right = grid[0]
    left.imshow(belief(gate.argmax(-1), gate.max(-1), num_experts), origin="lower", extent=extent)
    left.set_title("gate: preferred expert")
    left.scatter(*surface["data_x"].T, color="black", **{**POINTS, "s": 4, "linewidths": 0.0})
    expert_key(figure, left, num_experts, 4, "left")
    if classes:
        _classes(run, right, prediction, extent, surface)
    else:
        _values(right, prediction[..., 0], extent, surface)
    left.set(xlim=extent[:2], ylim=extent[2:])
    _name_axes(run, left, right)
    return {"regions": Picture(figure, _numbers(surface, classes))}


def _numbers(surface: dict[str, Array], classes: bool) -> dict[str, Array]:
    """Each point of the plane: the gate's favourite, its probability, and the class or mean that is predicted."""
    (x, y), gate, prediction = surface["x"].T, surface["gate"], surface["prediction"]
    shown = {"class": prediction.argmax(-1)} if classes else {"mean": prediction[:, 0]}
    return {"x": x, "y": y, "expert": gate.argmax(-1), "p(expert | x)": gate.max(-1), **shown}


def _title(run: Run, num_experts: int) -> str:
    what = heading(run, "gate and mixture over the plane, test points", next(iter(run.layers)))
    return f"{what}\nleft: palest at probability 1/{num_experts} (uniform), full at 1"


def _height(num_experts: int, names: list[str]) -> float:
    """Millimetres that hold two squares, the longer legend, and a colour bar where one is needed."""
    rows = max(num_experts / 4 if num_experts <= KEY else 0, len(names) / _class_columns(names))
    return 75 + 4.5 * np.ceil(rows) + (15 if num_experts > KEY or not names else 0)


def _classes(run: Run, axes: Axes, prediction: Array, extent: Extent, surface: dict[str, Array]) -> None:
    """Predicted class as a tint, the test points' own class as colour and mark."""
    num_classes = prediction.shape[-1]
    palette = class_colors(num_classes)
    rgb = np.array([to_rgb(color) for color in palette])[prediction.argmax(-1)]
    axes.imshow(tint(rgb, np.full(rgb.shape[:2], 0.45)), origin="lower", extent=extent)
    axes.set_title("mixture: class" + (f" ({LISTED} of {num_classes} named)" if num_classes > LISTED else ""))
    truth = surface["data_y"].reshape(-1).astype(int)
    for value in range(num_classes):
        points = surface["data_x"][truth == value]
        axes.scatter(*points.T, color=palette[value], marker=MARKERS[value % LISTED], **POINTS)
    names = _class_names(run, num_classes)
    marks = [
        Line2D([], [], color=color, marker=mark, linestyle="none", label=name)
        for color, mark, name in zip(palette, MARKERS, names, strict=False)
    ]
    axes.figure.legend(handles=marks, loc="outside lower right", ncols=_class_columns(names))


def _class_names(run: Run, num_classes: int) -> list[str]:
    """Of the classes that the legend lists."""
    names = next(iter(run.info.get("label_names", {}).values()), []) or [str(value) for value in range(num_classes)]
    return [safe(name, 14) for name in names[: min(num_classes, LISTED)]]


def _class_columns(names: list[str]) -> int:
    """Long names would run into the experts' legend from the right."""
    return 2 if max(map(len, names), default=0) <= 6 else 1


def _values(axes: Axes, prediction: Array, extent: Extent, surface: dict[str, Array]) -> None:
    """The first target's mean as colour, the test points' own value in the same colours: (H, W)."""
    truth = surface["data_y"].reshape(len(surface["data_x"]), -1)[:, 0]
    low, high = min(truth.min(), prediction.min()), max(truth.max(), prediction.max())
    scale: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": high}
    image = axes.imshow(prediction, origin="lower", extent=extent, **scale)
    axes.scatter(*surface["data_x"].T, **{"c": truth, **scale, **POINTS})
    axes.set_title("mixture: mean")
    bar = axes.figure.colorbar(image, ax=axes, location="bottom", label="target (points) and mean", aspect=15)
    bar.ax.locator_params(nbins=5)


def _name_axes(run: Run, left: Axes, right: Axes) -> None:
    names = [*run.info.get("feature_names", []), "x", "y"][:2]
    for axes in (left, right):
        axes.set_xlabel(safe(names[0]))
        axes.locator_params(nbins=4)
        axes.set_anchor("N")  # level, though only one may have a colour bar below
    left.set_ylabel(safe(names[1]))
