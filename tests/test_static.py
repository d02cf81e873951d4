"""Still figures: the numbers on their axes, their shared scales, and what their files carry."""

import itertools
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text
from report_cases import analysis, eigenvalues

from commands import options
from figures.drawing import contours, static, style
from figures.page import grids
from landscape.errors import InputError


@pytest.fixture(scope="module")
def one():
    return analysis()


@pytest.fixture(scope="module")
def two():
    return [analysis("a"), analysis("b", 2.0)]


def test_still_figures_are_written_with_their_facts(one, tmp_path):
    from PIL import Image

    before = plt.get_fignums()
    paths = static.write([one], tmp_path, formats=("pdf", "png", "svg"))
    names = {p.name for p in paths}
    stems = ("surface-contours", "surface-3d-log", "surface-cuts", "sharpness", "eigenvalues", "training")
    assert {f"{s}.{f}" for s in stems for f in ("pdf", "png", "svg")} <= names
    with Image.open(tmp_path / "surface-contours.png") as image:
        facts = json.loads(image.info["Description"])
    assert (facts["samples"], facts["batch_norm"], facts["surface"]["seed"]) == (128, "frozen", 4)
    content = (tmp_path / "sharpness.pdf").read_bytes()
    assert b"/FontFile2" in content, "no embedded TrueType font"
    assert b"/Type3" not in content
    assert b"batch_norm" in content
    assert "batch_norm" in (tmp_path / "sharpness.svg").read_text()
    assert plt.get_fignums() == before, "figures were left open"


def test_still_figures_are_reproducible_bytes(one, tmp_path):
    for name in "ab":
        with style.use():
            figure, axes = plt.subplots()
            axes.plot([1, 2], [3, 4])
        style.save(figure, tmp_path / name, {"samples": 1}, title="same", formats=("pdf", "svg", "png"))
    for suffix in ("pdf", "svg", "png"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def view(drawn, mode):
    return next(v for v in grids.views(drawn) if v.mode == mode)


def test_still_contours_share_their_scale_and_orientation(two):
    drawn = grids.grids(two)
    figure = contours.contours(view(drawn, "linear"))
    meshes = [a.collections[0] for a in figure.axes[:2]]
    assert meshes[0].get_clim() == meshes[1].get_clim() == (pytest.approx(0.1), pytest.approx(3.6))
    parts = grids.fineness(drawn[0].loss)
    values = np.asarray(meshes[0].get_array())
    np.testing.assert_allclose(values[::parts, ::parts], drawn[0].loss.T)
    assert figure.axes[0].get_xlabel() == "direction 1 (× ‖w‖)"
    levels = [a.collections[1].levels for a in figure.axes[:2]]
    assert set(np.round(levels[0], 9)) <= set(np.round(levels[1], 9))
    plt.close(figure)


def test_still_surfaces_share_their_height(two):
    figure = contours.surfaces(view(grids.grids(two), "log"))
    limits = {a.get_zlim() for a in figure.axes}
    assert len(limits) == 1
    assert limits.pop() == (pytest.approx(-1), pytest.approx(math.log10(3.6)))
    plt.close(figure)


def test_still_sharpness_and_eigenvalues_hold_the_numbers(two):
    figure = static.sharpness(two)
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), [0.02, 0.08])
    assert figure.axes[0].get_xlabel() == "radius ρ"
    plt.close(figure)
    figure = static.eigenvalues([analysis(measures={"hessian_top_eigenvalues": eigenvalues(8.0)})])
    container = figure.axes[0].containers[0]
    np.testing.assert_allclose(container.lines[0].get_ydata(orig=False), [8, 4, 2])
    (bars,) = container.lines[2]
    np.testing.assert_allclose(np.asarray(bars.get_segments()[0], dtype=float)[:, 1], [7.99, 8.01])
    plt.close(figure)


def test_widths_are_those_of_a_paper(two, one):
    single, page = static.eigenvalues([one]), contours.contours(view(grids.grids(two), "rise"))
    assert single.get_figwidth() == style.COLUMN
    assert page.get_figwidth() == style.PAGE
    plt.close("all")


def test_a_venue_sets_both_widths(two, one):
    before = style.COLUMN, style.PAGE
    assert tuple(options.venue(lambda: None).__click_params__[0].type.choices) == tuple(style.VENUES)
    with style.fitted("neurips"):
        single, page = static.eigenvalues([one]), contours.surfaces(view(grids.grids(two), "rise"))
    assert before == (style.COLUMN, style.PAGE)
    assert (single.get_figwidth(), page.get_figwidth()) == (2.7, 5.5)
    plt.close("all")
    with pytest.raises(InputError, match="unknown venue 'nips'"), style.fitted("nips"):
        pass


def test_palette_is_okabe_ito_and_distinct():
    assert style.PALETTE[:3] == ("#0072B2", "#D55E00", "#009E73")
    looks = {(style.color(i), str(style.line(i))) for i in range(24)}
    assert len(looks) == 24
    assert len({style.color(i) for i in range(16)}) == 16
    assert style.color(16) == style.color(0)


def test_every_column_of_panels_has_its_axis_named():
    many = grids.grids([analysis(f"run{i}") for i in range(6)])
    figure = contours.contours(view(many, "rise"))
    panels = figure.axes[:8]
    assert [bool(p.get_xlabel()) for p in panels[:6]] == [False, False, True, True, True, True]
    figure.draw_without_rendering()
    assert all(any(t.label1.get_visible() for t in p.xaxis.get_major_ticks()) for p in panels[2:6])
    plt.close(figure)


def test_many_names_stand_outside_the_drawing():
    """Ten checkpoints: no legend covers a panel, and the labels of lines stay above the axis."""
    many = [analysis(f"run{i}", 1 + 0.01 * i) for i in range(9)] + [analysis("run9", 5.0)]
    for figure in (static.eigenvalues(many), static.training(many), static.sharpness(many)):
        assert all(panel.get_legend() is None for panel in figure.axes)
        (legend,) = figure.legends
        assert [t.get_text() for t in legend.get_texts()] == [f"run{i}" for i in range(10)]
        plt.close(figure)
    figure = static.cuts(many)
    figure.draw_without_rendering()
    panel = figure.axes[-1]
    boxes = sorted((Text.get_window_extent(t) for t in panel.texts), key=lambda b: b.y0)
    assert len(boxes) == 10
    assert boxes[0].y0 > panel.bbox.y0 - 1
    assert all(low.y1 < high.y1 - 1 for low, high in itertools.pairwise(boxes)), "one covers another"
    last = next(t for t in panel.texts if t.get_text() == "run9")
    end = panel.transData.transform((0, panel.lines[-1].get_ydata()[-1]))[1]
    middle = Text.get_window_extent(last)
    assert (middle.y0 + middle.y1) / 2 == pytest.approx(end, abs=3), "a lonely label stays at its line"
    plt.close(figure)
