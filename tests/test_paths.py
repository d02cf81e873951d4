"""Paths against closed forms; barriers; alignment that undoes a permutation exactly; trained curves."""

import numpy as np
import pytest
import torch
from torch import nn

import landscape
from landscape import InputError, Problem
from landscape.surfaces.alignment import align, permutable
from landscape.surfaces.paths import CURVES, barrier


class Residual(nn.Module):
    """Convolutions, BatchNorm, a residual addition and a flatten: every way in which units are tied."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.norm2 = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.fc1, self.fc2 = nn.Linear(6 * 4, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = torch.relu(self.norm0(self.stem(x)))
        y = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(x + self.norm2(self.conv2(y)))
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))


def residual(seed, policy="frozen", dtype=torch.float64):
    torch.manual_seed(seed)
    model = Residual().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    torch.manual_seed(77)
    images, labels = torch.randn(32, 1, 4, 4, dtype=dtype), torch.randint(0, 3, (32,))
    model(images)
    model(images)
    model.eval()
    return Problem(
        model, nn.CrossEntropyLoss(), [(images[:20], labels[:20]), (images[20:], labels[20:])], batch_norm=policy
    )


def mlp(seed, activation=nn.ReLU):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 9), activation(), nn.Linear(9, 8), activation(), nn.Linear(8, 3)).double()
    torch.manual_seed(77)
    inputs, labels = torch.randn(40, 5).double(), torch.randint(0, 3, (40,))
    return Problem(model, nn.CrossEntropyLoss(), [(inputs[:16], labels[:16]), (inputs[16:], labels[16:])])


# -- lines -----------------------------------------------------------------------------------------------------------


def test_line_is_the_loss_of_interpolated_weights():
    one, two = mlp(0), mlp(1)
    other = one.with_batches([b.rows(0, 5) for b in one.batches])
    found = landscape.path(one, two, points=5, others={"few": other})
    for t, loss, accuracy, few in zip(found.t, found.loss, found.accuracy, found.other_loss[0], strict=True):
        w = (1 - t) * one.weights + t * two.weights
        expected = one.evaluate(w)
        assert loss == pytest.approx(float(expected.loss), rel=1e-12)
        assert accuracy == float(expected.accuracy)
        assert few == pytest.approx(float(other.loss(w)), rel=1e-12)
    assert found.loss[-1] == pytest.approx(float(two.loss()), rel=1e-12)
    rise = found.loss - ((1 - found.t) * found.loss[0] + found.t * found.loss[-1])
    assert found.barrier == pytest.approx(max(rise.max(), 0))
    assert found.length == pytest.approx(found.distance)
    assert found.distance == pytest.approx(float((two.weights - one.weights).norm() / one.weights.norm()))


def test_barrier():
    t = np.linspace(0, 1, 5)
    assert barrier(t, np.array([1.0, 2.0, 6.0, 4.0, 3.0])) == (4.0, 0.5)
    assert barrier(t, np.array([1.0, 0.0, -1.0, 0.0, 3.0])) == (0.0, 0.0)
    assert barrier(t, np.array([1.0, np.inf, 1.0, 0.0, 3.0])) == (np.inf, 0.25)
    assert np.isnan(barrier(t, np.array([np.nan, 1.0, 1.0, 0.0, 3.0]))[0])


def test_recalibrated_statistics_along_the_line():
    one, two = residual(0, "recalibrate"), residual(1, "recalibrate")
    found = landscape.path(one, two, points=3)
    for t, loss in zip(found.t, found.loss, strict=True):
        assert loss == pytest.approx(float(one.loss((1 - t) * one.weights + t * two.weights)), rel=1e-10)
    assert found.loss[-1] == pytest.approx(float(two.loss()), rel=1e-10)
    assert found.warnings == []
    assert "recalibrate" in landscape.path(residual(0), residual(1), points=3).warnings[0]


# -- alignment -------------------------------------------------------------------------------------------------------


def shuffled(problem, seed=3):
    """The same network with the units of every group in random order, and the groups that were found."""
    groups, rejected = permutable(problem)
    assert rejected == []
    tensors = {**dict(problem.model.named_parameters()), **dict(problem.model.named_buffers())}
    tensors = {n: t.detach().clone() for n, t in tensors.items()}
    for i, group in enumerate(groups):
        generator = torch.Generator().manual_seed(seed + i)
        tensors = group.permuted(tensors, torch.randperm(group.units, generator=generator).numpy())
    return groups, tensors


@pytest.mark.parametrize(("make", "units"), [(mlp, {9, 8}), (residual, {6, 5, 7})])
def test_alignment_undoes_any_permutation_exactly(make, units):
    one, two = make(0), make(0)
    groups, tensors = shuffled(two)
    assert {g.units for g in groups} == units
    two.model.load_state_dict(tensors)
    moved = Problem(two.model, nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in two.batches])
    assert float(moved.loss()) == pytest.approx(float(one.loss()), rel=1e-12)
    assert float((moved.weights - one.weights).norm()) > 0.5 * float(one.weights.norm())
    found = align(one, moved)
    torch.testing.assert_close(found.weights, one.weights, rtol=0, atol=0)
    for name, buffer in one.model.named_buffers():
        torch.testing.assert_close(found.buffers[name], buffer, rtol=0, atol=0)
    assert found.facts["converged"]
    assert found.facts["cosine"][1] == pytest.approx(1)
    assert landscape.path(one, moved, points=5).barrier > 1e-3
    assert landscape.path(one, moved, points=5, aligned=True).barrier == pytest.approx(0, abs=1e-12)


def test_alignment_keeps_the_function_and_brings_weights_nearer():
    one, two = residual(0), residual(5)
    found = align(one, two)
    assert found.facts["output_change"] < 1e-12
    assert found.facts["cosine"][1] > found.facts["cosine"][0]
    assert found.facts["moved"] > 0


def test_networks_without_permutable_units_say_so():
    one = Problem(nn.Linear(3, 2), nn.CrossEntropyLoss(), [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))])
    with pytest.raises(InputError, match="no hidden units"):
        align(one, one)


def test_units_behind_any_function_of_single_entries_trade_places():
    one, two = mlp(0, nn.Tanh), mlp(0, nn.Tanh)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in (two.model[0].weight, two.model[0].bias):
            tensor.copy_(tensor[order].clone())
        two.model[2].weight.copy_(two.model[2].weight[:, order].clone())
    moved = Problem(two.model, nn.CrossEntropyLoss(), [(b.args[0], b.target) for b in two.batches])
    assert float((moved.weights - one.weights).norm()) > 0.5
    torch.testing.assert_close(align(one, moved).weights, one.weights, rtol=0, atol=1e-14)


# -- curves ----------------------------------------------------------------------------------------------------------


class Valley(nn.Module):
    """L = (|w|^2 - 1)^2 + 1 in the plane: a ring of minima; the straight line between two of them crosses a hill."""

    def __init__(self, w):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        return ((self.weight.square().sum() - 1) ** 2 + 1) * x


def valley(*w):
    return Problem(Valley(w), lambda o, t: o, [(torch.ones(1).double(), torch.zeros(1))])


@pytest.mark.parametrize("curve", ["bezier", "polygon"])
def test_curve_around_a_hill(curve):
    one, two = valley(1.0, 0.02), valley(-1.0, 0.02)
    line = landscape.path(one, two, points=51)
    assert line.barrier == pytest.approx(1, abs=1e-2)
    found = landscape.path(one, two, curve, points=51, epochs=600, lr=0.02)
    assert found.barrier < 0.35
    assert found.length > 1.2 * found.distance
    for t, loss in zip(found.t, found.loss, strict=True):
        b, m = CURVES[curve](t)
        w = one.weights + b * (two.weights - one.weights) + m * (torch.as_tensor(found.bend) - one.weights)
        assert loss == pytest.approx(float(one.loss(w)), rel=1e-12)


def test_curves_start_at_the_first_and_end_at_the_second():
    for curve in CURVES.values():
        assert curve(0.0) == (0.0, 0.0)
        assert curve(1.0) == (1.0, 0.0)
    assert CURVES["bezier"](0.5) == (0.25, 0.5)
    assert CURVES["polygon"](0.5) == (0.0, 1.0)


def test_trained_curve_of_a_network_with_batch_norm_leaves_the_model_alone(tmp_path):
    one, two = residual(0, "recalibrate"), residual(1, "recalibrate")
    before = {k: v.clone() for k, v in one.model.state_dict().items()}
    found = landscape.path(one, two, "bezier", points=5, epochs=8, lr=0.02)
    assert found.facts["training"]["loss_by_epoch"][-1] < found.facts["training"]["loss_by_epoch"][0]
    assert all(torch.equal(v, before[k]) for k, v in one.model.state_dict().items())
    again = landscape.path(one, two, "bezier", points=5, epochs=8, lr=0.02)
    np.testing.assert_array_equal(again.loss, found.loss)
    found.save(tmp_path / "p.h5")
    assert landscape.load(tmp_path / "p.h5").summary() == found.summary()


def test_bad_input():
    with pytest.raises(InputError, match="did you mean 'bezier'"):
        landscape.path(mlp(0), mlp(1), "bezir")
    with pytest.raises(InputError, match="points >= 3"):
        landscape.path(mlp(0), mlp(1), points=2)
    with pytest.raises(InputError, match="the second network is another architecture: 0.weight"):
        landscape.path(mlp(0), residual(0))
    with pytest.raises(InputError, match="diverged"):
        landscape.path(valley(1.0, 0.0), valley(-1.0, 0.1), "bezier", epochs=50, lr=1e3)


# -- the command -----------------------------------------------------------------------------------------------------


def test_command(tmp_path):
    import json

    from click.testing import CliRunner

    from commands.path import command
    from commands.train import command as train_command

    def run(command, *arguments):
        result = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result.output

    common = ["sgd", "--data", "digits", "--epochs", 1, "--lr", 0.05, "--quiet"]
    for seed in (0, 1):
        run(train_command, *common, "--model", "mlp", "--seed", seed, "--out", tmp_path / str(seed))
    run(train_command, *common, "--model", "small-cnn", "--out", tmp_path / "cnn")
    ends = [tmp_path / name / "ckpt.pt" for name in "01"]
    options = ["--samples", 200, "--points", 5, "--out", tmp_path / "out", "--json"]
    plainly = json.loads(run(command, *ends, *options, "--both-splits"))["path"]
    assert plainly["others"] == ["test"]
    assert len(plainly["loss"]) == 5
    aligned = json.loads(run(command, *ends, *options, "--align", "--curve", "bezier", "--epochs", 2))["path"]
    assert aligned["aligned"]
    assert aligned["distance"] < plainly["distance"]
    stored = landscape.load(tmp_path / "out" / "path.h5")["path"]
    assert stored.provenance["batch_norm"] == "recalibrate"
    assert (tmp_path / "out" / "figures" / "path.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="ckpt.pt is another architecture"):
        run(command, ends[0], tmp_path / "cnn" / "ckpt.pt", *options)
