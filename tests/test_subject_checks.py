"""Weights that load by name into another function than the one that was trained: a line says so, and a note."""

import math
import re
import warnings

import pytest
import torch
from torch import nn

import landscape
from landscape import InputError
from landscape.errors import CheckpointWarning
from tests.checkpoint_cases import build, saved, trained
from trainers.models import build_model

SIZES = {"classes": 10, "input_shape": (3, 8, 8)}
IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def sure_network(name="resnet", **arguments):
    """A network, and batches whose labels are what it says of them, surely."""
    model = build_model(name, **SIZES, **arguments, seed=0).eval()
    with torch.no_grad():
        model.fc.weight.mul_(100)
        model.fc.bias.copy_(-model(IMAGES).mean(0))
        labels = model(IMAGES).argmax(1)
    return model, [(IMAGES[:16], labels[:16]), (IMAGES[16:], labels[16:])]


def problem_of(path, batches, model="resnet:shortcut=pad", **options):
    sizes = SIZES if isinstance(model, str) else None
    return landscape.problem_from(
        path, model=model, model_arguments=sizes, data=lambda: batches, device="cpu", **options
    )


def without_warnings(path, batches, model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return problem_of(path, batches, model)


def test_the_other_padding_of_the_same_names_is_not_taken_for_the_network(tmp_path):
    """Shortcuts without weights: zero channels after the old ones, or on both sides of them."""
    model, batches = sure_network(shortcut="pad-centered")
    path = saved(model.state_dict(), tmp_path / "x.pt")
    right = without_warnings(path, batches, "resnet:shortcut=pad-centered")
    assert right.evaluate().accuracy == 1
    assert not right.notes
    said = r"x\.pt: L = (\S+) with shortcut=pad and (\S+) with shortcut=pad-centered, which the same weights fit"
    with pytest.warns(CheckpointWarning, match=said) as told:
        other = problem_of(path, batches)
    assert len(told) == 1
    losses = [float(x) for x in re.search(said, str(told[0].message)).groups()]
    assert losses == pytest.approx([float(other.loss()), float(right.loss())], rel=1e-3)
    (note,) = other.notes
    assert note in str(told[0].message)
    assert note in other.provenance()["notes"]


def test_a_wrong_padding_below_the_loss_of_outputs_of_zero_is_told_too(tmp_path):
    """Where one class is frequent no loss is odd by itself: only the other network's is smaller."""
    model, _ = sure_network("resnet20", shortcut="pad-centered")
    with torch.no_grad():
        model.fc.bias[0] += 2 * model(IMAGES).std(0).mean()
        labels = model(IMAGES).argmax(1)
        model.fc.weight.mul_(0.02)
        model.fc.bias.mul_(0.02)
    path = saved(model.state_dict(), tmp_path / "x.pt")
    batches = [(IMAGES[:16], labels[:16]), (IMAGES[16:], labels[16:])]
    without_warnings(path, batches, "resnet20:shortcut=pad-centered")
    with pytest.warns(CheckpointWarning, match="with shortcut=pad and"):
        other = problem_of(path, batches, "resnet20:shortcut=pad")
    assert other.loss() < math.log(10)


def test_looking_is_not_counted(tmp_path):
    model, batches = sure_network(shortcut="pad-centered")
    path = saved(model.state_dict(), tmp_path / "x.pt")
    with pytest.warns(CheckpointWarning):
        other = problem_of(path, batches)
    assert (other.passes.forward, other.passes.backward) == (0, 0)


def test_two_choices_are_told_by_the_one_that_fits_best(tmp_path):
    model, batches = sure_network(shortcut="pad", stride=2)
    path = saved(model.state_dict(), tmp_path / "x.pt")
    without_warnings(path, batches, "resnet:shortcut=pad,stride=2")
    with pytest.warns(CheckpointWarning, match="with stride=1 and .* with stride=2"):
        problem_of(path, batches, "resnet:shortcut=pad")


def test_one_bad_batch_is_no_bad_network(tmp_path):
    model, batches = sure_network()
    (x, y), *others = batches
    one_wrong = [(x[:1], (y[:1] + 1) % 10), (x[1:], y[1:]), *others]
    path = saved(model.state_dict(), tmp_path / "x.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem = problem_of(path, one_wrong, "resnet")
    first = problem.with_batches([next(iter(problem.batches))])
    assert problem.loss() < math.log(10) < first.loss()


@pytest.mark.parametrize(
    ("loss", "target", "of_zeros"),
    [
        ("cross-entropy", torch.eye(3).repeat(2, 1), math.log(3)),
        ("bce", torch.eye(3).repeat(2, 1), math.log(2)),
        ("mse", 2 * torch.eye(3).repeat(2, 1), 4 / 3),
    ],
)
def test_losses_that_say_nothing_at_zero(tmp_path, loss, target, of_zeros):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    model = build()
    with torch.no_grad():
        model[2].weight.copy_(-30 * torch.eye(3, 5))
        model[2].bias.fill_(-30)
    path = saved(model.state_dict(), tmp_path / "x.pt")
    with pytest.warns(CheckpointWarning, match=rf"is above {of_zeros:.4g},.*made with$"):
        problem_of(path, [(x, target)], build, loss=loss)
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    path = saved(model.state_dict(), tmp_path / "zero.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero = problem_of(path, [(x, target)], build, loss=loss)
    assert float(zero.loss()) == pytest.approx(of_zeros, rel=1e-6)


def test_other_losses_are_not_judged(tmp_path):
    path = saved(trained(factor=30).state_dict(), tmp_path / "x.pt")
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem_of(path, [(x, y)], build, loss=lambda outputs, targets: outputs.square().mean())
        problem_of(path, [(x, y)], build, loss="nll")


def test_weights_of_another_option_are_refused_with_the_options(tmp_path):
    model = build_model("resnet", **SIZES, shortcut="pad-centered")
    path = saved(model.state_dict(), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"lacks layer2\.0\.downsample.*the model is made with depth=8 .*pad-centered"):
        problem_of(path, [(IMAGES, torch.zeros(32, dtype=torch.long))], "resnet")
    with pytest.raises(InputError) as error:
        problem_of(path, [(IMAGES, torch.zeros(32, dtype=torch.long))], lambda: nn.Linear(3, 3))
    assert "made with" not in str(error.value)
