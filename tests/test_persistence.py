"""Minima and saddles against closed forms, a brute-force sweep and gudhi; the null models against their own laws."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from surface_cases import mlp
from torch import nn

import landscape
from landscape import InputError, Problem
from landscape.surfaces import null_models
from landscape.surfaces.directions.directions import WHOLE, Directions
from landscape.surfaces.merge_tree import merge_tree


class Wells(nn.Module):
    """L = (x^2 - 1)^2 + tilt x + y^2: two wells; examples differ by a slope a_i along x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, slopes):
        x, y = self.w
        return (x**2 - 1) ** 2 + y**2 + 0.2 * x + slopes * x


def wells(examples=50, spread=0.05):
    generator = torch.Generator().manual_seed(0)
    slopes = spread * torch.randn(examples, generator=generator, dtype=torch.float64)
    slopes -= slopes.mean()
    return Problem(Wells(), lambda o, t: o, [(slopes, torch.zeros(examples))])


def plane(problem, count=2):
    vectors = tuple(torch.eye(2, dtype=torch.float64)[:count])
    return Directions("axes", vectors, problem.weights, WHOLE)


def stationary():
    """(minima, saddle) of (x^2 - 1)^2 + 0.2 x: roots of 4 x^3 - 4 x + 0.2."""
    left, middle, right = np.sort(np.roots([4, 0, -4, 0.2]).real)
    return left, right, middle


def height(x):
    return (x**2 - 1) ** 2 + 0.2 * x


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_double_well(count):
    problem = wells()
    left, right, middle = stationary()
    drawn = landscape.surface(
        problem, plane(problem, count), ranges=[(-1.5, 1.5), (-0.5, 0.5)][:count], grid=[151, 7][:count],
        dimensions=count, noise_draws=99, seed=1,
    )  # fmt: skip
    found = landscape.persistence(drawn)
    assert len(found.birth) == 2
    # On a grid of step h a smooth minimum is off by at most f'' h^2 / 8.
    step = 8 * 0.02**2
    np.testing.assert_allclose(found.birth, [height(left), height(right)], atol=step)
    np.testing.assert_allclose(found.death, [math.inf, height(middle)], atol=step)
    np.testing.assert_allclose(found.minima[:, 0], [left, right], atol=0.02)
    np.testing.assert_allclose(found.saddles[1, 0], middle, atol=0.02)
    assert np.isnan(found.saddles[0]).all()
    assert found.parent.tolist() == [-1, 0]
    assert found.saddle_height(0, 1) == found.saddle_height(1, 0) == found.death[1]
    assert found.saddle_height(1, 1) == found.birth[1]
    assert found.stands_out.all()


def test_noise_of_the_double_well_has_its_closed_form():
    """e(x) = c x with c normal of variance var(a) / n: 2 max |e| over the wells below the saddle."""
    problem, (_, _, middle) = wells(), stationary()
    drawn = landscape.surface(
        problem, plane(problem, 1), ranges=[(-1.5, 1.5)], grid=301, dimensions=1, noise_draws=999, seed=3
    )
    slopes = next(iter(problem.batches)).args[0]
    scale = float(slopes.std(correction=0)) / math.sqrt(len(slopes))
    deviation = drawn.sampling_noise.std(0)
    np.testing.assert_allclose(deviation, scale * np.abs(drawn.x), rtol=4 / math.sqrt(2 * 999), atol=1e-15)
    found = landscape.persistence(drawn, surrogates=0)
    inside = drawn.x[height(drawn.x) <= height(middle)]
    expected = 2 * scale * np.abs(inside).max() * stats.norm.ppf(0.975)
    assert found.sampling[1] == pytest.approx(expected, rel=0.12)  # the quantile of 999 draws, and c moves the edge
    assert found.sampling[0] >= found.sampling[1]


def test_a_well_within_the_noise_does_not_stand_out():
    shallow = wells(spread=20.0)
    drawn = landscape.surface(
        shallow, plane(shallow, 1), ranges=[(-1.5, 1.5)], grid=101, dimensions=1, noise_draws=99, seed=1
    )
    found = landscape.persistence(drawn)
    assert found.stands_out.tolist() == [True, False]
    assert found.noise[1] > found.persistence[1]


def test_path_over_a_hill():
    one, two = wells(), wells()
    left, right, middle = stationary()
    with torch.no_grad():
        one.model.w.copy_(torch.tensor([left, 0.0]))
        two.model.w.copy_(torch.tensor([right, 0.0]))
    one, two = (
        Problem(p.model, lambda o, t: o, [(next(iter(p.batches)).args[0], torch.zeros(50))]) for p in (one, two)
    )
    found = landscape.persistence(landscape.path(one, two, points=401, noise_draws=99))
    np.testing.assert_allclose(found.persistence, [math.inf, height(middle) - height(right)], atol=1e-3)
    assert found.minima[:, 0] == pytest.approx([0, 1])
    assert found.saddles[1, 0] == pytest.approx((middle - left) / (right - left), abs=0.003)
    assert found.unit == "t"
    assert np.isfinite(found.sampling).all()


def test_bilinear_saddle_of_one_cell():
    """Corners 0 and 0.2 across, 1 and 2: the saddle of a + (c - a) s + (b - a) t + D s t is (ad - bc) / D."""
    values = np.array([[0.0, 1.0], [2.0, 0.2]])
    tree = merge_tree(values)
    bend = 0.0 + 0.2 - 1.0 - 2.0
    assert tree.death[1] == pytest.approx((0.0 * 0.2 - 1.0 * 2.0) / bend, rel=1e-14)
    np.testing.assert_allclose(tree.saddles[1], [(0.0 - 1.0) / bend, (0.0 - 2.0) / bend], rtol=1e-14)
    turned = merge_tree(values[::-1])
    np.testing.assert_allclose(turned.death, tree.death, rtol=1e-14)
    np.testing.assert_allclose(turned.saddles[1], [1 - tree.saddles[1, 0], tree.saddles[1, 1]], rtol=1e-14)


def test_infinite_walls_and_ties():
    inf = math.inf
    tree = merge_tree(np.array([1.0, 3.0, 2.0, inf, 0.0, math.nan, 5.0]))
    assert tree.minima.tolist() == [4, 0, 6, 2]
    assert tree.death.tolist() == [inf, inf, inf, 3.0]
    assert tree.parents.tolist() == [-1, -1, -1, 1]
    flat = merge_tree(np.ones((3, 4)))
    assert flat.minima.tolist() == [0]
    tied = merge_tree(np.array([0.0, 1.0, 0.0, 1.0, 0.0]))
    assert tied.minima.tolist() == [0, 2, 4]
    assert tied.parents.tolist() == [-1, 0, 0]


# -- independent references --------------------------------------------------------------------------------------------


def fields():
    generator = np.random.default_rng(5)
    smooth = ndimage.gaussian_filter(generator.standard_normal((14, 17)), 1.2)
    return {"line": generator.standard_normal(60), "rough": generator.standard_normal((9, 12)), "smooth": smooth}


def pairs_by_sweep(values, levels):
    """Components of {f <= level}, counted by a flood fill: brute force, no union-find and no elder rule."""
    structure = ndimage.generate_binary_structure(values.ndim, 1)
    return [ndimage.label(values <= level, structure)[1] for level in levels]


def bilinear(values, times):
    """The piecewise (bi)linear function on a grid that is `times` finer."""
    for axis, n in enumerate(values.shape):
        places = np.linspace(0, n - 1, times * (n - 1) + 1)
        values = np.apply_along_axis(lambda row, p=places, n=n: np.interp(p, np.arange(n), row), axis, values)
    return values


@pytest.mark.parametrize("name", ["line", "rough", "smooth"])
def test_components_of_every_sublevel_set(name):
    """Basins alive at a level are the components of the sublevel set of the bilinear function, on a fine grid."""
    values = fields()[name]
    tree, fine = merge_tree(values), bilinear(values, 24)
    critical = np.sort(np.concatenate([tree.birth, tree.death[1:]]))
    # In the middle between two critical values that lie apart: there the fine grid resolves the passes.
    apart = np.diff(critical) > 0.01 * np.ptp(values)
    levels = ((critical[1:] + critical[:-1]) / 2)[apart]
    assert len(levels) > 8
    alive = [int(((tree.birth <= level) & (tree.death > level)).sum()) for level in levels]
    assert alive == pairs_by_sweep(fine, levels)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["line", "rough", "smooth"])
def test_gudhi_agrees(name):
    """The same pairs from gudhi: of the fine cubical complex to its resolution; of a line exactly."""
    gudhi = pytest.importorskip("gudhi")
    values = fields()[name]
    times = 1 if values.ndim == 1 else 40
    complex_ = gudhi.CubicalComplex(vertices=bilinear(values, times))
    theirs = np.array([pair for dimension, pair in complex_.persistence(min_persistence=0.0) if dimension == 0])
    tree = merge_tree(values)
    kept = tree.death - tree.birth > (0.0 if times == 1 else 1e-2)
    theirs = theirs[theirs[:, 1] - theirs[:, 0] > (0.0 if times == 1 else 1e-2)]
    ours = np.stack([tree.birth, tree.death], -1)[kept]
    ours, theirs = (p[np.lexsort(p.T[::-1])] for p in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14 if times == 1 else 5e-3)


def test_saddle_heights_between_all_minima():
    """Against the smallest level at which a flood fill puts both minima into one component."""
    values = fields()["line"]
    problem = mlp()
    drawn = landscape.surface(problem, grid=3, dimensions=1)
    found = landscape.persistence(_with_loss(drawn, values), surrogates=0)
    places = {i: round(float(x)) for i, x in enumerate(found.minima[:, 0])}
    for i, a in places.items():
        for j, b in places.items():
            low, high = sorted((a, b))
            assert found.saddle_height(i, j) == values[low : high + 1].max()


def _with_loss(drawn, values):
    from dataclasses import replace

    return replace(
        drawn, loss=values, x=np.arange(len(values), dtype=float), done=np.ones(values.shape, bool), checks=[]
    )


# -- null models -------------------------------------------------------------------------------------------------------


def test_surrogates_keep_trend_and_spectrum():
    generator = np.random.default_rng(2)
    x, y = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 40), indexing="ij")
    bowl = 3 + 2 * x + 5 * x**2 + y**2 - x * y
    rest = ndimage.gaussian_filter(generator.standard_normal((40, 40)), 2, mode="reflect")
    drawn, share = null_models.surrogates(bowl + rest, 200, seed=0)
    assert 0 < share < 0.01
    around = np.stack(drawn) - bowl
    # The spectrum of the reflected field: its variance, and its mean squared step.
    assert np.mean(around**2) == pytest.approx(np.mean(rest**2), rel=0.1)
    assert np.mean(np.diff(around, axis=1) ** 2) == pytest.approx(np.mean(np.diff(rest, axis=0) ** 2), rel=0.1)
    exact, share = null_models.surrogates(bowl, 3, seed=0)
    np.testing.assert_allclose(exact, np.broadcast_to(bowl, (3, 40, 40)), atol=1e-12)
    assert share == pytest.approx(0, abs=1e-20)


def test_random_surfaces_are_not_distinguished_from_their_own_kind():
    """Of fields that are Gaussian, 5% at most lie above the quantile of their surrogates, up to 4 standard errors."""
    generator, above, runs = np.random.default_rng(3), 0, 40
    for run in range(runs):
        one = ndimage.gaussian_filter(generator.standard_normal((16, 16)), 1.5, mode="reflect")
        tree = merge_tree(one)
        largest = np.max((tree.death - tree.birth)[1:], initial=0)
        drawn, _ = null_models.surrogates(one, 19, seed=run)
        beside = [merge_tree(s) for s in drawn]
        ours = [np.max((t.death - t.birth)[1:], initial=0) for t in beside]
        above += largest > max(ours)
    assert above <= runs * (0.05 + 4 * math.sqrt(0.05 * 0.95 / runs))


def test_sampling_bound_by_hand():
    loss = np.array([0.0, 1.0, 0.5, 3.0])
    noise = np.array([[0.0, 0.1, -0.2, 5.0]] * 18 + [[0.0, 0.3, 0.0, -2.5]])
    bounds = null_models.sampling(loss, noise, np.array([np.inf, 1.0]))
    # At level 1 the last point counts in the last draw alone: 3 - 2.5 lies below the level.
    assert bounds.tolist() == [10.0, 5.0]
    assert np.isnan(null_models.sampling(loss, None, np.array([1.0]))).all()


def test_a_loss_without_examples_leaves_the_sampling_noise_unknown():
    problem = mlp(loss=lambda o, t: nn.functional.cross_entropy(o, t) ** 2)
    drawn = landscape.surface(problem, grid=5, dimensions=1, noise_draws=19)
    assert np.isnan(drawn.sampling_noise).all()
    found = landscape.persistence(drawn)
    assert np.isnan(found.sampling).all()
    assert "rounding alone" in found.caption()
    np.testing.assert_array_equal(found.noise, found.rounding)


# -- files, input, command ---------------------------------------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    drawn = landscape.surface(mlp(), radius=1.0, grid=9, noise_draws=19, file=tmp_path / "s.h5")
    found = landscape.persistence(landscape.load(tmp_path / "s.h5")["surface"])
    assert found.summary() == {**landscape.persistence(drawn).summary(), "seconds": found.seconds}
    found.save(tmp_path / "p.h5")
    again = landscape.load(tmp_path / "p.h5")
    np.testing.assert_array_equal(again.surrogates, found.surrogates)
    np.testing.assert_array_equal(again.stands_out, found.stands_out)
    assert drawn.cost["forward"] == pytest.approx(2 * 81, abs=6)


def test_a_surface_without_noise_keeps_its_arguments():
    """Files of earlier releases hold no `noise_draws`: a surface that asks for none must go on with them."""
    assert "noise_draws" not in landscape.surface(mlp(), grid=3, dimensions=1).identity["arguments"]


def test_bad_input():
    from dataclasses import replace

    drawn = landscape.surface(mlp(), grid=3, dimensions=1)
    with pytest.raises(InputError, match="1 of 3 points are not computed: resume"):
        landscape.persistence(replace(drawn, done=np.array([True, True, False])))
    with pytest.raises(InputError, match="received Profiles"):
        landscape.persistence(landscape.profiles(mlp(), grid=3, draws=2))
    with pytest.raises(InputError, match="no point has a finite loss"):
        landscape.persistence(replace(drawn, loss=np.full(3, np.nan)))
    with pytest.raises(InputError, match="surrogates=-1"):
        landscape.persistence(drawn, surrogates=-1)
    with pytest.raises(InputError, match="noise_draws=5: a 95% quantile needs at least 19"):
        landscape.surface(mlp(), grid=3, noise_draws=5)
    with pytest.raises(InputError, match="at least 19"):
        landscape.path(mlp(), mlp(), noise_draws=1)


def test_tree_is_drawn_without_crossings():
    from figures.drawing import persistence as drawing

    found = landscape.persistence(_with_loss(landscape.surface(mlp(), grid=3, dimensions=1), fields()["line"]))
    places = drawing._leaves(found, len(found.birth))
    for child in range(1, len(found.birth)):
        span = sorted((places[child], places[int(found.parent[child])]))
        between = [m for m, place in places.items() if span[0] < place < span[1]]
        assert all(found.death[m] <= found.death[child] for m in between)
    axes = found.plot()
    assert len(axes.get_lines()) > 2 * len(found.birth)


def test_commands(tmp_path):
    from click.testing import CliRunner

    from commands.path import command as path_command
    from commands.surface import command
    from commands.train import command as train_command

    def run(command, *arguments):
        result = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.output

    for seed in (0, 1):
        options = ["--data", "digits", "--model", "mlp", "--epochs", 1, "--seed", seed, "--quiet"]
        run(train_command, "sgd", *options, "--out", tmp_path / str(seed))
    ends, options = [tmp_path / name / "ckpt.pt" for name in "01"], ["--samples", 100, "--persistence"]
    both = json.loads(run(command, *ends, *options, "--grid", 3, "--json", "--out", tmp_path / "two"))
    assert len(both["persistence"]) == 2
    assert all(len(p["birth"]) >= 1 for p in both["persistence"].values())
    text = run(path_command, *ends, *options, "--points", 9, "--out", tmp_path / "three")
    assert "minima:" in text
    assert "same spectrum" in text
    assert (tmp_path / "three" / "figures" / "persistence.png").stat().st_size > 10_000
    assert len(list((tmp_path / "two" / "figures").glob("*-persistence.png"))) == 2
    stored = landscape.load(tmp_path / "two" / "persistence.h5")
    assert {name: len(p.birth) for name, p in stored.items()} == {
        n: len(p["birth"]) for n, p in both["persistence"].items()
    }
    with pytest.raises(InputError, match="maps or --persistence"):
        run(command, ends[0], "--dimensions", 1, "--draws", 3, *options)
