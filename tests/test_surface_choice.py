"""How points are evaluated: the rule of batches and where it stays away, points per launch, precision."""

import random
import time

import numpy as np
import pytest
import torch
from surface_cases import data, mlp
from torch import nn

import landscape
from landscape import InputError, NonDeterministicWarning, Problem
from landscape.surfaces.directions.directions import directions
from landscape.surfaces.grid import evaluation
from landscape.surfaces.grid.choice import activations, choose, fitting_examples, fitting_points


def conv(norm="batch", **options):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(4) if norm == "batch" else nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).eval()
    images = torch.randn(200, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    labels = data(200)[1]
    return Problem(model, nn.CrossEntropyLoss(), list(zip(images.split(50), labels.split(50), strict=True)), **options)


def chosen(problem, points=1000, **options):
    found = directions("gaussian", problem)
    passes = problem.passes.forward
    choice = choose({"": problem}, found.center, found.vectors, points, **options)
    return choice, (problem.passes.forward - passes) / problem.examples


def test_batches_follow_from_the_network_and_the_device_and_only_their_check_is_counted():
    choice, passes = chosen(mlp())
    assert (choice.batch_size, choice.channels_last, choice.points_per_launch) == (300, False, 1)
    assert choice.reason == "rule for networks without images on cpu"
    assert passes == 2
    choice, _ = chosen(conv())
    assert (choice.batch_size, choice.channels_last) == (200, True)
    assert choice.reason == "rule for convolutions on cpu"
    surface = landscape.surface(mlp(), grid=11)
    assert surface.choice["batch_size"] == 300
    np.testing.assert_allclose(surface.loss, landscape.surface(mlp(), grid=11, batch_size=0).loss, rtol=1e-5)


@pytest.mark.parametrize(
    ("activations", "device", "images", "examples"),
    [
        (474, "cpu", False, 4096),  # the built-in mlp on digits
        (3000, "cpu", False, 2048),
        (606_346, "cpu", True, 64),  # resnet20 on 32 x 32
        (5514, "cpu", True, 256),  # small-cnn on digits
        (606_346, "cuda", True, 256),
        (0, "cuda", True, 4096),
        (10**9, "cuda", False, 64),
    ],
)
def test_examples_a_batch_stay_within_cache_or_memory(activations, device, images, examples):
    assert fitting_examples(activations, device=device, images=images) == examples


def test_the_same_call_makes_the_same_numbers_whatever_the_clock_says(monkeypatch):
    draw, now = random.Random(0), [0.0]

    def uneven():
        now[0] += draw.expovariate(1000)
        return now[0]

    for clock in ("perf_counter", "monotonic", "process_time"):
        monkeypatch.setattr(time, clock, uneven)
    first, *others = (landscape.surface(conv(), radius=0.07, grid=11, gradient_norm=True) for _ in range(4))
    for other in others:
        assert other.choice == first.choice
        for name in ("loss", "accuracy", "gradient_norm"):
            np.testing.assert_array_equal(getattr(other, name), getattr(first, name))


def weighted_by_a_function(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 20.0, 0.1]))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: conv(batch_norm="batch"), "statistics of each batch"),
        (lambda: conv(evaluation_mode=False), "training mode"),
        (lambda: mlp(loss=weighted_by_a_function), "do not add up"),
    ],
)
def test_batches_stay_where_the_loss_depends_on_them(make, reason):
    problem = make()
    choice, _ = chosen(problem)
    assert choice.batch_size == 0
    assert reason in choice.reason
    surface = landscape.surface(problem, grid=3)
    assert surface.center_loss == pytest.approx(float(problem.loss()), rel=1e-6)


def test_norm_without_running_statistics_keeps_the_batches():
    with pytest.warns(NonDeterministicWarning):
        problem = conv("untracked")
    assert "no running statistics" in chosen(problem)[0].reason


def test_few_points_do_not_repay_other_batches():
    choice, passes = chosen(mlp(), points=9)
    assert choice.batch_size == 0
    assert "9 points" in choice.reason
    assert passes == 0


def test_points_a_launch_on_request_and_what_cannot_be_batched():
    plain = landscape.surface(mlp(dtype=torch.float64), grid=5)
    many = landscape.surface(mlp(dtype=torch.float64), grid=5, points_per_launch=4)
    assert many.choice["points_per_launch"] == 4
    np.testing.assert_allclose(many.loss, plain.loss, rtol=1e-12)
    np.testing.assert_array_equal(many.accuracy, plain.accuracy)
    refused = landscape.surface(conv(batch_norm="batch"), grid=3, points_per_launch=4)
    assert refused.choice["points_per_launch"] == 1
    assert "frozen" in refused.choice["reason"]

    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if self.weight.sum() > -1e9 else x

    inputs, labels = data(20)
    torch.manual_seed(0)
    branching = Problem(Branching(8, 3), nn.CrossEntropyLoss(), [(inputs, labels)])
    found = landscape.surface(branching, grid=3, points_per_launch=4)
    assert found.choice["points_per_launch"] == 1
    assert "does not batch" in found.choice["reason"]


def test_points_a_launch_stay_small_in_work_and_memory():
    problem = conv()
    # convolution, BatchNorm, ReLU and flatten put out 4 x 4 x 4 each, the last layer 3
    before = [dict(m._forward_hooks) for m in problem.model.modules()]
    assert activations(problem) == 4 * 64 + 3
    assert before == [dict(m._forward_hooks) for m in problem.model.modules()]
    assert fitting_points(1000, dimension=600, examples=2000, activations=2000 * 60) == 128
    assert fitting_points(50, dimension=600, examples=2000, activations=2000 * 60) == 32
    assert fitting_points(1000, dimension=1_800_000, examples=2000, activations=2000 * 4000) == 1
    for numbers in (2000 * 650_000, 2000 * 10_000):
        points = fitting_points(1000, dimension=1000, examples=2000, activations=numbers)
        assert points == 1 or points * numbers <= 2**28


def test_tiles_are_resumed_whole(tmp_path):
    whole = landscape.surface(mlp(), grid=5, points_per_launch=4, batch_size=0)
    problem, calls = mlp(), 0

    def stop(*_):
        nonlocal calls
        calls += 1
        if calls > 6 * 6:
            raise KeyboardInterrupt

    # The same loss to all who look at it: a surface of another loss would be refused.
    problem.objective.loss = nn.CrossEntropyLoss()
    problem.objective.loss.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        landscape.surface(problem, grid=5, points_per_launch=4, batch_size=0, file=tmp_path / "s.h5")
    partial = landscape.load(tmp_path / "s.h5")["surface"]
    assert 0 < partial.done.sum() < 25
    assert partial.done.sum() % 4 == 0
    resumed = landscape.surface(mlp(), grid=5, batch_size=0, file=tmp_path / "s.h5")
    assert resumed.choice["points_per_launch"] == 4
    np.testing.assert_array_equal(resumed.loss, whole.loss)


def test_bfloat16_error_is_measured_at_center_ends_and_corners():
    native = landscape.surface(mlp(), grid=3)
    low = landscape.surface(mlp(), grid=3, precision="bfloat16")
    errors = low.facts["precision_error"]
    assert errors[0]["point"] == [0, 0]
    assert len(errors) == 9  # the corners, the ends of the axes, which are beside the center of three points, and it
    for error in errors:
        i, j = (int(np.flatnonzero(a == c)[0]) for a, c in zip(low.axes, error["point"], strict=True))
        assert error["loss"] == low.loss[i, j]
        assert error["native"] == pytest.approx(native.loss[i, j], rel=1e-6)
        assert error["relative_error"] == pytest.approx(abs(error["loss"] / error["native"] - 1))
    assert 0 < max(e["relative_error"] for e in errors) < 0.05
    assert "bfloat16" in low.caption()


def test_wrong_choices_are_refused():
    for options in ({"precision": "float8"}, {"batch_size": -1}, {"points_per_launch": 0}):
        with pytest.raises(InputError):
            landscape.surface(mlp(), grid=3, **options)


# -- curvature and gradient maps -------------------------------------------------------------------------------------


def test_maps_agree_with_dense_linear_algebra():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    inputs = torch.randn(15, 4).double()
    problem = Problem(
        model, nn.CrossEntropyLoss(), [(inputs[:6], torch.arange(6) % 2), (inputs[6:], torch.arange(9) % 2)]
    )
    found = landscape.surface(problem, radius=0.5, grid=3, gradient_norm=True, curvature=True)
    vectors = directions("gaussian", problem).vectors
    for i, j in np.ndindex(3, 3):
        w = problem.weights + found.x[i] * vectors[0] + found.y[j] * vectors[1]
        assert found.gradient_norm[i, j] == pytest.approx(float(problem.gradient(w).norm()), rel=1e-10)
        dense = torch.stack([problem.hvp(v, w) for v in torch.eye(problem.dimension, dtype=torch.float64)])
        values = torch.linalg.eigvalsh(dense)
        tolerance = 1.01e-3 * float(values.abs().max())
        assert found.lambda_min[i, j] == pytest.approx(float(values[0]), abs=tolerance)
        assert found.lambda_max[i, j] == pytest.approx(float(values[-1]), abs=tolerance)
    ratio = (np.abs(np.minimum(found.lambda_min, 0)) / np.abs(found.lambda_max)).max()
    (check,) = (c for c in found.checks if c["name"] == "curvature")
    assert check["value"] == pytest.approx(ratio)
    assert check["ok"] == (ratio <= 0.05)


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has the former names alone")
@pytest.mark.parametrize("said", ["none", "ieee", "tf32"])
def test_tf32_is_taken_within_and_what_was_said_before_holds_after(said):
    holders = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [h.fp32_precision for h in holders]
    try:
        for holder in holders:  # the former names cannot be read any more after that
            holder.fp32_precision = said
        with evaluation._precision("tf32", torch.device("cuda")):
            assert [h.fp32_precision for h in holders] == ["tf32", "tf32"]
        assert [h.fp32_precision for h in holders] == [said, said]
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.fp32_precision = value
