import math

import pytest
import torch
from torch import nn

from landscape.ball.scaling import BIASES, KINDS, Scaling
from landscape.errors import InputError
from landscape.problem.parameters import Parameters


class Mixed(nn.Module):
    """One parameter of every kind: convolution, its transpose, a norm's scale, biases, a token."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.up = nn.ConvTranspose2d(3, 2, 2)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(4, 2)
        self.token = nn.Parameter(torch.ones(1, 1, 4))


@pytest.fixture
def mixed():
    generator = torch.Generator().manual_seed(0)
    model = Mixed().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def diagonals(model, *arguments, **options):
    """T by parameter name, in the model's shapes."""
    layout = Parameters.of(model)
    flat = Scaling(*arguments, **options).diagonal(layout, layout.read(model))
    return dict(zip(layout.names, layout.unflatten(flat), strict=True))


def test_identity_has_no_diagonal(mixed):
    layout = Parameters.of(mixed)
    assert Scaling().is_identity
    assert Scaling().diagonal(layout, layout.read(mixed)) is None
    assert Scaling(biases="unscaled").is_identity


def test_identity_with_fixed_biases_is_zero_on_them_and_one_elsewhere(mixed):
    for name, t in diagonals(mixed, biases="fixed").items():
        torch.testing.assert_close(t, torch.full_like(t, 0.0 if "bias" in name else 1.0))


def test_elementwise_is_the_magnitude(mixed):
    found = diagonals(mixed, "elementwise")
    for name, parameter in mixed.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach().abs())


def test_filterwise_is_the_norm_of_the_slice_along_the_output_dimension(mixed):
    found = diagonals(mixed, "filterwise")
    for name, axis in (("conv.weight", 0), ("up.weight", 1), ("head.weight", 0)):
        weight = dict(mixed.named_parameters())[name].detach()
        for i in range(weight.shape[axis]):
            norm = math.sqrt((weight.select(axis, i) ** 2).sum().item())
            part = found[name].select(axis, i)
            torch.testing.assert_close(part, torch.full_like(part, norm))
    # An entry of a bias or of a norm's scale is a filter of its own.
    for name in ("conv.bias", "norm.weight", "norm.bias"):
        torch.testing.assert_close(found[name], dict(mixed.named_parameters())[name].detach().abs())


def test_layerwise_is_the_norm_of_the_tensor(mixed):
    found = diagonals(mixed, "layerwise")
    for name, parameter in mixed.named_parameters():
        norm = math.sqrt((parameter.detach() ** 2).sum().item())
        torch.testing.assert_close(found[name], torch.full_like(found[name], norm))


@pytest.mark.parametrize(("biases", "expected"), [("unscaled", 1.0), ("fixed", 0.0)])
@pytest.mark.parametrize("kind", ["elementwise", "filterwise", "layerwise"])
def test_biases_are_treated_as_asked_and_norm_scales_like_weights(mixed, kind, biases, expected):
    found, scaled = diagonals(mixed, kind, biases), diagonals(mixed, kind)
    for name in found:
        if name.endswith("bias"):
            torch.testing.assert_close(found[name], torch.full_like(found[name], expected))
        else:
            torch.testing.assert_close(found[name], scaled[name])


def test_asam_official_adds_eta_to_weights_by_name_and_leaves_the_rest_at_one(mixed):
    found = diagonals(mixed, "asam-official")
    for name, parameter in mixed.named_parameters():
        expected = parameter.detach().abs() + 0.01 if "weight" in name else torch.ones_like(parameter)
        torch.testing.assert_close(found[name], expected)


def test_eta_is_added_to_the_norms(mixed):
    plain, shifted = diagonals(mixed, "layerwise"), diagonals(mixed, "layerwise", eta=0.5)
    for name in plain:
        torch.testing.assert_close(shifted[name], plain[name] + 0.5)


def test_zero_weights_have_zero_scale(mixed):
    with torch.no_grad():
        mixed.conv.weight[0].zero_()
    for kind in ("elementwise", "filterwise"):
        assert not diagonals(mixed, kind)["conv.weight"][0].any()


@pytest.mark.parametrize("kind", ["elementwise", "filterwise", "layerwise"])
def test_scale_is_homogeneous_of_degree_one(mixed, kind):
    before = diagonals(mixed, kind)
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter *= 8.0
    for name, t in diagonals(mixed, kind).items():
        torch.testing.assert_close(t, 8 * before[name])


def test_tensors_and_diagonal_agree(mixed):
    layout = Parameters.of(mixed)
    weights = layout.unflatten(layout.read(mixed))
    for kind in KINDS:
        for biases in BIASES:
            scaling = Scaling(kind, biases)
            pieces = scaling.tensors(layout, weights)
            flat = scaling.diagonal(layout, layout.read(mixed))
            if pieces is None:
                assert flat is None
                continue
            whole = layout.flatten([p.expand(s.shape) for p, s in zip(pieces, layout, strict=True)])
            torch.testing.assert_close(whole, flat)


def test_norms_of_float32_accumulate_in_float64():
    layer = nn.Linear(4096, 512, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(512, 4096, generator=torch.Generator().manual_seed(0)))
    exact = math.sqrt((layer.weight.detach().double() ** 2).sum().item())
    assert diagonals(layer, "layerwise")["weight"][0, 0].item() == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("elementwize",), "did you mean 'elementwise'"),
        (("identity", "none"), "treatment of biases"),
        (("elementwise", "scaled", -0.1), "eta"),
        (("elementwise", "scaled", math.nan), "eta"),
    ],
)
def test_wrong_scalings_are_refused(arguments, says):
    with pytest.raises(InputError, match=says):
        Scaling(*arguments)
