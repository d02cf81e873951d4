"""Rescaling symmetries: group dimensions against counts by hand, outputs against an independent evaluation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import landscape
from landscape.errors import InputError
from landscape.invariance.rescaling import find
from landscape.invariance.rescaling.units import ANY, Units
from landscape.problem.parameters import Parameters
from landscape.random import stream
from trainers.models import build_model


def settle(model, seed=0):
    """Weights, scales and running statistics that are nowhere special (BatchNorm is born with mean 0, variance 1)."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name in ("running_var",) or (isinstance(module, nn.modules.batchnorm._NormBase) and name == "weight"):
                tensor.data.uniform_(0.3, 1.7, generator=generator)
            elif tensor.is_floating_point() and tensor.dim() < 2:
                tensor.data.uniform_(-0.5, 0.5, generator=generator)
    return model.double()


def images(*shape, n=3):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def check(model, x, dimension, low=0.2, high=5.0):
    """The dimension, and an evaluation by torch's own functional_call at three random members of the group."""
    symmetries = find(model, x)
    assert not symmetries.rejected, symmetries.rejected
    assert symmetries.dimension == dimension
    assert symmetries.residual <= 1e-12
    model = copy.deepcopy(model).eval()
    w, layout = symmetries.parameters.read(model), symmetries.parameters
    with torch.no_grad():
        before = model(x)
        for seed in range(3):
            tau = symmetries.sample(stream(seed, "test"), low, high)
            moved = symmetries.apply(w, tau)
            state = dict(zip(layout.names, layout.unflatten(moved.weights), strict=True)) | moved.buffers
            after = torch.func.functional_call(model, state, (x,))
            # 1e-12 of the largest output: the products of factors between .2 and 5 round at every layer.
            assert_close(after, before, rtol=0, atol=1e-12 * before.abs().max().item())
            if dimension:
                assert (moved.weights - w).abs().max() > 1e-3 * w.abs().max()
    return symmetries


# -- the networks of the built-in families -------------------------------------------------------------------------


def test_table_2_network():
    model = settle(build_model("table2-mlp", classes=2, input_shape=(2,)))
    symmetries = check(model, images(2), 40)
    assert [b.incoming for b in symmetries.blocks] == [(f"{i}.weight", f"{i}.bias") for i in (0, 1, 3, 5)]
    assert [b.outgoing for b in symmetries.blocks] == [(f"{i}.weight",) for i in (1, 3, 5, 7)]
    unit = symmetries.units[12]  # third unit of the second layer
    found = {(t.tensor, t.axis, t.index, t.exponent) for t in unit.touches}
    assert found == {("1.weight", 0, (2,), 1), ("1.bias", 0, (2,), 1), ("3.weight", 1, (2,), -1)}


def test_convolutions_flatten_and_batch_norm_with_its_buffers():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Dropout(0.5), nn.Flatten()),
        *(nn.Linear(6 * 4, 8), nn.PReLU(8), nn.Linear(8, 5)),
    )
    # convolution before BatchNorm 4, BatchNorm 4, convolution 6, linear 8
    symmetries = check(settle(model), images(3, 8, 8), 22)
    behind_flatten = [t for u in symmetries.units for t in u.touches if t.tensor == "9.weight" and t.exponent < 0]
    assert [t.index for t in behind_flatten] == [tuple(range(4 * c, 4 * c + 4)) for c in range(6)]
    assert all(t.axis == 1 for t in behind_flatten)
    first = next(b for b in symmetries.blocks if b.name == "0")
    assert set(first.incoming) == {"0.weight", "0.bias", "1.running_mean", "1.running_var"}


def test_running_variance_may_come_out_negative():
    model = settle(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, eps=0.5), nn.ReLU(), nn.Linear(4, 2)))
    model[1].running_var.fill_(1e-3)
    symmetries = check(model, images(3), 8)
    moved = symmetries.apply(symmetries.parameters.read(model), torch.full((8,), 0.5, dtype=torch.float64))
    assert_close(moved.buffers["1.running_var"], torch.full((4,), 0.25 * 0.501 - 0.5, dtype=torch.float64))
    assert (moved.buffers["1.running_var"] < 0).all()


def residual_network(planes, blocks, convolutions, *, stem, width):
    """Count by hand: the stem before its BatchNorm, one stream a stage, and in each block one unit a channel before
    each BatchNorm and after each but the last, plus the projection before its BatchNorm."""
    expansion = 4 if convolutions == 3 else 1
    total = stem
    for stage, count in enumerate(blocks):
        inner = planes * 2**stage
        stream_width = inner * expansion
        total += stream_width + count * ((convolutions - 1) * 2 * inner + stream_width)
        projected = width != stream_width
        total += stream_width * projected
        # Without a projection the stage goes on in the stream of the stem.
        width = stream_width
    return total


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_cifar_residual_network(shortcut):
    # In the first stage of a CIFAR network the stem's BatchNorm joins the stream: no units of its own.
    expected = residual_network(16, (3, 3, 3), 2, stem=16, width=16)
    assert expected == 1232
    if shortcut == "pad":  # no projections, and the first channels of a stage are those of the stage before
        expected -= 32 + 64 + 16 + 32
    check(
        settle(build_model("resnet20", classes=10, input_shape=(3, 16, 16), shortcut=shortcut)),
        images(3, 16, 16),
        expected,
    )


def test_resnet18():
    expected = residual_network(64, (2, 2, 2, 2), 2, stem=64, width=64)
    assert expected == 7680
    model = build_model("resnet18", classes=7, input_shape=(3, 32, 32), stem="imagenet")
    assert find(settle(model), images(3, 32, 32, n=2)).dimension == expected


def test_resnet50():
    # Its first stage has a projection: the stem's BatchNorm feeds only that and the first block, 64 units more.
    expected = residual_network(64, (3, 4, 6, 3), 3, stem=64, width=64) + 64
    model = build_model("resnet50", classes=7, input_shape=(3, 32, 32), stem="imagenet")
    symmetries = find(settle(model), images(3, 32, 32, n=2))
    assert not symmetries.rejected
    # Counted another way: 26,560 channels before a BatchNorm; streams; two inner BatchNorms a block; the stem's.
    inner = 3 * 64 + 4 * 128 + 6 * 256 + 3 * 512
    assert expected == 26560 + (256 + 512 + 1024 + 2048) + 2 * inner + 64
    assert symmetries.dimension == expected


def wide_residual_network(depth, width):
    """Count by hand: a stream a group (the stem's is one), two BatchNorms a block after, the inner one before, too."""
    total, current = 16, 16
    for group, out in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            # after bn1; before bn2; after bn2
            total += (current if block == 0 else out) + 2 * out
        if group > 0 or out != current:
            total += out  # the new stream
        current = out
    return total + current  # after the last BatchNorm


def test_wide_residual_network():
    model = build_model("wrn", classes=5, input_shape=(3, 8, 8), depth=16, width=2)
    check(settle(model), images(3, 8, 8), wide_residual_network(16, 2))


@pytest.mark.slow
def test_wrn_28_10():
    model = build_model("wrn-28-10", classes=10, input_shape=(3, 32, 32))
    symmetries = find(model, images(3, 32, 32, n=1))
    assert symmetries.dimension == wide_residual_network(28, 10)
    assert not symmetries.rejected


def test_vision_transformer():
    # A block: its two norms, queries against keys and values against output, dim units each; and the last norm.
    model = build_model("vit-tiny", classes=5, input_shape=(3, 16, 16), dim=12, depth=2, heads=3)
    symmetries = check(settle(model), images(3, 16, 16), 2 * 4 * 12 + 12)
    keys = next(b for b in symmetries.blocks if "blocks.0.attention.key.bias" in b.outgoing)
    assert set(keys.incoming) == {"blocks.0.attention.query.weight", "blocks.0.attention.query.bias"}
    assert set(keys.outgoing) == {"blocks.0.attention.key.weight", "blocks.0.attention.key.bias"}


# -- other blocks --------------------------------------------------------------------------------------------------


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


class Gated(nn.Module):
    """relu(a) b: the factors of the two branches multiply (two free factors a hidden unit)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(F.relu(self.a(x)) * self.b(x))


def test_product_of_branches():
    check(settle(Gated()), images(3), 8)


class Functional(nn.Module):
    """Two layers of four units around a function of torch."""

    def __init__(self, function, between=4, width=4):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(3, width), nn.Linear(between, 2), function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


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
        (lambda h: F.relu(h) ** 2, 4, 4, 0),
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


# -- verification, hints, bad input --------------------------------------------------------------------------------


def test_a_wrong_hint_is_caught_and_not_used():
    model = settle(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    symmetries = find(model, images(3), hints={"GELU": "homogeneous"})
    assert symmetries.dimension == 5
    assert [b.name for b in symmetries.rejected] == ["0"]
    assert symmetries.rejected[0].residual > 1e-3
    assert "4 rejected" in str(symmetries)
    assert len({n for b in symmetries.blocks for n in b.units}) == 5
    w = symmetries.parameters.read(model)
    moved = symmetries.apply(w, symmetries.sample(stream(0, "t"), 0.5, 1.5)).weights
    changed = {
        s.name: not torch.equal(a, b)
        for s, a, b in zip(symmetries.parameters, *map(symmetries.parameters.unflatten, (w, moved)), strict=True)
    }
    assert changed == {
        "0.weight": False,
        "0.bias": False,
        "2.weight": True,
        "2.bias": True,
        "4.weight": True,
        "4.bias": False,
    }


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(3, 4), Gate(), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.gate(F.relu(self.a(x))))


class Gate(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else 0.5 * x


def test_a_branch_on_values_names_the_module_and_the_hint_works():
    model = settle(Branching())
    with pytest.raises(InputError, match=r"module 'gate' \(Gate\).*hints=\{\"gate\": \"opaque\"\}"):
        find(model, images(3))
    assert find(model, images(3), hints={"gate": "opaque"}).dimension == 0
    assert find(model, images(3), hints={"Gate": "homogeneous"}).dimension == 4
    with pytest.raises(InputError, match="the model itself"):
        find(OnTop(), images(3))


@pytest.mark.parametrize(
    "read",
    [
        lambda h: bool(h.any()),
        lambda h: float(h.sum()),
        lambda h: h.detach().numpy(),
        lambda h: h.tolist(),
        lambda h: torch.equal(h, h + 1),
        lambda h: torch.allclose(torch.ones(1).double(), h),
        lambda h: int(h.argmax()),
    ],
)
def test_every_way_to_read_values_is_seen(read):
    def function(h):
        read(h)
        return F.relu(h)

    with pytest.raises(InputError, match="reads the values"):
        find(settle(Functional(function)), images(3))
    # What a network asks of a tensor besides its values is no branch on them.
    fine = Functional(lambda h: F.relu(h) if h.dim() == 2 and len(h) and h.shape[1] == 4 and h.requires_grad else h)
    check(settle(fine), images(3), 4)


class OnTop(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2).double()

    def forward(self, x):
        return self.a(x) if x.mean().item() > 0 else self.a(-x)


class Scripted(nn.Module):
    """Holds compiled code, whose functions do not pass through Python."""

    def __init__(self):
        super().__init__()
        self.compiled = torch.jit.trace(nn.ReLU(), torch.ones(2, 4, dtype=torch.float64))

    def forward(self, x):
        return self.compiled(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_code_that_cannot_be_seen_ends_the_path_and_is_noted():
    model = settle(nn.Sequential(nn.Linear(3, 4), Scripted(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    symmetries = find(model, images(3))
    assert symmetries.dimension == 5
    assert "'1" in symmetries.notes[0]
    assert "could not be followed" in symmetries.notes[0]
    assert find(model, images(3), hints={"Scripted": "homogeneous"}).dimension == 9


def test_bad_input():
    model = settle(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(InputError, match="hint 'transparent'"):
        find(model, images(3), hints={"1": "transparent"})
    symmetries = find(model, images(3))
    with pytest.raises(InputError, match="low=-1"):
        symmetries.sample(stream(0, "x"), -1, 2)
    with pytest.raises(InputError, match="4 positive factors"):
        symmetries.apply(symmetries.parameters.read(model), torch.ones(3))
    with pytest.raises(InputError, match="4 positive factors"):
        symmetries.apply(symmetries.parameters.read(model), -torch.ones(4))
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="nan"):
        find(model, images(3))


def test_the_model_is_left_bit_identical_also_after_an_error():
    for model in (
        settle(build_model("small-cnn", classes=3, input_shape=(1, 8, 8), channels=(2, 3))),
        settle(Branching()),
    ):
        model.train()
        before = copy.deepcopy(model.state_dict())
        x = images(1, 8, 8) if isinstance(model, nn.Sequential) else images(3)
        try:
            symmetries = find(model, x)
            symmetries.apply(symmetries.parameters.read(model), symmetries.sample(stream(0, "x")))
        except InputError:
            pass
        assert model.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def test_weights_only_is_no_symmetry_of_a_network_with_biases():
    model = settle(build_model("table2-mlp", classes=2, input_shape=(2,)))
    symmetries, x = find(model, images(2)), images(2)
    w = symmetries.parameters.read(model)
    tau = symmetries.sample(stream(0, "x"))
    broken = symmetries.apply(w, tau, weights_only=True).weights
    biases = symmetries.parameters.mask(lambda s: s.kind == "bias", w).bool()
    assert torch.equal(broken[biases], w[biases])
    assert_close(broken[~biases], symmetries.apply(w, tau).weights[~biases], rtol=0, atol=0)
    problem = landscape.Problem(model, nn.CrossEntropyLoss(), [(x, torch.tensor([0, 1, 0]))])
    assert (problem.outputs(broken) - problem.outputs()).abs().max() > 1e-3


def test_float32_model_and_its_dtype():
    model = build_model("small-cnn", classes=3, input_shape=(1, 8, 8), channels=(2, 3))
    symmetries = find(model, images(1, 8, 8).float())
    moved = symmetries.apply(symmetries.parameters.read(model), symmetries.sample(stream(0, "x")))
    assert moved.weights.dtype == torch.float32
    assert {b.dtype for b in moved.buffers.values()} == {torch.float32}


# -- nothing is missed: the rank of the Jacobian -------------------------------------------------------------------


class Joined(nn.Module):
    """A residual block and a concatenation, in fully connected form.

    The branch and the sum end in activations: in h + B h, or in C [h, h + b], a sum of weights could make up for a
    factor, a symmetry that is no rescaling.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(8, 5)
        self.d = nn.Linear(5, 3)

    def forward(self, x):
        h = F.leaky_relu(self.a(x), 0.3)
        h = torch.cat([h, F.leaky_relu(h + F.leaky_relu(self.b(h), 0.2), 0.5)], 1)
        return self.d(F.leaky_relu(self.c(h), 0.1))


NETWORKS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(3, 5), nn.LeakyReLU(0.4), nn.Linear(5, 4), nn.LeakyReLU(0.2), nn.Linear(4, 3)),
        (3,),
        9,
    ),
    "no bias": (lambda: nn.Sequential(nn.Linear(3, 5, bias=False), nn.LeakyReLU(), nn.Linear(5, 3)), (3,), 5),
    "tanh": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), (3,), 0),
    "joined": (Joined, (3,), 4 + 5),  # the sum ties the two layers of four
    "gate": (Gated, (3,), 8),
    "flatten": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)),
        (2, 5, 5),
        3,
    ),
    "depthwise": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 2, groups=4), nn.LeakyReLU(0.3)),
            *(nn.Conv2d(4, 3, 1), nn.LeakyReLU(0.1), nn.Conv2d(3, 2, 2), nn.Flatten()),
        ),
        (2, 4, 4),
        4 + 4 + 3,
    ),
    "grouped": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 2, groups=2), nn.LeakyReLU(0.3), nn.Flatten()),
            nn.Linear(16, 3),
        ),
        (2, 4, 4),
        8,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_symmetry_is_found(name):
    """The function's derivative vanishes along the group's orbits, and for these networks along nothing else.

    Tangent vectors of the group: d w / d log tau. They lie in the kernel of the Jacobian of the outputs over many
    inputs, and its dimension, from singular values, says whether one was missed.
    """
    build, shape, dimension = NETWORKS[name]
    torch.manual_seed(3)
    model = settle(build(), 3)
    x = 3 * images(*shape, n=200)  # many: a unit that never changes sign on them would be linear
    symmetries = check(model, x, dimension)
    layout, w = symmetries.parameters, symmetries.parameters.read(model)

    def outputs(flat):
        state = dict(zip(layout.names, layout.unflatten(flat), strict=True))
        return torch.func.functional_call(model, state, (x,)).reshape(-1)

    jacobian = torch.func.jacrev(outputs)(w)
    values = torch.linalg.svdvals(jacobian)
    small = values < 1e-9 * values[0]
    assert len(w) - int((~small).sum()) == dimension
    assert values[~small].min() > 1e-6 * values[0], "the gap that tells zero from small is too narrow"
    if dimension:  # the factors act in independent directions
        one = torch.eye(dimension, dtype=torch.float64)
        tangents = torch.stack([symmetries.scales(torch.exp(1e-3 * e)) - 1 for e in one], 1)
        assert torch.linalg.matrix_rank(w[:, None] * tangents) == dimension


# -- units ---------------------------------------------------------------------------------------------------------


def solution(units):
    matrix, free = units.solve()
    return {u: dict(zip(free[r.indices].tolist(), r.data.tolist(), strict=True)) for u, r in enumerate(matrix)}


def test_ties_with_signs():
    units = Units()
    a, b = units.fresh(3), units.fresh(3)  # 1..3 and 4..6
    units.tie(b, -a)
    units.tie(a[0], a[1])
    assert solution(units) == {0: {}, 1: {1: 1}, 2: {1: 1}, 3: {3: 1}, 4: {1: -1}, 5: {1: -1}, 6: {3: -1}}
    units.tie(a[2], b[2])  # tau = 1 / tau
    assert units.fixed(a[2:])
    assert not units.fixed(a)
    assert solution(units)[3] == {}


def test_zeros_fit_every_factor():
    units = Units()
    a = units.fresh(2)
    units.tie(a, torch.tensor([ANY, ANY]))
    assert len(units.solve()[1]) == 2
    kept = units.reduce(torch.stack([a, torch.tensor([ANY, 0])]), [0])
    assert kept[0, 0] == 1
    assert units.fixed(kept[0, 1:])


def test_products_are_solved_exactly():
    units = Units()
    a, b, c = (units.fresh(1) for _ in range(3))
    z = units.product(units.product(a, b), c)
    assert len(units.solve()[1]) == 3
    units.tie(z, torch.zeros(1, dtype=torch.int64))  # a b c = 1: two are free
    matrix, free = units.solve()
    assert len(free) == 2
    logs = matrix @ torch.tensor([0.3, -1.1]).numpy()
    assert_close(float(logs[1] + logs[2] + logs[3]), 0.0, rtol=0, atol=1e-15)


def test_names_are_public():
    assert landscape.invariance.rescaling.find is find
