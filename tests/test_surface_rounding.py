"""Surfaces in half precision: what rounding makes of a picture is measured, and no check or contour claims less."""

import dataclasses

import numpy as np
import pytest
import torch
from half_precision_cases import pair
from torch import nn

import landscape
from figures.page.grids import Scale, grid, shared_scale, views
from landscape.surfaces import null_models, picture_checks
from landscape.surfaces.directions.directions import Directions, described, directions
from landscape.surfaces.grid.evaluation import Choice, GridEvaluation
from landscape.surfaces.grid.rounding import rounding_of_differences

CASES = [("bfloat16 weights", "native"), ("bfloat16 autocast", "native"), ("float32", "bfloat16")]


def surfaces(name, kind, precision, **options):
    """A surface in half precision, and the same one in float64."""
    low, exact = pair(name, "bfloat16 autocast" if kind == "float32" else kind)
    if kind == "float32":
        low = landscape.Problem(low.model, nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in low.batches])
    options = {"directions": directions("gaussian", low), "grid": 7, "batch_size": 0, **options}
    return landscape.surface(low, precision=precision, **options), landscape.surface(exact, **options)


def finding(surface, name):
    return next((c for c in surface.checks if c["name"] == name), None)


@pytest.mark.parametrize(("kind", "precision"), CASES)
@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_differences_are_right_within_the_rounding_that_is_stated(name, kind, precision):
    for radius in (0.01, 0.07):
        low, exact = surfaces(name, kind, precision, radius=radius)
        error = low.loss - exact.loss
        assert np.ptp(error) <= low.rounding < 1
        for row in low.facts["precision_error"]:
            i, j = (int(np.flatnonzero(a == c)[0]) for a, c in zip(low.axes, row["point"], strict=True))
            assert row["loss"] == low.loss[i, j]
            assert row["native"] == pytest.approx(exact.loss[i, j], rel=1e-5)
        assert "are rounding" in low.caption()
        assert low.summary()["rounding"] == low.rounding
        assert exact.rounding is None
        assert "rounding" not in exact.caption()
        assert "precision_error" not in exact.facts


def test_a_picture_of_rounding_claims_no_minimum_and_no_relief():
    low, exact = surfaces("mlp", "float32", "bfloat16", radius=1e-4)
    assert low.loss[low.center] > low.loss.min(), "by rounding a point lies below the center"
    assert finding(low, "minimum")["ok"]
    assert "by more than rounding" in finding(low, "minimum")["text"]
    assert not finding(low, "range")["ok"]
    assert "or float32" in finding(low, "range")["text"]
    assert finding(exact, "range")["text"].startswith("the relief")
    wide, _ = surfaces("mlp", "float32", "bfloat16", radius=0.5)
    assert finding(wide, "range")["ok"]


@pytest.mark.parametrize(("radius", "ok"), [(0.002, False), (0.5, True)])
def test_weights_that_cannot_hold_a_step_of_the_grid_are_told(radius, ok):
    low, exact = surfaces("mlp", "bfloat16 weights", "native", radius=radius)
    told = finding(low, "displacement")
    assert told["ok"] == ok
    assert told["text"].startswith(
        "weights in bfloat16 hold a step" if ok else "weights in bfloat16 do not hold a step"
    )
    assert finding(exact, "displacement") is None
    problem = pair("mlp", "bfloat16 weights")[0]
    w, plane = problem.weights, directions("gaussian", problem)
    step, lost = float(low.x[1] - low.x[0]), []
    for v in plane.vectors:
        moved = (w.double() + step * v.double()).bfloat16().double() - w.double()
        lost.append(float((moved - step * v.double()).norm() / (step * v.double()).norm()))
    assert told["value"] == pytest.approx(max(lost), rel=0.02)


def test_rounding_hides_negative_curvature_as_a_small_picture_does():
    """A saddle whose second differences are drowned in what rounding was measured."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    bend = torch.tensor([1.0, -1.0], dtype=torch.float64)
    x = torch.eye(2, dtype=torch.float64)
    problem = landscape.Problem(model, lambda o, _: (o.flatten() ** 2 * bend).sum() + 2, [(x, x)])
    plane = described(Directions("own", tuple(x), problem.weights, ""), problem.parameters)
    drawn = landscape.surface(problem, plane, radius=0.1, grid=5, curvature=True)
    evaluation = GridEvaluation({"": problem}, problem.weights, plane.vectors, Choice())
    assert finding(drawn, "curvature")["ok"]
    rows = [{"point": [0, 0], "loss": 0.0, "native": 0.0}, {"point": [1, 0], "loss": 0.01, "native": 0.0}]
    coarse = dataclasses.replace(drawn, facts={**drawn.facts, "precision_error": rows})
    assert coarse.rounding == pytest.approx(0.03)
    (again,) = (c for c in picture_checks.check(coarse, problem, evaluation) if c["name"] == "curvature")
    assert not again["ok"]
    assert "too coarse for the negative curvature" in again["text"]


def test_contours_lie_no_closer_than_rounding():
    low, exact = surfaces("mlp", "float32", "bfloat16", radius=0.03)
    scale, fine = (shared_scale([grid(s)]) for s in (low, exact))
    assert scale.rounding == low.rounding > 0 == fine.rounding
    assert np.diff(scale.levels(False), prepend=-np.inf).min() >= low.rounding
    assert len(scale.levels(False)) < len(fine.levels(False))
    for view in views([grid(low), grid(exact)]):
        assert view.scale.rounding == low.rounding
    wide = Scale(0.1, 10.0, 1.0, 0.05)
    levels = 10 ** wide.levels(True)
    assert np.diff(levels).min() >= 0.05
    assert len(levels) < len(Scale(0.1, 10.0, 1.0).levels(True))


def test_minima_by_rounding_are_measured_where_it_is():
    low, exact = surfaces("gpt", "float32", "bfloat16", radius=0.01)
    found, right = (landscape.persistence(s, surrogates=0) for s in (low, exact))
    assert (found.rounding == low.rounding).all()
    assert (right.rounding < 1e-12).all()
    stored = dataclasses.replace(low, facts={})  # of a file that holds no errors
    assert null_models.rounding(stored, found)[0] == pytest.approx(20 * 2**-7 * np.abs(found.birth[0]), rel=1)


def test_an_error_that_all_points_share_moves_no_picture():
    rows = [{"loss": 1.0 + e, "native": 1.0} for e in (0.5, 0.5, 0.51, float("nan"))]
    assert rounding_of_differences(rows) == pytest.approx(0.03)
    assert rounding_of_differences(rows[:1]) is None
    assert rounding_of_differences([]) is None
