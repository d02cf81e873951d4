"""Rescaling symmetries of single blocks and functions: what carries a path, what ends it."""

import pytest
import torch
import torch.nn.functional as F
from rescaling_cases import Functional, Gated, check, images, settle
from torch import nn

from landscape.invariance.rescaling import find
from landscape.problem.parameters import Parameters
from trainers.models import build_model


class InvertedResidual(nn.Module):
    """A MobileNet block: expand, depthwise, project; ReLU or its bounded form."""

    def __init__(self, width, expansion, activation):
        super().__init__()
        inner = width * expansion
        self.layers = nn.Sequential(
            *(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), activation()),
            *(nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner), activation()),
            *(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x):
        return x + self.layers(x)


def mobile(activation):
    body = [InvertedResidual(4, 3, activation) for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def test_depthwise_blocks():
    # stem 4 before BatchNorm, stream 4; a block: 12 + 12 + 4 before BatchNorm, 12 + 12 after
    check(settle(mobile(nn.ReLU)), images(3, 8, 8), 4 + 4 + 2 * (28 + 24))


def test_relu6_ends_a_path():
    # Only what lies before a BatchNorm, and the linear stream, is free.
    check(settle(mobile(nn.ReLU6)), images(3, 8, 8), 4 + 4 + 2 * 28)


class Dense(nn.Module):
    """A DenseNet block: every layer reads all that came before, side by side."""

    def __init__(self, width, growth, layers):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width + i * growth) for i in range(layers))
        self.convolutions = nn.ModuleList(nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(layers))
        self.head = nn.Linear(width + layers * growth, 4)

    def forward(self, x):
        x = self.stem(x)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = torch.cat([x, convolution(F.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))


def test_concatenation():
    # Each channel of the stem and of the three layers; after each BatchNorm 5, 7 and 9 channels.
    check(settle(Dense(5, 2, 3)), images(3, 6, 6), 5 + 3 * 2 + 5 + 7 + 9)


@pytest.mark.parametrize(
    ("layer", "units", "shape"),
    [
        (lambda: nn.Conv2d(4, 6, 3, groups=2), 6, (4, 6, 6)),
        (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="reflect"), 8, (4, 6, 6)),
        (lambda: nn.ConvTranspose2d(4, 6, 3), 6, (4, 6, 6)),
        (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), 6, (4, 6, 6)),
        (lambda: nn.Conv1d(4, 6, 3, padding=1), 6, (4, 6)),
        (lambda: nn.Conv3d(4, 6, 2), 6, (4, 3, 3, 3)),
    ],
)
def test_kinds_of_convolution(layer, units, shape):
    dims = len(shape) - 1
    first, last = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1], nn.LazyLinear(3)
    model = nn.Sequential(first(4, 4, 1), nn.ReLU(), layer(), nn.ReLU(), nn.Flatten(), last)
    model(images(*shape).float())
    check(settle(model), images(*shape), 4 + units)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm((4, 6, 6))])
def test_affines_of_normalization(norm):
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 2, 6), nn.Flatten()))
    # LayerNorm over channels and pixels has an entry each, which the convolution's one weight a channel ties.
    check(model, images(3, 6, 6), 4)


class SelfAttention(nn.Module):
    def __init__(self, packed):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=None if packed else 3, vdim=8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        h = self.embed(x)
        keys = h if self.attention._qkv_same_embed_dim else x
        return self.head(self.attention(h, keys, h, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("packed", [True, False])
def test_torch_multihead_attention(packed):
    # embedding, queries against keys, values against the output, the output against the head
    check(settle(SelfAttention(packed)), images(5, 3), 32)


def test_transformer_encoder_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 12, activation="relu", batch_first=True)
    model = settle(nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 2)))
    # queries against keys 8, values against output 8, hidden units 12, the last norm 8; the first norm's scale is
    # tied to the stream that the second reads
    check(model, images(5, 8), 8 + 8 + 12 + 8)


class Explicit(nn.Module):
    """Attention written out, values in a matmul, a learned scale, a shared layer, an in-place sum, a slice."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(4, 6)
        self.qkv = nn.Linear(6, 18, bias=False)
        self.out = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        h = self.inside(x).relu()
        q, k, v = self.qkv(h).chunk(3, -1)
        h = self.out(torch.softmax(q @ k.transpose(-1, -2) / 6**0.5, -1) @ v) * self.scale
        h = F.relu(self.shared(h))
        h += F.relu(self.shared(h))
        return self.head(h[..., :3].sum(1))


def test_functional_code_learned_scale_and_shared_layer():
    # hidden 6, queries against keys 6, values 6, output 6, after the scale 6 with the shared layer that reads and
    # writes it: its two calls and the sum tie input and output unit by unit
    check(settle(Explicit()), images(5, 4), 6 + 6 + 6 + 6 + 6)


class Tied(nn.Module):
    """A table that embeds and, by one of several ways to write it, is the last layer's weight as well."""

    def __init__(self, last):
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(4, 6, bias=False), nn.Linear(6, 6), last

    def forward(self, x):
        return self.last(F.relu(self.hidden(F.relu(self.first(x)))), self.first.weight)


class Mirrored(nn.Module):
    """An autoencoder of two layers whose decoder has the encoder's weights, transposed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 5)
        self.biases = nn.ParameterList([torch.randn(6), torch.randn(4)])

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.first(x))))
        x = F.relu(F.linear(x, self.second.weight.T) + self.biases[0])
        return F.linear(x, self.first.weight.T, self.biases[1])


class TokenTable(nn.Module):
    """An embedding that is the last layer too: outside of transformers nothing ends its path."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(F.relu(self.hidden(F.relu(self.table(x)))))


@pytest.mark.parametrize(
    "last", [lambda h, w: h @ w, lambda h, w: F.linear(h, w.T), lambda h, w: F.linear(h, (2.0 * w).mT)]
)
def test_a_matrix_that_is_first_and_last_layer(last):
    """W' = diag(u) W and H' = diag(1/u) H diag(1/u): one factor a hidden unit, none of the hidden layer's own."""
    check(settle(Tied(last)), images(4), 6)


def test_tied_weights_in_deeper_networks_and_tables():
    # The middle units have none: their factor would come back squared at each of the first layer's units.
    check(settle(Mirrored()), images(4), 6)
    check(settle(TokenTable()), torch.randint(7, (5,)), 6)


class Einsum(Explicit):
    """The same attention with einsum and heads."""

    def forward(self, x):
        h = self.inside(x).relu_()
        q, k, v = (t.unflatten(-1, (2, 3)) for t in self.qkv(h).chunk(3, -1))
        scores = torch.softmax(torch.einsum("bihd,bjhd->bhij", q, k), -1)
        h = self.out(torch.einsum("bhij,bjhd->bihd", scores, v).flatten(2)) * self.scale
        return self.head(torch.relu_(self.shared(h))[..., :3].sum(1))


def test_einsum_and_work_in_place():
    # hidden 6, queries against keys 6, values 6, output 6, after the scale 6, the first 3 of the last: the others
    # reach no output, and are free too
    symmetries = check(settle(Einsum()), images(5, 4), 6 * 6)
    assert any(set(b.outgoing) == {"head.weight"} and len(b.units) == 3 for b in symmetries.blocks)


def test_product_of_branches():
    check(settle(Gated()), images(3), 8)


def assigned(h):
    """Units written into a tensor of zeros, beside constants."""
    filled = h.new_zeros(len(h), 6)
    filled[:, :4] = F.relu(h)
    filled[:, 5] = 1.0
    return filled


def accumulated(h):
    total = torch.zeros_like(h)
    total += F.relu(h)
    return total.add_(h.clamp(min=0))


@pytest.mark.parametrize(
    ("function", "between", "width", "dimension"),
    [
        (lambda h: h * (h > 0), 4, 4, 4),
        (lambda h: h.masked_fill(h < 0, 0.0), 4, 4, 4),
        (lambda h: torch.where(h >= 0, h, 0.1 * h), 4, 4, 4),
        (lambda h: h * h.sign(), 4, 4, 4),
        (lambda h: h * (h > 0.1), 4, 4, 0),
        (F.glu, 2, 4, 2),
        (lambda h: F.relu(h).topk(2, dim=1).values, 2, 4, 1),
        (lambda h: h.sort(dim=-1)[0], 4, 4, 1),
        (lambda h: h.relu().cumsum(1), 4, 4, 1),
        (lambda h: h.view(-1, 2, 2).amax(-1), 2, 4, 2),
        (lambda h: torch.maximum(h[:, :2], h[:, 2:]), 2, 4, 2),
        (lambda h: torch.stack([h[:, :2], h[:, 2:]]).max(0).values, 2, 4, 2),
        (lambda h: F.relu(h + 1), 4, 4, 0),
        (lambda h: F.relu(h) / 3 - 2 * h, 4, 4, 4),
        (lambda h: h.clamp(max=1.0), 4, 4, 0),
        (lambda h: F.relu(h) ** 2, 4, 4, 4),
        (lambda h: F.relu(h) ** 2.5, 4, 4, 4),
        (lambda h: F.relu(h) ** 0.3, 4, 4, 0),
        (lambda h: 2 ** F.relu(h), 4, 4, 0),
        (lambda h: h.abs().sqrt() * (h.square() + 1), 4, 4, 0),
        (lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True)), 4, 4, 1),
        (lambda h: h / (h.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt(), 4, 4, 0),
        (lambda h: h.abs().reciprocal().sqrt(), 4, 4, 4),
        (lambda h: F.pad(F.relu(h), (1, 1)), 6, 4, 4),
        (lambda h: F.pad(F.relu(h), (1, 1), value=1.0), 6, 4, 4),
        (assigned, 6, 4, 4),
        (accumulated, 4, 4, 4),
    ],
)
def test_functions(function, between, width, dimension):
    check(settle(Functional(function, between, width)), images(3), dimension)


class SqueezeExcite(nn.Module):
    """A gate that ends in a sigmoid: the channels keep their factors, what the gate reads is divided."""

    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2), nn.Linear(2, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.head((x * gate[:, :, None, None]).amax((2, 3)))


def test_gate():
    check(settle(SqueezeExcite()), images(3, 6, 6), 6 + 2)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Softplus])
def test_activations_that_end_a_path(activation):
    model = nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    check(settle(model), images(3), 5)


def test_no_symmetry_is_said():
    symmetries = find(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), images(3))
    assert symmetries.dimension == 0
    assert "no rescaling symmetry" in str(symmetries)


def test_parameters_outside_the_vector_stay():
    model = settle(build_model("table2-mlp", classes=2, input_shape=(2,)))
    model[1].weight.requires_grad_(False)
    # Both the units that enter it and those that leave it are tied to 1.
    check(model, images(2), 20)
    assert find(model, images(2), parameters=Parameters.of(model, ["3", "5"])).dimension == 10


def test_batch_statistics_end_the_path():
    model = settle(build_model("small-cnn", classes=3, input_shape=(1, 8, 8), channels=(2, 3)))
    assert find(model, images(1, 8, 8)).dimension == 10
    assert find(model, images(1, 8, 8), batch_norm="batch").dimension == 5
