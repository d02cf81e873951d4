"""Forgetting, against a fine-tuning with a torch optimizer on a copy."""

import copy

import numpy as np
import pytest
import torch
from cases import case
from sharpness_cases import bowl, raw, trained
from torch import nn

import landscape
from landscape.errors import InputError


def others(model, n=40, seed=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return landscape.Problem(model, nn.functional.cross_entropy, [(x, torch.randint(0, 3, (n,), generator=generator))])


def test_rise_is_that_of_a_copy_trained_by_torch():
    model, problem = trained()
    other = others(model)
    found = landscape.forgetting(problem, other, steps=12, lr=0.2, momentum=0.5, batch_size=None)
    trained_copy = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained_copy.parameters(), 0.2, momentum=0.5)
    (x, y), (first, labels) = raw(other)[0], (torch.cat(p) for p in zip(*raw(problem), strict=True))
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained_copy(x), y).backward()
        optimizer.step()
    rise = nn.functional.cross_entropy(trained_copy(first), labels) - nn.functional.cross_entropy(model(first), labels)
    assert found.value == pytest.approx(rise.item(), rel=1e-9)
    assert found.other_loss[-1] == pytest.approx(nn.functional.cross_entropy(trained_copy(x), y).item(), rel=1e-9)
    hits = (trained_copy(first).argmax(1) == labels).double().mean().item()
    assert found.accuracy[-1] == pytest.approx(hits)
    assert found.step.tolist() == [0, 2, 5, 7, 10, 12]
    assert found.distance[0] == 0
    assert (np.diff(found.other_loss) < 0).all()
    assert found.provenance["other"]["examples"] == 40


def test_batches_are_drawn_by_the_seed_alone():
    model, problem = trained()
    other = others(model)
    first = landscape.forgetting(problem, other, steps=6, batch_size=8)
    torch.rand(3)
    again = landscape.forgetting(problem, other, steps=6, batch_size=8)
    np.testing.assert_array_equal(first.loss, again.loss)
    assert landscape.forgetting(problem, other, steps=6, batch_size=8, seed=1).value != first.value
    # The gradient of the prediction, that of its product, and six steps on eight examples each, of 96.
    assert first.cost["backward"] == pytest.approx(1 + 1 + 6 * 8 / 96)
    assert first.cost["forward"] == pytest.approx(6 + 2 + (6 * 40 + 6 * 8) / 96)


def test_the_model_is_bitwise_what_it_was():
    model, batches = case("cnn", examples=24)
    model.train()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    landscape.forgetting(problem, steps=5, lr=0.5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_without_other_data_the_upper_half_of_the_classes_is_fine_tuned():
    model, problem = trained()
    x, y = (torch.cat(part) for part in zip(*raw(problem), strict=True))
    assert y.unique().tolist() == [0, 1, 2]
    lower, upper = (
        landscape.Problem(model, nn.functional.cross_entropy, [(x[mask], y[mask])]) for mask in (y < 1, y >= 1)
    )
    found = landscape.forgetting(problem, steps=5, batch_size=None)
    expected = landscape.forgetting(lower, upper, steps=5, batch_size=None)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-10)
    assert (found.examples, found.other_examples) == (int((y < 1).sum()), int((y >= 1).sum()))


def test_prediction_is_exact_on_a_bowl():
    problem, _, _ = bowl(seed=0)
    other = landscape.Problem(
        problem.model, lambda o, t: o + (problem.model.w - 1).square().sum(), [(torch.zeros(4, 1), torch.zeros(4))]
    )
    found = landscape.forgetting(problem, other, steps=5, lr=0.05, batch_size=None)
    assert found.predicted == pytest.approx(found.value, rel=1e-8)


def test_wrong_input_is_refused():
    model, problem = trained(steps=0)
    for arguments, says in (
        ({"steps": 0}, "steps=0"),
        ({"lr": -1.0}, "lr=-1"),
        ({"momentum": 1.0}, "momentum=1"),
        ({"lr": 1e200}, "not finite after"),
    ):
        with pytest.raises(InputError, match=says):
            landscape.forgetting(problem, **arguments)
    coupled = landscape.Problem(model, lambda o, t: o.square().mean() * o.abs().max(), raw(problem))
    with pytest.raises(InputError, match=r"batch_size=16 regroups .*give None"):
        landscape.forgetting(problem, coupled, batch_size=16)
    assert landscape.forgetting(problem, coupled, batch_size=None).examples == 96
    with pytest.raises(InputError, match="of one model"):
        landscape.forgetting(problem, others(nn.Sequential(nn.Linear(6, 3)).double()))
    x, y = (torch.cat(part) for part in zip(*raw(problem), strict=True))
    one = landscape.Problem(model, nn.functional.cross_entropy, [(x[y == 0], y[y == 0])])
    with pytest.raises(InputError, match="of one class"):
        landscape.forgetting(one)
    with pytest.raises(InputError, match="not class indices"):
        landscape.forgetting(landscape.Problem(model, nn.MSELoss(), [(x, torch.zeros(96, 3, dtype=torch.float64))]))


def test_the_other_loss_is_one_of_the_same_network():
    model, problem = trained(steps=0)
    same, smooth = copy.deepcopy(model), copy.deepcopy(model)
    smooth[1] = nn.GELU()  # the same names and shapes, another function
    for network in (same, smooth):
        with pytest.raises(InputError, match="other is a loss of another network"):
            landscape.forgetting(problem, others(network))
    with pytest.raises(InputError, match="other is of type str: the Problem of the other data is needed"):
        landscape.forgetting(problem, "x")
    wrapped = others(nn.DataParallel(model))
    assert (
        landscape.forgetting(problem, wrapped, steps=2).value
        == landscape.forgetting(problem, others(model), steps=2).value
    )


def test_the_picture_shows_both_losses():
    import matplotlib.pyplot as plt

    _, problem = trained()
    found = landscape.forgetting(problem, steps=10)
    first, second = found.plot().lines
    np.testing.assert_array_equal(first.get_ydata(), found.loss)
    np.testing.assert_array_equal(second.get_ydata(), found.other_loss)
    plt.close("all")
