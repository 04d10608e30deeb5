"""Pictures of what experts do: each shows the numbers it claims, beside chance, legibly, and only where it applies."""

from __future__ import annotations

import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moecli.analysis.coloured_text import background
from moecli.cli.plot import plot
from moecli.errors import ArtifactError, PartialSuccess, UsageError
from moecli.plots import coactivation, confidence, flow, labels, layers, saturation, simplex, slots, text, vocabulary
from moecli.plots.figure import Picture, _indexed, _palette, colors
from moecli.plots.gallery import draw_all, draw_whole, kinds, pictures
from moecli.plots.numbers import DANGEROUS, as_csv
from moecli.record.folder import Run

from .looks import assert_clear, boxes, texts
from .payloads import PAYLOADS

SYMBOLS = ["\ufffd", " ", "\n", *"abcdefgh(){}=.,_$"]
NAMES = ["python", "reference"]
STEPS = (0, 40, 80)
LANGUAGE = ("coactivation", "confidence", "flow", "labels", "layers", "saturation", "text", "vocabulary")


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pixels and less text: that the pictures can be read is looked at in their layout."""
    monkeypatch.setattr("moecli.plots.figure.DPI", 60)
    monkeypatch.setattr("moecli.plots.text.WINDOWS", 2)


def arrays(path: Path, **fields: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **fields)


def trace(rng: np.random.Generator, num_experts: int, k: int, num_symbols: int, values: int) -> dict[str, np.ndarray]:
    """Six windows of sixty symbols; experts follow the symbol, but not always."""
    n = 360
    id = rng.integers(0, num_symbols, n)
    probs = rng.dirichlet(np.full(num_experts, 0.5), n)
    probs[np.arange(n), id % num_experts] += 0.7
    probs /= probs.sum(1, keepdims=True)
    expert = np.argsort(-probs, 1)
    weight = np.take_along_axis(probs, expert, 1)
    expert[:, k:] = -1
    top = np.sort(probs, 1)[:, ::-1]
    found = {
        "expert": expert.astype(np.int16),
        "weight": np.where(expert >= 0, weight, 0),
        "entropy": -(probs * np.log(probs)).sum(1),
        "margin": top[:, 0] - top[:, 1],
        "position": np.tile(np.arange(60), 6),
        "sequence": np.repeat(np.arange(6), 60),
        "document": np.repeat(np.arange(6), 60),
        "id": id,
        "label_domain": np.arange(n) % values,
    }
    return found | ({"probs": probs} if num_experts == 3 else {})


def language(
    path: Path,
    num_experts: int = 8,
    k: int = 2,
    num_layers: int = 2,
    names: list[str] = NAMES,
    symbols: list[str] = SYMBOLS,
    router: str = "top_k",
) -> Run:
    """A run folder of a language model, with every array that these pictures read."""
    rng = np.random.default_rng(0)
    path.mkdir(parents=True)
    blocks = [f"block{index}" for index in range(num_layers)]
    config = {"task": "stdlib_text", "router": router}
    info = {"config": config, "layers": {name: {"experts": num_experts} for name in blocks}, "symbols": symbols}
    (path / "run.json").write_text(json.dumps({**info, "label_names": {"domain": names}}, ensure_ascii=True))
    for name in blocks:
        for step in STEPS:
            tokens = trace(rng, num_experts, k, len(symbols), len(names))
            arrays(path / f"routing/{name}/tokens-valid-{step:08d}.npz", **tokens)
        arrays(path / f"routing/{name}/tokens-test-{STEPS[-1]:08d}.npz", **tokens)
        served = rng.multinomial(512, rng.dirichlet(np.full(num_experts, 3.0)), 60)
        arrays(path / f"routing/{name}/usage-00000000.npz", step=np.arange(60), asked=served, served=served)
    return Run(path)


def images(path: Path, side: tuple[int, int] = (4, 3), num_experts: int = 4, num_slots: int = 2) -> Run:
    """A run of soft slots over images: slot 0 of expert 0 weighs all evenly, slot 1 reads one bright pixel more."""
    path.mkdir(parents=True)
    size = side[0] * side[1]
    names = [f"pixel {r},{c}" for r in range(side[0]) for c in range(side[1])]
    config = {"task": "digits", "router": "soft_slots"}
    info = {"config": config, "layers": {"layer0": {"experts": num_experts}}, "feature_names": names}
    (path / "run.json").write_text(json.dumps(info))
    uniform = np.linspace(0, 1, size)
    mean = np.tile(uniform, (num_experts, num_slots, 1))
    mean[:, 1, 5] += 0.25
    slot = np.ones((num_experts, num_slots))
    found = {"mean": mean, "uniform": uniform, "weight": slot / 100, "effective": 100 * slot, "rows": np.array(100)}
    arrays(path / "routing/layer0/slots.npz", **found)
    return Run(path)


def only(pictures: Any, stem: str) -> Picture:
    return pictures[stem]


def written_tokens(run: Run, layer: str = "block0") -> dict[str, np.ndarray]:
    return dict(np.load(run.path / f"routing/{layer}/tokens-test-{STEPS[-1]:08d}.npz"))


def rewrite(run: Run, layer: str = "block0", split: str = "test", **fields: Any) -> None:
    path = run.path / f"routing/{layer}/tokens-{split}-{STEPS[-1]:08d}.npz"
    arrays(path, **{**dict(np.load(path)), **fields})


# -- where, and what lies beside -----------------------------------------------------------------------


def test_all_draws_every_kind_that_applies_with_numbers_and_a_contact_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moecli.plots.layers.FRAMES", 3)
    run = language(tmp_path / "r")
    paths = list(draw_whole(run))
    stems = {path.stem for path in paths}
    of_layers = {
        f"{kind}-block{i}" for kind in ("coactivation", "confidence", "load", "text", "vocabulary") for i in (0, 1)
    }
    both = {"labels-block0-domain", "labels-block1-domain", "flow-block0-block1", "layers", "layers-film", "saturation"}
    assert stems == of_layers | both | {"contact"}
    for path in paths:
        assert path.stem == "contact" or len(path.with_suffix(".csv").read_text().splitlines()) > 1, path
    with Image.open(paths[-1]) as sheet:
        assert paths[-1].name == "contact.png" and sheet.width == 24 + 3 * 744
    usual = draw_all(run)
    assert {path.stem for path in usual} == {
        "load-block0",
        "load-block1",
        "labels-block0-domain",
        "labels-block1-domain",
    }


def test_kinds_stay_away_where_they_would_say_nothing(tmp_path: Path) -> None:
    one = language(tmp_path / "one", k=1, num_layers=1)
    assert not coactivation.draw(one) and not flow.draw(one) and not simplex.draw(one) and not slots.draw(one)
    dense = language(tmp_path / "dense", num_experts=4, k=4)
    nearly = language(tmp_path / "nearly", num_experts=4, k=3, router="dense")  # weights so small that they are zero
    assert not coactivation.draw(nearly) and not saturation.draw(nearly)
    assert not coactivation.draw(dense) and not saturation.draw(dense)
    assert coactivation.draw(language(tmp_path / "two", k=2)) and flow.draw(dense)  # the controls
    info = json.loads((one.path / "run.json").read_text())
    (one.path / "run.json").write_text(json.dumps({**info, "symbols": []}))
    assert not text.draw(Run(one.path)) and not vocabulary.draw(Run(one.path))
    bare = images(tmp_path / "i")
    info = json.loads((bare.path / "run.json").read_text())
    shuffled = [*info["feature_names"][1:], info["feature_names"][0]]
    (bare.path / "run.json").write_text(json.dumps({**info, "feature_names": shuffled}))
    assert not slots.draw(Run(bare.path))  # not in the order of an image
    assert list(draw_whole(Run(bare.path))) == []


def test_a_run_without_the_newer_arrays_keeps_the_older_pictures(tmp_path: Path) -> None:
    run = language(tmp_path / "r")
    for layer in run.layers:
        kept = {n: v for n, v in written_tokens(run, layer).items() if n not in ("margin", "id", "probs")}
        arrays(run.path / f"routing/{layer}/tokens-test-{STEPS[-1]:08d}.npz", **kept)
    assert len(confidence.draw(run)["confidence-block0"].figure.axes) == 1
    assert not text.draw(run) and not vocabulary.draw(run)


@pytest.mark.parametrize("wrong", [{"id": np.full(360, 99)}, {"expert": np.full((360, 8), 8)}])
def test_tokens_of_another_run_are_named_in_one_line(tmp_path: Path, wrong: dict[str, np.ndarray]) -> None:
    run = language(tmp_path / "r", num_layers=1)
    rewrite(run, **wrong)
    with pytest.raises(ArtifactError, match=r"block0: (id|expert)s that run.json does not know") as error:
        draw_all(run, ["vocabulary"])
    assert "\n" not in str(error.value)


def test_the_command_draws_all_or_those_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = images(tmp_path / "r")
    plot(run.path, None, True)
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == ["slots-layer0.png", "contact.png"]
    plot(run.path, None)
    assert capsys.readouterr().out == ""  # slots are no usual kind
    with pytest.raises(PartialSuccess, match=r"^simplex, vocabulary \(.*\): it has nothing to draw there\. "):
        plot(run.path, ["simplex", "slots", "vocabulary"])
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == ["slots-layer0.png"]
    with pytest.raises(UsageError, match=r"--all \(load\): .* Leave out one of the two"):
        plot(run.path, ["load"], True)
    assert all(kind in (plot.__doc__ or "") for kind in kinds())


# -- what they show ------------------------------------------------------------------------------------


def test_experts_that_go_together_stand_side_by_side(tmp_path: Path) -> None:
    """Pairs (0, 5), (1, 4), (2, 3) share all tokens: wherever they stand, partners are neighbours."""
    run = language(tmp_path / "r", num_experts=6, num_layers=1)
    pairs = np.array([[0, 5], [1, 4], [2, 3]])[np.arange(360) % 3]
    rewrite(run, expert=pairs, weight=np.full((360, 2), 0.5))
    picture = only(coactivation.draw(run), "coactivation-block0")
    names = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    partners = [{names[i], names[i + 1]} for i in (0, 2, 4)]
    assert sorted(map(sorted, partners)) == [["e0", "e5"], ["e1", "e4"], ["e2", "e3"]]
    shown = np.ma.filled(picture.figure.axes[0].images[0].get_array().astype(float), np.nan)
    for row, column in ((0, 1), (1, 0), (2, 3)):
        assert shown[row, column] == 100 and np.isnan(shown[row, row])
    assert np.nansum(shown) == 600
    share = {(a, b): s for a, b, s in zip(*(picture.numbers[n] for n in ("expert", "other", "share")), strict=True)}
    assert share["e0", "e5"] == 1 and share["e0", "e1"] == 0
    assert set(picture.numbers["chance"]) == {1 / 5}  # (k - 1) / (E - 1)


def test_chance_of_coactivation_is_what_random_choices_give() -> None:
    rng = np.random.default_rng(0)
    expert = np.argsort(rng.random((20_000, 6)), 1)[:, :3]
    found = coactivation.coactivation(expert, 6)[~np.eye(6, dtype=bool)]
    assert coactivation._chance(expert, 6) == 2 / 5
    np.testing.assert_allclose(found, 2 / 5, atol=0.02)


def test_histograms_of_confidence_count_every_token_beside_the_uniform_gate(tmp_path: Path) -> None:
    run = language(tmp_path / "r")
    tokens = written_tokens(run)
    picture = only(confidence.draw(run), "confidence-block0")
    numbers = {name: np.array(column) for name, column in picture.numbers.items()}
    for name, axes in zip(("entropy", "margin"), picture.figure.axes, strict=True):
        own = numbers["quantity"] == name
        assert numbers["tokens"][own].sum() == 360
        by_hand = np.histogram(tokens[name], 30, (0, math.log(8) if name == "entropy" else 1))[0]
        np.testing.assert_array_equal(numbers["tokens"][own], by_hand)
        lines = {line.get_label(): line.get_xdata()[0] for line in axes.lines}
        assert lines["_uniform"] == pytest.approx(math.log(8) if name == "entropy" else 0.0)
        assert lines["_mean"] == pytest.approx(tokens[name].mean())


def test_flow_counts_tokens_and_its_last_row_is_what_ignorance_would_give(tmp_path: Path) -> None:
    """e0 -> e1 always, e1 -> e0 three times of four; of 8 tokens 4 begin in each."""
    run = language(tmp_path / "r", num_experts=2, k=1)
    first, then = np.array([0, 0, 0, 0, 1, 1, 1, 1])[:, None], np.array([1, 1, 1, 1, 0, 0, 0, 1])[:, None]
    for layer, expert in (("block0", first), ("block1", then)):
        arrays(run.path / f"routing/{layer}/tokens-test-{STEPS[-1]:08d}.npz", expert=expert, weight=np.ones((8, 1)))
    picture = only(flow.draw(run), "flow-block0-block1")
    shown = picture.figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, [[0, 100], [75, 25], [37.5, 62.5]])
    assert [label.get_text() for label in picture.figure.axes[0].get_yticklabels()] == ["e0 · 4", "e1 · 4", "all · 8"]


def test_load_of_layers_is_held_against_an_even_split(tmp_path: Path) -> None:
    """Three experts of four serve 8, 4, 0, 4 of 16 in the last step: 2, 1, 0, 1 times their even share."""
    run = language(tmp_path / "r", num_experts=4, num_layers=1)
    served = np.empty((60, 4), dtype=int)
    served[:30], served[30:] = [4, 4, 4, 4], [8, 4, 0, 4]
    arrays(run.path / "routing/block0/usage-00000000.npz", step=np.arange(60), served=served, asked=served)
    drawn = layers.draw(run)
    assert list(drawn["layers"].numbers["load over even split"]) == [2, 1, 0, 1]
    film = drawn["layers-film"]
    shown = []
    for number in range(film.length):  # type: ignore[attr-defined]
        film.show(number)  # type: ignore[attr-defined]
        shown.append(film.figure.axes[0].images[0].get_array()[0].tolist())
    assert len(shown) == 24 and shown[0] == [1, 1, 1, 1] and shown[-1] == [2, 1, 0, 1]
    norm = film.figure.axes[0].images[0].norm
    assert (norm(0.0), norm(1.0)) == (0, 0.5)  # an even share lies in the middle of the colours


def test_saturation_ends_at_one_and_chance_is_that_of_tokens_paired_at_random(tmp_path: Path) -> None:
    run = language(tmp_path / "r")
    picture = only(saturation.draw(run), "saturation")
    curves = [line for line in picture.figure.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in curves] == ["block0", "block1"]
    for line in curves:
        assert line.get_xdata().tolist() == list(STEPS) and line.get_ydata()[-1] == 1
        assert line.get_ydata()[0] < 1
    rng = np.random.default_rng(0)
    a, b = np.argsort(-rng.gumbel(size=(2, 50, 5)) - 0.5 * np.arange(5), -1)[..., :2]
    every_pair = np.mean([saturation.saturation(a, np.roll(b, shift, axis=0)) for shift in range(50)])
    assert saturation._chance(a, b, 5) == pytest.approx(every_pair)
    assert abs(saturation._chance(a, b, 5) - 2 / 5) > 0.02  # the control: uneven loads meet more often than k / E


def test_the_simplex_puts_experts_in_its_corners_and_uniform_in_its_middle(tmp_path: Path) -> None:
    run = language(tmp_path / "r", num_experts=3, k=1, num_layers=1)
    probs = np.vstack([np.eye(3), np.full((1, 3), 1 / 3)])[np.arange(360) % 4]
    rewrite(run, probs=probs, label_domain=np.arange(360) % 4 % 2)
    picture = only(simplex.draw(run), "simplex-block0")
    drawn = np.vstack([points.get_offsets() for points in picture.figure.axes[0].collections])
    expected = np.vstack([simplex.CORNERS, simplex.CORNERS.mean(0)])
    assert {tuple(np.round(point, 6)) for point in drawn} == {tuple(np.round(point, 6)) for point in expected}
    assert {t.get_text() for t in picture.figure.legends[0].get_texts()} == set(NAMES)
    assert len(picture.numbers["p e0"]) == 360


def test_a_slot_of_uniform_weights_is_blank(tmp_path: Path) -> None:
    picture = only(slots.draw(images(tmp_path / "r")), "slots-layer0")
    shown = [axes.images[0].get_array() for axes in picture.figure.axes if axes.images]
    assert len(shown) == 8 and not shown[0].any()
    assert np.flatnonzero(shown[1]).tolist() == [5] and shown[1].shape == (4, 3)
    assert {f"e{e}·{p}" for e in range(4) for p in range(2)} <= set(texts(picture.figure))
    assert set(picture.numbers["uniform weight"]) == {0.01}


def test_slots_of_a_training_average_its_images(tmp_path: Path) -> None:
    import torch

    from moecli.plan import Batched, Slots
    from moecli.record.trace import slot_averages

    x = torch.rand(7, 5)
    even = torch.full((7, 2, 3), 1 / 7)
    one = torch.zeros(7, 2, 3).index_fill(0, torch.tensor([4]), 1.0)
    for into, effective, mean in ((even, 7, x.mean(0)), (one, 1, x[4])):
        found = slot_averages(Slots(into, into, Batched.by(torch.zeros(7, dtype=torch.int64))), x)
        np.testing.assert_allclose(found["effective"], effective, rtol=1e-5)
        np.testing.assert_allclose(found["mean"], np.broadcast_to(mean, (2, 3, 5)), rtol=1e-5)
        np.testing.assert_allclose(found["uniform"], x.mean(0), rtol=1e-5)


def test_text_lies_on_the_colours_of_its_experts(tmp_path: Path) -> None:
    run = language(tmp_path / "r", num_layers=1)
    tokens = written_tokens(run)
    picture = only(text.draw(run), "text-block0")
    pixels = picture.figure.axes[0].images[0].get_array()[1]  # (W, 3), of the first window's first line
    numbers = list(zip(*(picture.numbers[name] for name in ("symbol", "expert")), strict=True))
    for place in (0, 7, 43):
        expert = int(tokens["expert"][place, 0])
        assert numbers[place] == (SYMBOLS[tokens["id"][place]], f"e{expert}")
        red, green, blue = (int(background(expert, 8)[i : i + 2], 16) / 255 for i in (1, 3, 5))
        np.testing.assert_allclose(pixels[place], (red, green, blue), atol=1e-6)
    written = [text.get_text() for text in picture.figure.axes[0].texts]
    assert {"a", "$", "_", "↵", "domain: python"} <= set(written)
    assert {f"e{e}" for e in range(8)} == {t.get_text() for t in picture.figure.legends[0].get_texts()}
    first = tokens["expert"][:, 0].reshape(6, 60)
    again = (first[:, 1:] == first[:, :-1]).mean()
    chance = np.square(np.bincount(first.ravel(), minlength=8) / 360).sum()
    assert f"{again:.0%}, by chance {chance:.0%}" in picture.figure.get_suptitle().replace("\n", " ")


def test_the_vocabulary_table_names_symbols_above_chance_alone(tmp_path: Path) -> None:
    """Even ids go to e0, odd ones to e1, and e2 gets a tenth of everything."""
    run = language(tmp_path / "r", num_experts=3, k=1, num_layers=1, symbols=list("abcd"))
    id = np.arange(400) % 4
    expert = np.where(np.arange(400) // 4 % 10 == 0, 2, id % 2)[:, None]
    arrays(run.path / f"routing/block0/tokens-test-{STEPS[-1]:08d}.npz", expert=expert, weight=np.ones((400, 1)), id=id)
    picture = only(vocabulary.draw(run), "vocabulary-block0")
    written = texts(picture.figure)
    assert [t for t in written if t.endswith(" 90")] == ["a  90", "c  90", "b  90", "d  90"]
    assert written.count("45") == 2 and written.count("10") == 1  # chance: e0, e1, e2
    assert not any(t.endswith("  10") for t in written)  # e2 serves no symbol above its chance
    table = dict(zip(zip(picture.numbers["symbol"], picture.numbers["expert"], strict=True), picture.numbers["share"]))  # noqa: B905
    assert table["a", "e0"] == pytest.approx(0.9) and table["a", "e1"] == 0


def test_a_film_keeps_the_colours_of_its_legend() -> None:
    """A swatch of a rare colour in a smooth image: median cut alone would give it another one."""
    x, y = np.meshgrid(np.linspace(0, 255, 300), np.linspace(0, 255, 300))
    image = np.stack([x, y, 255 - x], -1).astype(np.uint8)
    swatch = np.round(255 * np.array([0xCC, 0x79, 0xA7]) / 255).astype(np.uint8)
    image[:3, :3] = swatch
    kept = np.asarray(_indexed(image, _palette(image, colors(6))).convert("RGB"))
    np.testing.assert_array_equal(kept[0, 0], swatch)
    without = np.asarray(_indexed(image, _palette(image, [])).convert("RGB"))
    assert (without[0, 0] != swatch).any()  # the control


# -- legible, and unmoved by names ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("looks")
    return {
        "few": language(root / "few"),
        "many": language(root / "many", num_experts=20, k=4, num_layers=6),
        "three": language(root / "three", num_experts=3, k=1, num_layers=1),
        "hostile": language(root / "hostile", num_layers=2, names=PAYLOADS[:10], symbols=PAYLOADS),
        "images": images(root / "images", (8, 8), 4, 3),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("few", "many") for kind in LANGUAGE),
        *(("hostile", kind) for kind in ("labels", "text", "vocabulary")),
        ("three", "simplex"),
        ("images", "slots"),
    ],
)
def test_nothing_written_lies_on_anything_else(runs: dict[str, Run], name: str, kind: str) -> None:
    module = {m.__name__.rpartition(".")[2]: m for m in (coactivation, confidence, flow, labels, layers, saturation,
                                                         simplex, slots, text, vocabulary)}[kind]  # fmt: skip
    drawn = module.draw(runs[name])
    assert drawn
    assert_clear(next(iter(drawn.values())).figure, fewest=8)


def test_the_check_of_overlaps_can_fail(runs: dict[str, Run]) -> None:
    figure = only(saturation.draw(runs["few"]), "saturation").figure
    figure.axes[0].annotate("on top", (0.5, 0.5), xycoords="axes fraction")
    assert_clear(figure)
    figure.axes[0].annotate("of this", (0.5, 0.5), xycoords="axes fraction")
    with pytest.raises(AssertionError):
        assert_clear(figure)


@pytest.mark.parametrize(("name", "layers"), [("few", 2), ("many", 6)])
def test_every_layer_is_in_the_legend_of_saturation(runs: dict[str, Run], name: str, layers: int) -> None:
    (legend,) = only(saturation.draw(runs[name]), "saturation").figure.legends
    assert [entry.get_text() for entry in legend.get_texts()] == [f"block{i}" for i in range(layers)]


def test_sixty_names_are_drawn_escaped_and_counted(tmp_path: Path) -> None:
    """As values of a label, as symbols, and as the task's name: no warning, no row lost, nothing runs in the CSV."""
    assert len(set(PAYLOADS)) == 60
    run = language(tmp_path / "r", num_layers=1, names=PAYLOADS, symbols=PAYLOADS)
    info = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**info, "config": {"task": PAYLOADS[1], "router": "$x$"}}))
    run = Run(run.path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = list(pictures(run, ["labels", "text", "vocabulary"]))
    assert len(paths) == 3
    rows = [name for name, _ in boxes(only(labels.draw(run), "labels-block0-domain").figure) if " · " in name]
    counts = [row.rpartition(" · ")[2] for row in rows]
    assert counts.count("6") == 40 and counts.count("360") == 1  # forty are shown, each of six tokens, and all
    for path in paths:
        with path.with_suffix(".csv").open(newline="") as file:
            head, *lines = csv.reader(file)
        assert lines and all(len(line) == len(head) for line in lines)
        assert not [cell for line in lines for cell in line if cell.startswith(DANGEROUS) and not _number(cell)]


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_csv_gives_back_every_name() -> None:
    written = as_csv({"name": PAYLOADS, "value": np.linspace(-1, 1, 60)})
    _, *lines = csv.reader(written.splitlines(keepends=True))
    back = [
        cell.removeprefix("'") if cell.startswith("'") and cell[1:2] in (*DANGEROUS,) else cell for cell, _ in lines
    ]
    expected = [name.replace("\0", "\\0").replace("\udcff", "\\udcff") for name in PAYLOADS]
    assert back == expected
    assert [float(value) for _, value in lines] == pytest.approx(list(np.linspace(-1, 1, 60)), abs=1e-5)
    assert as_csv({"x": np.array([np.nan, np.inf, 2.0])}).split() == ["x", '""', '""', "2"]
