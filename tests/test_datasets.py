"""Datasets: names with arguments, standardization, drawn data with known truth, label noise."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch

from landscape.errors import InputError
from landscape.random import stream
from trainers.data import toy2d
from trainers.datasets import flip_labels, load_data
from trainers.names import parse_name


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("digits", "digits", {}),
        ("toy2d:variance=15,n=2000", "toy2d", {"variance": 15, "n": 2000}),
        ("toy2d:test-variance=2.5", "toy2d", {"test_variance": 2.5}),
        ("toy2d:test_variance=none", "toy2d", {"test_variance": None}),
        ("random-images:shape=3x32x16,n=5", "random-images", {"shape": (3, 32, 16), "n": 5}),
        ("random-images:shape=(3,32,16),n=5", "random-images", {"shape": (3, 32, 16), "n": 5}),
        (
            "mlp:hidden=7,activation=tanh,batch_norm=true",
            "mlp",
            {"hidden": 7, "activation": "tanh", "batch_norm": True},
        ),
        ("npz:/a dir/b=c,d:e.npz", "npz:/a dir/b=c,d:e.npz", {}),
    ],
)
def test_names_carry_arguments_and_paths_survive(text, name, arguments):
    assert parse_name(text) == (name, arguments)


@pytest.mark.parametrize("text", ["toy2d:variance", "toy2d:=3", "toy2d:n=", ":n=3", "toy2d:n=1,n=2", "toy2d:a b=3"])
def test_a_malformed_argument_is_refused(text):
    with pytest.raises(InputError, match=r"write NAME|give it once"):
        parse_name(text)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("digit", {}, "unknown dataset 'digit': did you mean 'digits'"),
        ("toy2d:varince=5", {}, "unknown argument of toy2d 'varince': did you mean 'variance'"),
        ("toy2d:variance=big", {}, "variance='big' of 'toy2d' is not of type float"),
        ("toy2d", {"n": 2.5}, "n=2.5 of 'toy2d' is not of type int"),
        ("toy2d", {"variance": -1}, "variances must not be negative"),
        ("toy2d", {"variance": float("nan")}, "is not of type float"),
        ("random-images:shape=32x32", {}, "three positive sizes"),
        ("many-classes:n=100", {}, "an example per class"),
        ("digits", {"label_noise": 1.5}, "label noise 1.5"),
        ("npz", {}, "write npz:FILE"),
        ("npz:", {}, "write npz:FILE"),
        ("package.module:callable", {}, "unknown dataset 'package.module'"),
        ("npz:nowhere.npz", {}, "nowhere.npz does not exist"),
    ],
)
def test_wrong_input_says_what_to_do(name, arguments, message):
    with pytest.raises(InputError, match=message):
        load_data(name, **arguments)


def test_listing_and_fetching_need_no_torch():
    code = (
        "import sys; from trainers.data import DATA; from trainers.names import parse_name; import trainers.data.files;"
        "assert all(e.summary for e in DATA.entries.values()) and len(DATA) >= 9; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@functools.cache
def digits():
    return load_data("digits")


def test_digits_are_the_stratified_split_of_sklearns_scans():
    data = digits()
    assert (data.size("train"), data.size("test"), data.classes, data.input_shape) == (1437, 360, 10, (1, 8, 8))
    assert data.y_train.dtype == torch.int64
    shares = [torch.bincount(y, minlength=10) / len(y) for y in (data.y_train, data.y_test)]
    torch.testing.assert_close(shares[0], shares[1], rtol=0, atol=2e-3)  # counts differ by rounding only
    from sklearn.datasets import load_digits

    images = {
        (image.astype(np.uint8).tobytes(), int(y))
        for image, y in zip(load_digits().images, load_digits().target, strict=False)
    }
    raw = torch.cat([data.x_train, data.x_test]) * data.std + data.mean
    pixels = (raw * 16).round().to(torch.uint8).numpy()
    labels = torch.cat([data.y_train, data.y_test]).tolist()
    assert {(image.tobytes(), y) for image, y in zip(pixels[:, 0], labels, strict=False)} == images
    assert torch.equal(load_data("digits", seed=3).x_train, data.x_train)


@pytest.mark.parametrize("name", ["digits", "toy2d", "many-classes", "many-classes:features=3,classes=4"])
def test_inputs_are_standardized_with_the_training_moments(name):
    data = load_data(name)
    axes = (0, 2, 3) if data.x_train.ndim == 4 else (0,)
    x = data.x_train.double()
    assert data.x_train.dtype == torch.float32
    # Rounding of float32 inputs: 1e-7 an entry.
    torch.testing.assert_close(x.mean(axes), torch.zeros_like(x.mean(axes)), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.std(axes, correction=0), torch.ones_like(x.mean(axes)), rtol=0, atol=1e-5)
    assert x.isfinite().all()


@pytest.mark.parametrize("variance", [1.0, 5.0, 15.0, 30.0, 80.0, 400.0])
def test_bayes_error_of_toy2d_by_monte_carlo(variance):
    n = 200_000
    x, y = toy2d.sample(n, variance, stream(7, "monte-carlo"))
    rule = toy2d.bayes_rule(x)
    expected = toy2d.bayes_error(variance)
    error = (rule != y).double().mean().item()
    assert abs(error - expected) <= 4 * (expected * (1 - expected) / n) ** 0.5 + 1e-12
    # The rule is the class with the larger density, from the mixture's definition.
    angles = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    centers = 20 * torch.stack([angles.cos(), angles.sin()], 1)
    log = -torch.cdist(x, centers).square() / (2 * variance)
    odds = log[:, 1::2].logsumexp(1) - log[:, ::2].logsumexp(1)
    decided = odds.abs() > 1e-9
    assert decided.double().mean() > 0.999
    assert torch.equal((odds > 0).long()[decided], rule[decided])
    # And its risk is the mean of the smaller posterior probability.
    smaller = torch.sigmoid(-odds.abs())
    assert abs(smaller.mean().item() - expected) <= 4 * smaller.std().item() / n**0.5 + 1e-12


def test_bayes_error_has_its_limits_and_the_documented_values():
    assert toy2d.bayes_error(0) == 0
    assert abs(toy2d.bayes_error(1e9) - 0.5) < 1e-6
    stated = next(line.split()[2:] for line in toy2d.__doc__.splitlines() if line.strip().startswith("Bayes error  "))
    values = next(line.split()[1:] for line in toy2d.__doc__.splitlines() if line.strip().startswith("sigma^2  "))
    assert [f"{toy2d.bayes_error(float(v)):.4f}" for v in values] == stated


def test_a_change_of_the_test_variance_leaves_everything_else():
    one, other = load_data("toy2d", n=100), load_data("toy2d", n=100, test_variance=45.0)
    assert torch.equal(one.x_train, other.x_train)
    assert torch.equal(one.y_test, other.y_test)
    raw = [d.x_test.double() * d.std + d.mean for d in (one, other)]
    blobs = toy2d.RADIUS * torch.nn.functional.normalize(raw[0] * 3 - raw[1], dim=1)  # noise cancels: sigma ratio 3
    torch.testing.assert_close(2 * blobs, raw[0] * 3 - raw[1], rtol=0, atol=1e-3)  # float32 inputs


def test_random_images_take_no_memory_and_are_seeded():
    data = load_data("random-images:shape=3x16x16,n=1000000,classes=7")
    index = torch.tensor([0, 999_999, 5])
    x = data.inputs(index)
    assert x.shape == (3, 3, 16, 16)
    assert torch.equal(x[1], data.inputs(index[1:2])[0])
    assert not torch.equal(x[0], x[1])
    assert torch.equal(x, load_data("random-images:shape=3x16x16,n=1000000,classes=7").inputs(index))
    assert not torch.equal(x, load_data("random-images:shape=3x16x16,n=1000000,classes=7", seed=1).inputs(index))
    many = data.inputs(torch.arange(2000)).double()
    # 1.5M entries of overlapping windows: standard error below .002.
    torch.testing.assert_close(many.mean().item(), 0.0, rtol=0, atol=8e-3)
    torch.testing.assert_close(many.std().item(), 1.0, rtol=0, atol=8e-3)
    assert torch.bincount(data.y_train).min() > 0
    assert torch.equal(data.to("cpu").inputs(index), x)


def test_many_classes_are_balanced_and_lie_around_their_centers():
    data = load_data("many-classes:classes=250,n=10000,n_test=5000")
    assert data.classes == 250
    assert torch.bincount(data.y_train).tolist() == [40] * 250
    raw = [x.double() * data.std + data.mean for x in (data.x_train, data.x_test)]
    means = torch.stack([raw[0][data.y_train == c].mean(0) for c in range(250)])
    residual = raw[0] - means[data.y_train]
    # Unbiased variance is 1; 640,000 draws: standard error .0018.
    torch.testing.assert_close(residual.square().sum().item() / (64 * (10_000 - 250)), 1.0, rtol=0, atol=8e-3)
    error = (torch.cdist(raw[1], means).argmin(1) != data.y_test).double().mean().item()
    assert 0.02 < error < 0.5  # to be learned, and not perfectly


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 1.0])
def test_label_noise_changes_that_share_to_other_classes(share):
    clean, noisy = digits(), load_data("digits", label_noise=share, seed=3)
    changed = clean.y_train != noisy.y_train
    assert changed.sum().item() == round(share * 1437)
    assert torch.equal(clean.y_test, noisy.y_test)
    assert torch.equal(noisy.y_train, load_data("digits", label_noise=share, seed=3).y_train)
    if share:
        assert noisy.sha256 != clean.sha256
        assert not torch.equal(noisy.y_train, load_data("digits", label_noise=share, seed=4).y_train)


def test_label_noise_is_uniform_over_the_other_classes_and_nested():
    labels = torch.arange(5).repeat(20_000)
    few, many = flip_labels(labels, 5, 0.2, seed=0), flip_labels(labels, 5, 0.6, seed=0)
    assert torch.equal(many[few != labels], few[few != labels])
    steps = torch.bincount((many - labels) % 5, minlength=5)[1:].double()
    # 60,000 draws over 4 classes: standard deviation 106.
    assert (steps - 15_000).abs().max() < 4 * 106
    assert torch.equal(labels, torch.arange(5).repeat(20_000))
