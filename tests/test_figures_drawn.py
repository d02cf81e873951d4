"""What the figures show, and how labels, ticks and surfaces are drawn."""

import json
import re

import numpy as np
import pytest
from figure_cases import drawn
from matplotlib import pyplot as plt
from matplotlib.text import Text

from figures import FIGURES
from figures.drawing import contours, style
from figures.page.grids import Grid
from figures.study.figure_data import FigureData
from figures.study.study import Study

pytestmark = pytest.mark.usefixtures("styled")


def test_speed_is_timed_while_every_method_acts(tmp_path):
    from trainers import METHODS

    arguments = FIGURES["saf-table1"]()._speed(Study(tmp_path, "quick")).arguments
    epochs = arguments["settings"]["epochs"]
    for spec in arguments["specs"]:
        method = METHODS[spec["method"]]()
        assert getattr(method, "lag", 0) <= spec["first"] < epochs
        assert getattr(method, "start", 0.0) * epochs <= spec["first"]


@pytest.mark.slow
def test_equal_passes_are_equal(made):
    """SAM's and ASAM's runs of equal epochs stand for those of equal passes: the examples that were passed say so."""
    root, _ = made("asam-time")
    numbers = FigureData.load(root / "asam-time.h5")
    spent = numbers.at("examples", budget="passes")
    # A budget ends with a step: one batch of 128 more at most, twice with SAM.
    assert np.ptp(spent) <= 2 * 128
    assert np.ptp(numbers.at("examples", budget="epochs")) > 1000


def test_toy_data_shows_its_points_and_the_best_boundary(made):
    numbers, figure = drawn(made, "asam-fig6")
    panel = figure.axes[2]
    shown = np.concatenate([c.get_offsets() for c in panel.collections])
    position = numbers.at("position", variance=15)
    np.testing.assert_allclose(np.sort(shown, axis=0), np.sort(position, axis=0))
    assert "15" in panel.get_title("left")
    assert f"{100 * float(numbers.at('bayes_error', variance=15)):.1f}%" in panel.get_title("left")
    assert len(panel.lines) == 8
    angles = [np.degrees(np.arctan2(line.get_ydata()[1], line.get_xdata()[1])) for line in panel.lines]
    np.testing.assert_allclose(np.sort(np.mod(angles, 45)), 22.5)


def test_surfaces_share_color_and_height(made):
    """Of seed 0, as rises above each center, in 3-D and as contours."""
    numbers, figure = drawn(made, "saf-fig4")
    loss, middle = numbers["loss"][:, 0], len(numbers["x"]) // 2
    rise = loss - loss[:, middle, middle][:, None, None]
    solid, flat = ([a for a in figure.axes if a.get_label() == label] for label in ("solid", "flat"))
    assert [a.get_title() for a in solid] == ["SGD", "SAM", "SAF", "MESA"]
    assert {a.get_zlim() for a in solid} == {(rise.min(), rise.max())}
    colors = {(a.collections[0].norm.vmin, a.collections[0].norm.vmax) for a in (*solid, *flat)}
    assert colors == {(rise.min(), rise.max())}
    for axes, values in zip(flat, rise, strict=True):
        height = axes.collections[0].get_array()  # (direction 2, direction 1), points between those computed or not
        np.testing.assert_allclose(height[[0, 0, -1, -1], [0, -1, 0, -1]], values[[0, -1, 0, -1], [0, 0, -1, -1]])
    assert f"seed 0 of {len(numbers['seed'])}, on one scale" in figure.get_suptitle()
    plt.close(figure)


def test_profiles_show_every_seed(made):
    """Below the surfaces of one seed: the mean cut of each method over all seeds, with its interval."""
    numbers, figure = drawn(made, "saf-fig4")
    loss, middle = numbers["loss"], len(numbers["x"]) // 2
    cuts = (loss[..., :, middle] + loss[..., middle, :]) / 2
    np.testing.assert_array_equal(numbers["profile"], cuts)
    rises = (cuts - cuts[..., [middle]]).mean(axis=1)
    for name, means, scale in (("rise", rises, "linear"), ("loss", np.exp(np.log(cuts).mean(axis=1)), "log")):
        panels = [a for a in figure.axes if a.get_label() == f"profile of the {name}"]
        assert len({a.get_ylim() for a in panels}) == 1
        for i, axes in enumerate(panels):
            assert axes.get_yscale() == scale
            *others, own = (line.get_ydata() for line in axes.lines)
            np.testing.assert_allclose(own, means[i], atol=1e-12)
            np.testing.assert_allclose(others, np.delete(means, i, axis=0), atol=1e-12)
            assert len(axes.collections) == 1, "its own band"
    plt.close(figure)


def test_curvature_is_drawn_against_two_over_eta(made):
    numbers, figure = drawn(made, "edge-of-stability")
    for axes, objective in zip(figure.axes, ("squared error", "cross-entropy"), strict=True):
        chosen = numbers["objective"] == objective
        level = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        np.testing.assert_allclose(level, 2 / numbers["rate"][chosen])
        solid = np.array([line.get_ydata() for line in axes.lines if line.get_linestyle() == "-"])
        both = np.stack([numbers["lambda_max"][chosen], numbers["lambda_max_midpoint"][chosen]], axis=1)
        np.testing.assert_array_equal(solid, both.reshape(solid.shape))
    assert "2/$\\eta$ = 20" in [t.get_text() for t in figure.axes[0].texts]
    plt.close(figure)


def test_every_rescaling_leaves_the_logits(made):
    numbers, figure = drawn(made, "asam-fig2")
    lines = figure.axes[0].lines
    assert len(lines) == numbers["logits"][0].size
    for line in lines:
        assert np.ptp(line.get_ydata()) < 1e-12
    plt.close(figure)
    claims = FIGURES["asam-fig2"]().judge(numbers)
    assert claims[0].verdict == "supported"
    assert claims[1].ours.value > 0.01, "scaling weights without biases changes the function"


def test_the_sam_loss_varies_and_the_adaptive_one_does_not(made):
    numbers, figure = drawn(made, "asam-fig3")
    solid = [line.get_ydata() for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    np.testing.assert_array_equal(solid, numbers["sam_loss"])
    assert min(np.ptp(y) for y in solid) > 1e-3
    plt.close(figure)
    numbers, figure = drawn(made, "asam-fig4")
    verdicts = [c.verdict for c in FIGURES["asam-fig4"]().judge(numbers)]
    assert verdicts[3:6] == ["supported"] * 3
    *rows, _ = figure.axes
    assert len({a.get_ylim() for a in rows}) == 1
    for axes, name in zip(rows, ("sam_sharpness", "asam_official", "lambda_max"), strict=False):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), numbers[name][0] / np.median(numbers[name][0]))
    said = [axes.texts[0].get_text().split("\n") for axes in rows]
    assert [name for name, text in said if text.startswith("varies by")] == [
        "SAM", "ASAM, authors' code", "$\\lambda_{max}$ of H"
    ]  # fmt: skip
    assert [name for name, text in said if text.startswith("stays")] == [
        "adaptive, biases scaled", "adaptive, biases fixed", "$\\lambda_{max}$ of T H T"
    ]  # fmt: skip
    plt.close(figure)


def test_every_method_has_a_row_below_its_family():
    from figures.drawing import families
    from trainers import METHODS

    members = [m for names in families.FAMILIES.values() for m in names]
    assert len(members) == len(set(members))
    assert set(members) <= set(METHODS)
    shown = families.rows(["new", "mesa", "asam", "sam", "adam"])
    assert shown.headings == {
        "base optimizers": 8, "SAM-like: two passes": 6, "trajectory terms": 3, "other methods": 1
    }  # fmt: skip
    assert shown.methods == {"adam": 7, "asam": 5, "sam": 4, "mesa": 2, "new": 0}
    _, panels = plt.subplots(1, 2, sharey=True)
    families.frame(panels, shown)
    named = {t.get_text(): y for t, y in zip(panels[0].get_yticklabels(), panels[0].get_yticks(), strict=True)}
    assert named == {"Adam": 7, "ASAM": 5, "SAM": 4, "MESA": 2, "NEW": 0}
    assert {t.get_text(): t.xy[1] for t in panels[0].texts} == shown.headings
    plt.close("all")


def test_runs_that_learn_nothing_are_seen_one_by_one():
    """Errors of such seeds have two heaps: an interval around their mean would reach beyond 0%."""
    entry, generator = FIGURES["asam-fig5"], np.random.default_rng(0)
    numbers = FigureData()
    axes = {"method": ("adam", "sam", "asam"), "train_variance": (1, 15), "seed": range(3), "test_variance": (1, 9, 90)}
    for name, values in axes.items():
        numbers.axis(name, values)
    numbers.add("test_error", tuple(axes), generator.uniform(size=(3, 2, 3, 3)))
    numbers.add("bayes_error", ("test_variance",), [0.0, 0.1, 0.4])
    figure = entry().draw(numbers)
    for panel, errors in zip(figure.axes[:2], 100 * numbers["test_error"].swapaxes(0, 1), strict=True):
        lines = [line.get_ydata() for line in panel.lines if len(line.get_ydata()) == 3]
        np.testing.assert_allclose(lines, [row for seeds in errors for row in (*seeds, seeds.mean(axis=0))])
        means = [line for line in panel.lines if line.get_linewidth() > 1]
        assert len({line.get_linestyle() for line in means}) == len({line.get_linewidth() for line in means}) == 2
    plt.close(figure)


def test_what_the_poster_reports_is_marked_apart_from_what_was_measured():
    from figures.paper.saf_table1 import METHODS, PUBLISHED

    numbers = FigureData()
    for name, values in (("method", METHODS), ("seed", range(3)), ("round", range(4))):
        numbers.axis(name, values)
    numbers.add("test_accuracy", ("method", "seed"), np.random.default_rng(0).uniform(size=(7, 3)))
    numbers.add("relative_speed", ("method", "round"), np.random.default_rng(1).uniform(40, 110, size=(7, 4)))
    figure = FIGURES["saf-table1"]().draw(numbers)
    left, right = figure.axes
    (hollow,) = (line for line in right.lines if line.get_marker() == "D")
    assert hollow.get_markerfacecolor() == "none"
    np.testing.assert_allclose(hollow.get_xdata(), [np.mean(v) for v in PUBLISHED.values()])
    rows = dict(zip((t.get_text() for t in left.get_yticklabels()), left.get_yticks(), strict=True))
    np.testing.assert_array_equal(np.round(hollow.get_ydata()), [rows[n] for n in rows if n != "SGD"])
    dots = [line for line in right.lines if len(line.get_xdata()) == 4]
    np.testing.assert_array_equal([line.get_xdata() for line in dots], numbers["relative_speed"])
    assert "the poster" in figure.legends[0].get_texts()[2].get_text()
    plt.close(figure)


def test_labels_stand_apart_around_their_lines():
    """Where labels of the ends 0, 1, 2 and 30 points would overlap: the nearest places that are 9 points apart."""
    found = style._apart([0.0, 1.0, 2.0, 30.0], 9.0)
    np.testing.assert_allclose(found, [-8.0, 1.0, 10.0, 30.0])
    generator = np.random.default_rng(0)
    ends = np.sort(generator.uniform(0, 60, size=12))
    found = np.array(style._apart(ends, 9.0))
    assert np.diff(found).min() >= 9 - 1e-9
    # No other places of the kind are nearer: the whole moved, or other gaps.
    nearest = np.square(found - ends).sum()
    for size in (0.001, 0.1, 1.0):
        moves, changes = generator.normal(size=50) * size, generator.normal(size=(50, 11)) * size
        for move, change in zip(moves, changes, strict=True):
            assert np.square(found + move - ends).sum() > nearest
            other = np.cumsum(np.r_[0.0, np.maximum(np.diff(found) + change, 9.0)])
            other += np.mean(ends - other)  # the best place for these gaps
            assert np.diff(other).min() >= 9 - 1e-9
            assert np.square(other - ends).sum() > nearest - 1e-9


def test_labels_that_were_pushed_away_are_led_to_their_lines():
    for ends, led in (({"one": 0.2, "other": 0.8}, False), ({"one": 0.5, "other": 0.51}, True)):
        figure, axes = plt.subplots()
        style.label_lines(axes, {t: (1.0, y, "black") for t, y in ends.items()})
        assert [t.arrow_patch is not None for t in axes.texts] == [led, led]
        assert {t.get_text(): t.xy for t in axes.texts} == {t: (1.0, y) for t, y in ends.items()}
        plt.close(figure)


def test_few_ticks_on_a_short_logarithmic_axis():
    _, axes = plt.subplots()
    axes.set_xscale("log")
    for limits, ticks in (((0.5, 20), [1, 10]), ((2, 40), [3, 10, 30]), ((3, 9), [3, 6])):
        axes.set_xlim(limits)
        style.few_log_ticks(axes)
        np.testing.assert_allclose(axes.get_xticks(), ticks)
        assert [t.get_text() for t in axes.get_xticklabels()] == [f"{t:g}" for t in ticks]
    for limits in ((0.011, 0.019), (1.02, 1.4), (2.1, 2.9)):  # no round number, or one, lies within
        axes.set_xlim(limits)
        style.few_log_ticks(axes)
        ticks = axes.get_xticks()
        assert len(ticks) == 2
        assert limits[0] < ticks[0] < ticks[1] < limits[1]
    plt.close("all")


def test_the_trajectory_telescopes(made):
    numbers, figure = drawn(made, "saf-trajectory")
    plt.close(figure)
    claims = FIGURES["saf-trajectory"]().judge(numbers)
    assert claims[0].verdict == "supported"
    # To first order in the step, eta <grad L_B, grad L_Bi> is what both sides are.
    plain = list(numbers["run"]).index("no momentum")
    np.testing.assert_allclose(numbers["product"][plain], numbers["first_order"][plain], rtol=0.3, atol=1e-3)


def test_the_numbers_are_those_of_the_runs(made):
    """From the picture's file back to history.csv and to the measure itself."""
    import landscape
    from figures.paper.saf_fig3 import runs
    from trainers.rebuild import Sample, subject

    root, study = made("saf-fig3")
    numbers = FigureData.load(root / "saf-fig3.h5")
    training = runs(study)["mesa", 1]
    rows = (study.path(training) / "history.csv").read_text().split()
    column = rows[0].split(",").index("train_loss")
    history = [float(r.split(",")[column]) for r in rows[1:]]
    np.testing.assert_allclose(numbers.at("train_loss", method="mesa", seed=1), history, rtol=1e-6)
    problem = subject(study.path(training) / "epoch-2.pt", Sample(samples=128)).problem
    again = landscape.sam_sharpness(problem, rho=0.05).value
    assert numbers.at("sam_sharpness", method="mesa", seed=1, kept_epoch=2) == pytest.approx(again, rel=1e-6)


def test_the_gallery_shows_what_was_made(made, tmp_path):
    from PIL import Image

    from docs import gallery

    root, _ = made("asam-fig6")
    text = gallery.write(root, tmp_path / "docs").read_text()
    assert "![asam-fig6](gallery/asam-fig6.png)" in text
    assert "landscape figures asam-fig6\n" in text
    assert f"**{json.loads((root / 'asam-fig6-verdict.json').read_text())['claims'][0]['verdict']}**" in text
    assert re.search(r"Runs: about \d+ s on two cores\. Claims \(preset smoke, 2 seeds\): ", text)
    assert set(FIGURES) <= {line[3:] for line in text.splitlines() if line.startswith("## ")}
    with Image.open(tmp_path / "docs" / "gallery" / "asam-fig6.png") as picture:
        assert picture.width == gallery.WIDTH


def test_dollar_signs_in_names_are_no_formula():
    """Two in a line were read as one: the loss beside the name lost its first digits, or the drawing failed."""
    axis = np.linspace(-1, 1, 3)
    loss = axis[:, None] ** 2 + axis**2 + 0.5
    planes = [Grid(name, (axis, axis), loss, ("x", "y"), "", 0.5, "") for name in ("$a_b$", "$c_")]
    for _, figure in contours.pictures(planes, ["$_ of $"]):
        figure.canvas.draw()
        texts = [
            t for t in figure.findobj(Text) if "$" in t.get_text() and not t.get_text().startswith("$\\mathdefault")
        ]
        assert len(texts) >= 2
        assert not any(t.get_parse_math() for t in texts)
        plt.close(figure)
