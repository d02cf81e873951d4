"""Quantization of the weights, against rounding written out by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from cases import case, dense_hessian
from sharpness_cases import trained
from torch import nn

import landscape
from landscape.errors import InputError
from landscape.measures.quantization_rise import quantized


def by_hand(values, bits):
    """Round each number of a list to the nearest multiple of max |v| / (2^(bits - 1) - 1), ties to the even one."""
    step = max(abs(v) for v in values) / (2 ** (bits - 1) - 1)
    rounded = []
    for v in values:
        below = math.floor(v / step)
        rest = v / step - below
        up = rest > 0.5 or (rest == 0.5 and below % 2 == 1)
        rounded.append((below + up) * step)
    return rounded


def rounded_model(model, bits, per_channel):
    """A copy whose weights of linear layers and convolutions are rounded, number by number."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                rows = list(module.weight) if per_channel else [module.weight]
                for row in rows:
                    row.copy_(torch.tensor(by_hand(row.reshape(-1).tolist(), bits), dtype=row.dtype).view_as(row))
    return model


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_rise_is_that_of_a_network_rounded_by_hand(name):
    model, batches = case(name, examples=24)
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    found = landscape.quantization_rise(problem)
    assert found.bits.tolist() == [8, 6, 4, 3]
    assert found.granularities == ["channel", "tensor"]
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    for i, per_channel in enumerate((True, False)):
        for j, bits in enumerate((8, 6, 4, 3)):
            other = rounded_model(model, bits, per_channel)
            expected = nn.functional.cross_entropy(other(x), y) - nn.functional.cross_entropy(model(x), y)
            assert found.rise[i, j] == pytest.approx(expected.item(), rel=1e-8, abs=1e-13)
            change = torch.cat(
                [(a - b).reshape(-1) for a, b in zip(other.parameters(), model.parameters(), strict=True)]
            )
            assert found.error_norm[i, j] == pytest.approx(change.norm().item(), rel=1e-10)
    assert found.value == found.rise[0, 0]
    assert found.quantized + found.kept == problem.dimension
    assert found.kept == sum(p.numel() for p in model.parameters() if p.dim() == 1)


def test_prediction_is_the_quadratic_form_of_the_dense_hessian():
    model, batches = case("mlp", examples=24)
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    found = landscape.quantization_rise(problem, bits=(4, 8))
    h, g = dense_hessian(model, batches, problem), problem.gradient()
    for i, granularity in enumerate(found.granularities):
        for j, bits in enumerate((4, 8)):
            e = quantized(problem, bits, granularity) - problem.weights
            assert found.first_order[i, j] == pytest.approx((g @ e).item(), rel=1e-8)
            assert found.second_order[i, j] == pytest.approx((e @ h @ e / 2).item(), rel=1e-8)
    np.testing.assert_array_equal(found.predicted, found.first_order + found.second_order)
    fine = landscape.quantization_rise(problem, bits=16)
    # At 16 bits the third order is some ten-thousandths of the rise.
    np.testing.assert_allclose(fine.predicted, fine.rise, rtol=1e-3)


class Tied(nn.Module):
    """An embedding whose weights are those of the layer that reads it, and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.up = nn.ConvTranspose1d(2, 3, 2)

    def forward(self, x):
        mixed = self.up(self.embedding(x).view(-1, 2, 2)).flatten(1)
        return self.head(mixed[:, :4])


def test_a_tied_weight_is_rounded_once_and_channels_lie_along_the_output():
    torch.manual_seed(0)
    model = Tied().double()
    x = torch.arange(5)
    problem = landscape.Problem(model, nn.functional.cross_entropy, [(x, x)])
    found = landscape.quantization_rise(problem, bits=3)
    assert found.quantized == 5 * 4 + 2 * 3 * 2
    other = copy.deepcopy(model)
    with torch.no_grad():
        for row in other.embedding.weight:
            row.copy_(torch.tensor(by_hand(row.tolist(), 3)))
        for channel in range(3):
            part = other.up.weight[:, channel]
            part.copy_(torch.tensor(by_hand(part.reshape(-1).tolist(), 3)).view_as(part))
    assert other.head.weight is other.embedding.weight
    expected = nn.functional.cross_entropy(other(x), x) - nn.functional.cross_entropy(model(x), x)
    assert found.value == pytest.approx(expected.item(), rel=1e-6)  # by_hand's tensors are float32


def test_zeros_and_exact_multiples_stay():
    line = nn.Linear(3, 2, bias=False).double()
    line.weight.data = torch.tensor([[0.0, 0.0, 0.0], [7.0, -3.0, 1.0]], dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64)
    problem = landscape.Problem(line, nn.MSELoss(), [(x, torch.randn(6, 2, dtype=torch.float64))])
    found = landscape.quantization_rise(problem, bits=4)
    np.testing.assert_array_equal(found.rise, 0)
    np.testing.assert_array_equal(found.error_norm, 0)


def test_subsets_give_an_interval_of_the_same_rounding():
    _, problem = trained()
    found = landscape.quantization_rise(problem, bits=(3, 2), subsets=4)
    assert found.subsets.shape == (4, 2, 2)
    assert (found.interval[0] < found.rise).all()
    assert (found.rise < found.interval[1]).all()
    # 96 examples in four equal parts: their rises average to that of all.
    np.testing.assert_allclose(found.subsets.mean(axis=0), found.rise, rtol=1e-8)
    entry = found.summary()
    assert (entry["low"], entry["high"]) == tuple(found.interval[:, 0, 0])
    assert [(r["granularity"], r["bits"]) for r in entry["rows"]][1] == ("channel", 2)


def test_rise_grows_as_bits_go_and_the_sentence_says_it():
    _, problem = trained(steps=200)
    found = landscape.quantization_rise(problem)
    assert (np.diff(found.error_norm, axis=1) > 0).all()
    assert (found.error_norm[0] <= found.error_norm[1]).all()  # a scale of its own is no larger than the shared one
    said = landscape.MEASURES["quantization_rise"].says(found.summary(), found.loss)
    assert "at 8 bits" in said
    assert "at 3 bits" in said


def test_wrong_input_is_refused():
    _, problem = trained(steps=0)
    for bits in (1, 17, (8, 1)):
        with pytest.raises(InputError, match="2 to 16 bits"):
            landscape.quantization_rise(problem, bits=bits)
    with pytest.raises(InputError, match="no width"):
        landscape.quantization_rise(problem, bits=())
    with pytest.raises(InputError, match="no parameter is the weight of a layer"):
        landscape.quantization_rise(problem.restricted("*.bias"))


def test_the_picture_shows_rises_and_predictions():
    import matplotlib.pyplot as plt

    _, problem = trained(steps=200)
    found = landscape.quantization_rise(problem)
    axes = found.plot()
    drawn = [line.get_ydata() for line in axes.lines[:4]]
    for i in range(2):
        np.testing.assert_array_equal(drawn[2 * i], found.rise[i])
        np.testing.assert_array_equal(drawn[2 * i + 1], found.predicted[i])
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    plt.close("all")
