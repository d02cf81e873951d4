"""Every figure in its smallest form: what is run, what is written, what is drawn, what is judged."""

import errno
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot as plt

from cli import run
from figures import FIGURES
from figures.drawing import style
from figures.study import figure as entry
from figures.study import study as study_module
from figures.study.figure_data import FigureData
from figures.study.study import Study
from landscape.errors import InputError

SUFFIXES = (".pdf", ".svg", ".png", ".csv", ".h5", "-verdict.md", "-verdict.json")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """name -> the directory where that figure was made; figures share one study."""
    root = tmp_path_factory.mktemp("figures")
    study = Study(root / "study", "smoke")
    finished = set()

    def make(name):
        if name not in finished:
            entry.make([name], study, root)
            finished.add(name)
        return root, study

    return make


@pytest.fixture(autouse=True)
def styled():
    """Ticks are made when they are drawn, in the style of that moment."""
    with style.use():
        yield


def drawn(made, name):
    """The figure's numbers from disk, and the drawing of them."""
    root, _ = made(name)
    numbers = FigureData.load(root / f"{name}.h5")
    figure = entry.picture(FIGURES[name](), numbers)
    figure.draw_without_rendering()
    return numbers, figure


# Those that train a dozen networks or measure time even in their smallest form.
LONG = {"asam-fig5", "asam-fig7", "asam-table1", "asam-time", "saf-table1", "rst-schedules", "ksam-tradeoff"} | {
    "all-methods",
    "matched-loss",
    "correlation",
}
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in FIGURES]


@pytest.mark.parametrize("name", NAMES)
class TestEveryFigure:
    def test_writes_its_files(self, made, name):
        root, _ = made(name)
        for suffix in SUFFIXES:
            assert (root / f"{name}{suffix}").stat().st_size > 100, suffix
        assert f"## {name}" in (root / "verdicts.md").read_text()

    def test_embeds_truetype_fonts_and_its_facts(self, made, name):
        root, _ = made(name)
        pdf = (root / f"{name}.pdf").read_bytes()
        assert b"/Type3" not in pdf
        assert b"preset" in pdf
        assert b"smoke" in (root / f"{name}.svg").read_bytes()

    def test_a_second_call_runs_nothing(self, made, name):
        root, study = made(name)
        figure = FIGURES[name]()
        again = Study(study.directory, "smoke")
        assert again.run(figure.plan(again)) == 0
        collected, kept = figure.collect(again), FigureData.load(root / f"{name}.h5")
        assert set(collected.arrays) == set(kept.arrays)
        for key, values in collected.arrays.items():
            np.testing.assert_array_equal(kept[key], values)

    def test_draws_and_judges_from_its_file_alone(self, made, name, monkeypatch):
        root, _ = made(name)
        numbers = FigureData.load(root / f"{name}.h5")
        for attribute in ("run", "result", "history", "training"):
            monkeypatch.setattr(Study, attribute, None)
        monkeypatch.setattr("figures.study.study.load_arrays", None)
        figure = FIGURES[name]().draw(numbers)
        assert figure.axes
        plt.close(figure)
        written = json.loads((root / f"{name}-verdict.json").read_text())["claims"]
        assert [c.entry() for c in FIGURES[name]().judge(numbers)] == written

    def test_fits_a_column_or_a_page(self, made, name):
        _, figure = drawn(made, name)
        assert round(figure.get_figwidth(), 1) in (style.COLUMN, style.PAGE)
        box = figure.get_tightbbox()
        assert box.x0 > -0.05
        assert box.x1 < figure.get_figwidth() + 0.05, "something is cut off on the right"
        plt.close(figure)

    def test_says_below_what_was_computed(self, made, name):
        numbers, figure = drawn(made, name)
        note = next(t for t in figure.texts if t.get_gid() == "footnote")
        text = note.get_text().replace("\n", " ")
        assert text.startswith("preset smoke")
        assert re.search(r"\d (seeds|networks)(, shown: .+)?$", text)
        renderer = figure.canvas.get_renderer()
        box = note.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        for drawn_above in (*figure.axes, *figure.legends):
            assert drawn_above.get_tightbbox(renderer).y0 > box.y1 - 1, "the note lies on a panel or a legend"
        assert numbers.facts["cost"]["processor_seconds"] > 0
        plt.close(figure)

    def test_names_every_axis(self, made, name):
        _, figure = drawn(made, name)
        for axes in figure.axes:
            if axes.axison and not axes.get_label().startswith("<colorbar"):
                shared = [*axes.get_shared_x_axes().get_siblings(axes), *axes.get_shared_y_axes().get_siblings(axes)]
                assert axes.get_xlabel() or any(a.get_xlabel() for a in shared), axes.get_title("left")
                assert axes.get_ylabel() or any(a.get_ylabel() for a in shared), axes.get_title("left")
        plt.close(figure)

    def test_states_claims_that_can_be_judged(self, made, name):
        root, _ = made(name)
        claims = json.loads((root / f"{name}-verdict.json").read_text())["claims"]
        assert claims
        for claim in claims:
            assert claim["verdict"] in ("supported", "not supported", "undecided")
            assert claim["ours"]["value"] is not None, claim["text"]
            # Two seeds decide nothing: only exact quantities and larger bootstraps may.
            if claim["ours"]["n"] < 3 and claim["ours"]["kind"] != "exact":
                assert claim["verdict"] == "undecided"


# -- the order of things -------------------------------------------------------------------------------------------


def test_figures_are_drawn_as_their_own_tasks_end(tmp_path, monkeypatch):
    """The one that needs fewer tasks first, the other after the rest; shared tasks once."""
    from figures.study import tasks

    real, events = tasks.run_task, []

    def run_task(task, *rest):
        events.append("task")
        return real(task, *rest)

    monkeypatch.setattr(tasks, "run_task", run_task)
    names = ["asam-fig6", "asam-fig3", "asam-fig2"]  # 12 tasks, and 2 that both others share
    pictures = entry.make(names, Study(tmp_path / "study", "smoke"), tmp_path, lambda path: events.append(path.stem))
    assert events == ["task"] * 2 + ["asam-fig3", "asam-fig2"] + ["task"] * 12 + ["asam-fig6"]
    assert [p.stem for p in pictures] == ["asam-fig3", "asam-fig2", "asam-fig6"]


def test_a_figure_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    from figures.paper import asam_fig2

    def fail(self, numbers):
        raise ZeroDivisionError("no such panel")

    monkeypatch.setattr(asam_fig2.FlatLogits, "draw", fail)
    monkeypatch.setattr(study_module, "PRESETS", {"quick": study_module.PRESETS["smoke"]})
    out = ["--seeds", "2", "--workers", "1", "--quiet", "--out", str(tmp_path)]
    assert run(["figures", "asam-fig2", "asam-fig6", "asam-fig3", *out]) == 1
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / n) for n in ("asam-fig3.png", "asam-fig6.png", "verdicts.md")]
    assert "asam-fig2 was not made" in printed.err
    assert "no such panel" in printed.err
    assert "asam-fig6 was not made" not in printed.err
    with pytest.raises(ZeroDivisionError, match="no such panel"):
        entry.make(["asam-fig2"], Study(tmp_path / "study"), tmp_path)


def test_figures_that_all_fail_by_wrong_input_exit_as_wrong_input(tmp_path, monkeypatch, capsys):
    from figures.paper import asam_fig2

    def refuse(self, numbers):
        raise InputError("no such data")

    monkeypatch.setattr(study_module, "PRESETS", {"quick": study_module.PRESETS["smoke"]})
    monkeypatch.setattr(asam_fig2.FlatLogits, "draw", refuse)
    command = ["figures", "asam-fig2", "asam-fig3", "--seeds", "2", "--workers", "1", "--quiet", "--out", str(tmp_path)]
    assert run(command) == 1  # the other one is there
    monkeypatch.setattr(FIGURES["asam-fig3"], "draw", refuse)
    assert run(command) == 2
    assert "asam-fig3 was not made: no such data" in capsys.readouterr().err


def test_a_full_disk_ends_the_study_with_one_line(tmp_path, monkeypatch, capsys):
    from figures.study import tasks

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "there")

    monkeypatch.setattr(tasks, "run_task", full)
    monkeypatch.setattr(study_module, "PRESETS", {"quick": study_module.PRESETS["smoke"]})
    assert run(["figures", "asam-fig6", "asam-fig3", "--workers", "1", "--quiet", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# -- what is drawn -------------------------------------------------------------------------------------------------


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


def test_no_ratio_is_made_of_a_sharpness_that_is_not_positive():
    from figures.paper.saf_fig3 import log_ratio

    np.testing.assert_array_equal(np.isnan(log_ratio([-1.0, 0.0, 2.0], [1.0, 1.0, 1.0])), [True, True, False])


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


def test_surfaces_share_color_levels_and_height(made):
    numbers, figure = drawn(made, "saf-fig4")
    solid = [a for a in figure.axes if a.get_label() == "solid"]
    others = ("profile", "<colorbar")
    flat = [a for a in figure.axes if a.collections and a not in solid and not a.get_label().startswith(others)]
    assert len(solid) == len(flat) == 4
    assert len({a.get_zlim() for a in solid}) == 1
    limits = {(a.collections[0].norm.vmin, a.collections[0].norm.vmax) for a in solid}
    assert limits == {(numbers["loss"][:, 0].min(), numbers["loss"][:, 0].max())}
    levels = [tuple(a.collections[0].levels) for a in flat]
    assert len(set(levels)) == 1
    assert levels[0][0] == pytest.approx(numbers["loss"][:, 0].min())
    titles = [a.get_title("left") or a.get_title() for a in solid]
    assert titles == ["SGD", "SAM", "SAF", "MESA"]
    assert figure.get_suptitle().startswith(f"Surfaces: seed 0 of {len(numbers['seed'])}")
    plt.close(figure)


def test_profiles_show_every_seed(made):
    """Below the surfaces of one seed: the mean cut of each method over all seeds, with its interval."""
    numbers, figure = drawn(made, "saf-fig4")
    loss, middle = numbers["loss"], len(numbers["x"]) // 2
    cuts = (loss[..., :, middle] + loss[..., middle, :]) / 2
    np.testing.assert_array_equal(numbers["profile"], cuts)
    rise, level = (a for a in figure.axes if a.get_label() == "profile")
    assert (rise.get_yscale(), level.get_yscale()) == ("linear", "log")
    for i, method in enumerate(("SGD", "SAM", "SAF", "MESA")):
        above = (cuts[i] - cuts[i][:, [middle]]).mean(axis=0)
        np.testing.assert_allclose(rise.lines[i].get_ydata(), above, atol=1e-12)
        np.testing.assert_allclose(level.lines[i].get_ydata(), np.exp(np.log(cuts[i]).mean(axis=0)), rtol=1e-12)
        assert method in [t.get_text() for t in rise.texts]
    assert len(rise.collections) == len(level.collections) == 4, "a band a method"
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


def edge_numbers(ratio, midpoint, accuracy):
    """Numbers of edge-of-stability with these lambda_max eta / 2 over the steps, the same for three seeds and runs."""
    from figures.paper.edge_of_stability import RUNS

    numbers = FigureData()
    for name, values in (("run", [str(r) for r in RUNS]), ("seed", range(3)), ("step", range(len(ratio)))):
        numbers.axis(name, values)
    rates = np.array([lr for _, lr in RUNS])
    numbers.add("rate", ("run",), rates)
    numbers.add("objective", ("run",), [loss for loss, _ in RUNS])
    for name, values in (("lambda_max", ratio), ("lambda_max_midpoint", midpoint), ("accuracy", accuracy)):
        scale = 1 if name == "accuracy" else 2 / rates[:, None, None]
        numbers.add(name, ("run", "seed", "step"), scale * np.tile(np.array(values, dtype=float), (len(RUNS), 3, 1)))
    return numbers


def test_the_edge_is_judged_from_the_first_crossing_on():
    judge = FIGURES["edge-of-stability"]().judge
    accuracy = [0.5, 0.8, 0.9, 0.95, 1.0, 1.0]
    claims = judge(edge_numbers([0.2, 0.8, 1.1, 1.3, 1.2, 0.4], [0.2, 0.8, 1.0, 1.1, 1.0, 0.4], accuracy))
    assert len({c.text for c in claims}) == len(claims), "the gallery shows the text alone"
    squared = [c for c in claims if "squared error" in c.text]
    assert [c.ours.value for c in squared[:2]] == pytest.approx([1.0, 0.875]), "to the end"
    cross = [c for c in claims if "ross-entropy" in c.text]
    assert [c.ours.value for c in cross] == pytest.approx([1.2, 1.05, 0.4]), "until the examples are learned"
    assert cross[2].verdict == "supported"
    never = judge(edge_numbers([0.2, 0.3, 0.4, 0.5, 0.5, 0.5], [0.2] * 6, accuracy))
    assert {c.verdict for c in never} == {"undecided"}, "what never gets to the edge shows nothing about it"
    late = judge(edge_numbers([0.2, 0.3, 0.4, 0.5, 0.6, 1.1], [0.2] * 6, accuracy))
    cross = [c.verdict for c in late if c.text.startswith("With cross-entropy and")]
    assert cross == ["undecided", "undecided"], "nor does what gets there after the examples are learned"


def test_gradient_descent_is_followed_at_its_iterates_and_midpoints():
    """lambda_max against a dense Hessian, at the iterate that plain steps reach and half a step further."""
    import torch

    from figures.paper.edge_of_stability import descend
    from trainers.data.datasets import load_data
    from trainers.models import build_model

    common = {"data": "digits", "samples": 24, "hidden": 2, "lr": 0.1, "steps": 4, "every": 2, "tolerance": 1e-6}
    common |= {"seed": 3, "device": "cpu", "data_dir": None}
    it = load_data("digits", seed=3)
    x, y = it.inputs(slice(0, 24)).double(), it.targets(slice(0, 24))
    network = build_model("mlp", classes=10, input_shape=it.input_shape, seed=3, hidden=(2, 2), activation="tanh")
    network.double()
    names = [n for n, _ in network.named_parameters()]
    shapes = [p.shape for p in network.parameters()]

    def loss(w):
        parts = w.split([s.numel() for s in shapes])
        parts = {n: v.view(s) for n, v, s in zip(names, parts, shapes, strict=True)}
        outputs = torch.func.functional_call(network, parts, (x,))
        return 0.5 * ((outputs - torch.eye(10)[y]) ** 2).sum() / 24

    found = descend(loss="squared error", label_noise=0.0, **common)
    w = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    for step in range(5):
        g = torch.func.grad(loss)(w)
        if step % 2 == 0:
            for name, at in (("lambda_max", w), ("lambda_max_midpoint", w - 0.05 * g)):
                oracle = torch.linalg.eigvalsh(torch.func.hessian(loss)(at))[-1]
                assert found[name][step // 2] == pytest.approx(float(oracle), rel=1e-5)
            assert found["loss"][step // 2] == pytest.approx(float(loss(w)), rel=1e-9)
        w = w - 0.1 * g


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
    left = figure.axes[0]
    relative = numbers["asam_official"][0] / np.median(numbers["asam_official"][0])
    assert any(np.array_equal(line.get_ydata(), relative) for line in left.lines)
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


def test_bands_are_intervals():
    from scipy import stats

    from figures.drawing import bands

    values = np.array([[1.0, 2.0], [2.0, 4.0], [4.0, 9.0]])
    _, axes = plt.subplots()
    assert bands.band(axes, [0, 1], values, "k") == (1.0, 5.0)
    low, high = stats.t.interval(0.95, 2, values.mean(0), stats.sem(values, axis=0))
    corners = axes.collections[0].get_paths()[0].vertices
    for i in range(2):
        at = corners[corners[:, 0] == i, 1]
        assert (at.min(), at.max()) == pytest.approx((low[i], high[i]))
    bands.band(axes, [0, 1], values, "k", log=True)
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [2.0, 72 ** (1 / 3)])
    plt.close("all")


def test_rank_correlations_are_scipys():
    from scipy.stats import kendalltau, spearmanr

    from figures.paper.correlation import kendall, spearman, within

    generator = np.random.default_rng(0)
    x, y = generator.integers(6, size=40).astype(float), generator.normal(size=40)
    noise = np.repeat([0.0, 0.2], 20)
    for ours, theirs in ((kendall, kendalltau), (spearman, spearmanr)):
        assert ours(x, y) == pytest.approx(theirs(x, y).statistic, rel=1e-12)
        parts = [theirs(x[noise == n], y[noise == n]).statistic for n in (0.0, 0.2)]
        assert within(ours, noise, x, y) == pytest.approx(np.mean(parts), rel=1e-12)
        assert np.isnan(ours(np.ones(4), np.arange(4.0)))
        assert np.isnan(ours(np.array([1.0, np.nan, 2.0]), np.arange(3.0)))
        assert np.isnan(within(ours, np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 3.0, 3.0]), np.arange(4.0)))


def checkpoints(signal):
    """Numbers of 12 methods x 3 noises x 3 seeds; measures follow a method's own level, and the gap `signal` times."""
    from figures.paper.all_methods import MEASURES, NOISE

    generator = np.random.default_rng(0)
    rows = [(m, n, s) for m in range(12) for n in NOISE for s in range(3)]
    method = np.array([f"m{m}" for m, _, _ in rows])
    level = generator.normal(size=12)[[m for m, _, _ in rows]]
    numbers = FigureData(facts={"checkpoints": len(rows), "methods": 12, "draws": 200})
    numbers.axis("checkpoint", range(len(rows)))
    numbers.add("method", ("checkpoint",), method)
    numbers.add("noise", ("checkpoint",), [n for _, n, _ in rows])
    for name in MEASURES:
        numbers.add(name, ("checkpoint",), np.exp(level + 0.1 * generator.normal(size=len(rows))))
    other = generator.normal(size=12)[[m for m, _, _ in rows]]
    for name in ("gap", "error"):
        numbers.add(name, ("checkpoint",), signal * level + other + 0.1 * generator.normal(size=len(rows)))
    return numbers


def test_correlations_are_judged_by_methods():
    figure = FIGURES["correlation"]()
    claims = figure.judge(checkpoints(5.0))
    assert {c.quantity for c in claims[:2]} == {
        "Kendall's tau within each label noise",
        "Spearman's rho within each label noise",
    }
    assert len({c.text for c in claims}) == len(claims), "the gallery shows the text alone"
    assert {(c.ours.n, c.ours.kind) for c in claims} == {(12, "cluster bootstrap")}
    assert [c.verdict for c in claims[:-2]] == ["supported"] * (len(claims) - 2)
    assert [c.verdict for c in claims[-2:]] == ["undecided"] * 2


def test_correlations_are_drawn_with_their_intervals():
    from figures.paper.correlation import MEASURES, RANKS, within

    numbers = checkpoints(0.5)
    entry_ = FIGURES["correlation"]()
    with style.use():
        figure = entry_.draw(numbers)
    for axes, statistic in zip(figure.axes, RANKS.values(), strict=True):
        for container, target in zip(axes.containers, ("gap", "error"), strict=True):
            shown = container.lines[0].get_xdata(orig=False)
            oracle = [within(statistic, numbers["noise"], numbers[m], numbers[target]) for m in MEASURES]
            np.testing.assert_allclose(np.sort(shown), np.sort(oracle))
            ends = np.array([s[:, 0] for s in container.lines[2][0].get_segments()])
            assert (ends[:, 0] < shown).all()
            assert (ends[:, 1] > shown).all()
    plt.close(figure)


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
    from trainers.rebuild import subject

    root, study = made("saf-fig3")
    numbers = FigureData.load(root / "saf-fig3.h5")
    training = runs(study)["mesa", 1]
    rows = (study.path(training) / "history.csv").read_text().split()
    column = rows[0].split(",").index("train_loss")
    history = [float(r.split(",")[column]) for r in rows[1:]]
    np.testing.assert_allclose(numbers.at("train_loss", method="mesa", seed=1), history, rtol=1e-6)
    problem = subject(study.path(training) / "epoch-2.pt", samples=128).problem
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


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_lists_without_torch():
    code = (
        "import sys, cli; status = cli.run(['figures', '--list']); "
        "assert status == 0 and 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "asam-fig6 " in done.stdout
    assert "ASAM report, Figure 6" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["asam-fig66"], "asam-fig6"),
        ([], "--all"),
        (["asam-fig6", "--all"], "--all"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, tmp_path, capsys):
    assert run(["figures", *arguments, "--out", str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_command_makes_a_figure(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["figures", "asam-fig6", "--seeds", "3", "--workers", "1", "--quiet", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out / "asam-fig6.png"), str(out / "verdicts.md")]
    assert len(FigureData.load(out / "asam-fig6.h5")["seed"]) == 3


@pytest.fixture
def clothes(tmp_path):
    """A folder with files of Fashion-MNIST's names; nothing opens them."""
    from trainers.data.files import OFFICIAL

    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    for file in OFFICIAL["fashion-mnist"]:
        (folder / file.name).touch()
    return folder.parent


def test_photographs_are_taken_where_their_files_are(tmp_path, clothes):
    figure = FIGURES["asam-fig7"]()

    def data(study):
        return {t.settings["data"].partition(":")[0] for t in figure.plan(study)}

    here = Study(tmp_path, "quick", data_dir=str(clothes))
    assert (data(here), figure.note(here)) == ({"fashion-mnist"}, "")
    (clothes / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    assert data(here) == {"digits"}, "all four files are needed"
    assert "landscape data fetch fashion-mnist" in figure.note(here)
    assert data(Study(tmp_path, "paper", data_dir=str(clothes))) == {"cifar10"}
    assert figure.note(Study(tmp_path, "paper", data_dir=str(clothes))) == ""


def test_digits_in_place_of_photographs_are_said(tmp_path, monkeypatch, capsys):
    from figures.study.recipes import lacking

    monkeypatch.setattr(entry, "make", lambda *_: [])
    command = ["figures", "asam-fig7", "asam-table1", "--data-dir", str(tmp_path), "--out", str(tmp_path)]
    assert run(command) == 0
    said = capsys.readouterr().err
    assert said.count(lacking(Study(tmp_path, "quick", data_dir=str(tmp_path)))) == 1
    assert str(tmp_path) in said
    facts = {"preset": "quick", "data": "digits", "model": "small-cnn", "in place of": "Fashion-MNIST"}
    assert entry.said(facts) == "preset quick, digits in place of Fashion-MNIST, small-cnn"


def test_an_interrupted_command_goes_on(tmp_path, capsys, monkeypatch):
    from figures.study import tasks

    real, started = tasks.run_task, []

    def killed(task, *rest):
        started.append(task.name)
        if len(started) == 5:
            raise KeyboardInterrupt
        return real(task, *rest)

    monkeypatch.setattr(tasks, "run_task", killed)
    command = ["figures", "asam-fig6", "--seeds", "2", "--workers", "1", "--quiet", "--out", str(tmp_path)]
    assert run(command) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "asam-fig6.png").exists()
    assert run([*command, "--resume"]) == 0
    # 6 variances x 2 seeds, and the one that was lost.
    assert len(started) == 13
    assert len(set(started)) == 12


def test_flatness_at_a_loss_is_that_of_the_first_epoch_below_it(tmp_path):
    from figures.study.computations import at_loss, measures
    from trainers import train

    network = {"data": "digits", "model": "mlp:hidden=16", "lr": 0.05, "epochs": 4}
    train("sgd", out=tmp_path, keep_every=1, **network)
    options = {"epochs": [1, 2, 3, 4], "radii": [0.05, 0.2], "samples": 200, "test": None}
    options |= {"device": "cpu", "data_dir": None}
    curve = at_loss(tmp_path, level=0.0, **options)["curve"]
    assert curve[0] > curve[1] > curve[3]
    found = at_loss(tmp_path, level=(curve[0] + curve[1]) / 2, **options)
    assert found["epoch"] == 2
    wanted = {"sam_sharpness": {"rho": 0.2}, "hessian_top_eigenvalues": {"k": 1, "tol": 0.03}}
    for row, file in ((0, "ckpt.pt"), (1, "epoch-2.pt")):
        one = measures(tmp_path, wanted=wanted, samples=200, device="cpu", data_dir=None, file=file)
        both = (found["loss"], found["accuracy"], found["eigenvalue"], found["sam_sharpness"][:, 1])
        expected = [one[k] for k in ("loss", "accuracy", "hessian_top_eigenvalues", "sam_sharpness")]
        np.testing.assert_allclose([x[row] for x in both], expected, rtol=1e-5)  # float32
    never = at_loss(tmp_path, level=curve[3] / 2, **options)
    assert np.isnan([never["epoch"], never["loss"][1], never["eigenvalue"][1]]).all()
    assert np.isfinite(never["loss"][0])
