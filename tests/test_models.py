"""The built-in networks: published sizes, shapes, seeds, and what hooks and tracing need."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from landscape.errors import InputError
from trainers.models import MODELS, build_model, count_parameters, kind_of

IMAGENET = {"classes": 1000, "input_shape": (3, 224, 224)}
CIFAR = {"classes": 10, "input_shape": (3, 32, 32)}

# He et al. 2015 (and torchvision's documentation), Zagoruyko and Komodakis 2016, Steiner et al. 2021 for ViT-S/32.
PUBLISHED = [
    ("table2-mlp", {}, {"classes": 2, "input_shape": (2,)}, 382),
    ("resnet20", {}, CIFAR, 272_474),
    ("resnet20", {"shortcut": "pad"}, CIFAR, 269_722),
    ("resnet56", {}, CIFAR, 855_770),
    ("resnet56", {"shortcut": "pad"}, CIFAR, 853_018),
    ("resnet", {"depth": 20, "width": 16}, CIFAR, 272_474),
    # Stem 88, stages of one block 1,184, 3,680 and 14,528 (projections and norms included), linear layer 330.
    ("resnet", {"depth": 8, "width": 8}, {"classes": 10, "input_shape": (1, 28, 28)}, 19_810),
    ("resnet", {"depth": 8, "width": 8, "stride": 2}, {"classes": 10, "input_shape": (1, 28, 28)}, 19_810),
    ("resnet18", {}, IMAGENET, 11_689_512),
    ("resnet50", {}, IMAGENET, 25_557_032),
    ("resnet101", {}, IMAGENET, 44_549_160),
    ("resnet152", {}, IMAGENET, 60_192_808),
    ("resnet18", {}, CIFAR, 11_173_962),
    ("wrn-28-10", {}, CIFAR, 36_479_194),
    ("wrn", {"depth": 40, "width": 4}, CIFAR, 8_949_210),
    ("vit-s32", {}, IMAGENET, 22_878_952),
    ("bert-small", {"vocabulary": 2048}, {"classes": 5, "input_shape": (64,)}, 235_589),
    ("gpt-small", {}, {"classes": 2048, "input_shape": (64,)}, 235_264),
]

VARIANTS = [
    ("table2-mlp", {}, (1, 8, 8)),
    ("mlp", {"hidden": (7, 6, 5), "activation": "gelu", "batch_norm": True}, (1, 8, 8)),
    ("small-cnn", {}, (3, 32, 32)),
    ("resnet20", {"shortcut": "pad"}, (3, 32, 32)),
    ("resnet", {"depth": 14, "width": 4, "stride": 2}, (1, 28, 28)),
    ("resnet18", {"stem": "imagenet"}, (3, 64, 64)),
    ("wrn", {"depth": 16, "width": 2, "dropout": 0.3}, (1, 8, 8)),
    ("vit-tiny", {"patch": 7, "dim": 24, "depth": 2, "heads": 4}, (1, 28, 28)),
    ("bert-small", {"vocabulary": 7, "dim": 8, "depth": 1, "heads": 2}, (5,)),
    ("gpt-small", {"dim": 8, "depth": 1, "heads": 2}, (5,)),
]
CLASSES = 3


def registered():
    """Every model in the configuration that its file gives for this test."""
    for name, entry in MODELS.entries.items():
        assert "small" in entry.facts, f"{entry.file} states no small configuration: @register({name!r}, small=...)"
        yield (
            name,
            {k: v for k, v in entry.facts["small"].items() if k != "input_shape"},
            entry.facts["small"]["input_shape"],
        )


def example_inputs(name, n, shape, seed=0, dtype=torch.float32):
    """Random numbers, or for a network that reads tokens whole rows of them: 0 would fill them up."""
    generator = torch.Generator().manual_seed(seed)
    if kind_of(name)[0] == "tokens":
        return torch.randint(1, CLASSES, (n, *shape), generator=generator)
    return torch.randn(n, *shape, dtype=dtype, generator=generator)


def places(name, shape):
    """What follows the classes in the shape of the outputs: the tokens of a text where each is predicted."""
    return shape if kind_of(name)[1] == "next tokens" else ()


def cases():
    rows = [*registered(), *VARIANTS]
    return [pytest.param(*row, id="-".join([row[0], *map(str, row[1].values()), str(row[2])])) for row in rows]


@pytest.mark.parametrize(
    ("name", "arguments", "task", "parameters"), [pytest.param(*r, id=f"{r[0]}-{r[3]}") for r in PUBLISHED]
)
def test_parameter_counts_equal_the_published_ones(name, arguments, task, parameters):
    with torch.device("meta"):
        model = build_model(name, **task, **arguments)
    assert count_parameters(model) == parameters


@pytest.mark.parametrize(("name", "arguments", "shape"), cases())
def test_logits_have_one_row_an_example_in_float64_and_examples_do_not_mix(name, arguments, shape):
    model = build_model(name, classes=CLASSES, input_shape=shape, **arguments).double().eval()
    x = example_inputs(name, 4, shape, seed=1, dtype=torch.float64)
    logits = model(x)
    assert logits.shape == (4, CLASSES, *places(name, shape))
    assert logits.dtype == torch.float64
    assert logits.std(dim=0).min() > 0
    torch.testing.assert_close(model(x[2:3]), logits[2:3], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("name", "arguments", "shape"), cases())
def test_every_parameter_gets_a_gradient(name, arguments, shape):
    model = build_model(name, classes=3, input_shape=shape, **arguments)
    x = example_inputs(name, 6, shape, seed=2)
    targets = torch.arange(6) % CLASSES
    if places(name, shape):
        targets = targets[:, None].expand(6, *shape)
    F.cross_entropy(model(x), targets).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("name", "arguments", "shape"), cases())
def test_symbolic_trace_computes_the_same(name, arguments, shape):
    model = build_model(name, classes=3, input_shape=shape, **arguments).double().eval()
    traced = torch.fx.symbolic_trace(model)
    x = example_inputs(name, 2, shape, seed=3, dtype=torch.float64)
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "arguments", "shape"), cases())
def test_every_leaf_module_runs_at_most_once_a_pass(name, arguments, shape):
    model = build_model(name, classes=3, input_shape=shape, **arguments).eval()
    calls = {}
    for path, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, i, o, path=path: calls.update({path: calls.get(path, 0) + 1}))
    model(example_inputs(name, 1, shape))
    assert set(calls.values()) == {1}


@pytest.mark.parametrize(("name", "arguments", "shape"), cases())
def test_the_seed_alone_decides_the_weights(name, arguments, shape):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = build_model(name, classes=3, input_shape=shape, seed=1, **arguments).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again = build_model(name, classes=3, input_shape=list(shape), seed=1, **arguments).state_dict()
    other = build_model(name, classes=3, input_shape=shape, seed=2, **arguments).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        (name, option, value)
        for name, entry in MODELS.entries.items()
        for option, values in entry.facts.get("same_weights", {}).items()
        for value in values
    ],
)
def test_options_that_weights_do_not_show_change_the_function_alone(name, option, value):
    entry = MODELS.entry(name)
    small = {"classes": CLASSES, **entry.facts["small"]}
    # The other options stay where the values of this one fit: padding instead of convolutions.
    others = {o: v[0] for o, v in entry.facts["same_weights"].items() if entry.option(o).default not in v}
    first = build_model(name, **{**small, **others, option: entry.facts["same_weights"][option][0]}).eval()
    other = build_model(name, **{**small, **others, option: value}).eval()
    other.load_state_dict(first.state_dict())
    x = example_inputs(name, 2, small["input_shape"])
    assert torch.equal(first(x), other(x)) == (value == entry.facts["same_weights"][option][0])


def test_building_networks_leaves_torch_compiler_unimported():
    """It takes a second; a sketch without memory would import it to draw weights."""
    lines = "import sys; from trainers.models import MODELS, build_model"
    build = "[build_model(n, classes=4, **MODELS.entry(n).facts['small']) for n in MODELS]"
    done = subprocess.run(
        [sys.executable, "-c", f"{lines}; {build}; print('torch._dynamo' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_table2_has_no_activation_after_the_first_layer():
    layers = [type(m).__name__ for m in build_model("table2-mlp", classes=2, input_shape=(2,))]
    assert layers == ["Linear", "Linear", "ReLU", "Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_stem_follows_the_image_size():
    small = build_model("resnet18", classes=2, input_shape=(3, 32, 32))
    assert (small.conv1.kernel_size, small.conv1.stride) == ((3, 3), (1, 1))
    with torch.device("meta"):
        large = build_model("resnet18", classes=2, input_shape=(3, 224, 224))
    assert (large.conv1.kernel_size, large.conv1.stride) == ((7, 7), (2, 2))
    assert small.maxpool(torch.ones(1, 1, 4, 4)).shape == (1, 1, 4, 4)
    assert set(large.state_dict()) >= {"layer1.0.conv1.weight", "layer2.0.downsample.1.running_mean", "fc.bias"}


@pytest.mark.parametrize(("kind", "before"), [("pad", 0), ("pad-centered", 8)])
def test_padded_shortcut_takes_every_second_pixel_and_adds_zero_channels(kind, before):
    shortcut = build_model("resnet20", classes=2, input_shape=(3, 8, 8), shortcut=kind).layer2[0].downsample
    x = torch.arange(2.0 * 16 * 8 * 8).reshape(2, 16, 8, 8)
    out = shortcut(x)
    assert torch.equal(out[:, before : before + 16], x[:, :, ::2, ::2])
    assert out.shape == (2, 32, 4, 4)
    assert not out[:, :before].any()
    assert not out[:, before + 16 :].any()


# The papers' formulas once more, from a state dict and torch.nn.functional alone.


def norm(state, prefix, x):
    p = {key: state[f"{prefix}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
    shape = (1, -1, 1, 1)
    scale = p["weight"] / (p["running_var"] + 1e-5).sqrt()
    return (x - p["running_mean"].view(shape)) * scale.view(shape) + p["bias"].view(shape)


def conv(state, prefix, x, stride=1):
    weight = state[f"{prefix}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def reference_resnet(state, x, blocks, imagenet_stem, bottleneck):
    x = norm(state, "bn1", conv(state, "conv1", x, 2 if imagenet_stem else 1)).relu()
    if imagenet_stem:
        x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(blocks):
        for index in range(count):
            b = f"layer{stage + 1}.{index}"
            stride = 2 if stage and not index else 1
            if bottleneck:
                y = norm(state, f"{b}.bn1", conv(state, f"{b}.conv1", x)).relu()
                y = norm(state, f"{b}.bn2", conv(state, f"{b}.conv2", y, stride)).relu()
                y = norm(state, f"{b}.bn3", conv(state, f"{b}.conv3", y))
            else:
                y = norm(state, f"{b}.bn1", conv(state, f"{b}.conv1", x, stride)).relu()
                y = norm(state, f"{b}.bn2", conv(state, f"{b}.conv2", y))
            if f"{b}.downsample.0.weight" in state:
                x = norm(state, f"{b}.downsample.1", conv(state, f"{b}.downsample.0", x, stride))
            x = (x + y).relu()
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def reference_wrn(state, x, per_group):
    x = conv(state, "conv1", x)
    for group in range(3):
        for index in range(per_group):
            b = f"groups.{group}.{index}"
            stride = 2 if group and not index else 1
            active = norm(state, f"{b}.bn1", x).relu()
            y = norm(state, f"{b}.bn2", conv(state, f"{b}.conv1", active, stride)).relu()
            y = conv(state, f"{b}.conv2", y)
            x = y + (conv(state, f"{b}.shortcut", active, stride) if f"{b}.shortcut.weight" in state else x)
    return F.linear(norm(state, "bn", x).relu().mean((2, 3)), state["fc.weight"], state["fc.bias"])


def reference_cnn(state, x, channels):
    for i in range(len(channels)):
        x = norm(state, str(3 * i + 1), conv(state, str(3 * i), x, 2 if i else 1)).relu()
    last = str(3 * len(channels) + 2)
    return F.linear(x.mean((2, 3)), state[f"{last}.weight"], state[f"{last}.bias"])


def layer_norm(state, prefix, t):
    centered = t - t.mean(-1, keepdim=True)
    scaled = centered / (t.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    return scaled * state[f"{prefix}.weight"] + state[f"{prefix}.bias"]


def linear(state, prefix, t):
    return t @ state[f"{prefix}.weight"].mT + state[f"{prefix}.bias"]


def reference_blocks(state, t, heads, depth, seen):
    """Pre-norm blocks; `seen` (n or 1, tokens or 1, tokens) is False where a token does not see another."""
    for block in range(depth):
        b = f"blocks.{block}"
        h = layer_norm(state, f"{b}.norm1", t)
        q, k, v = (linear(state, f"{b}.attention.{name}", h) for name in ("query", "key", "value"))
        width = t.shape[-1] // heads
        mixed = []
        for head in range(heads):
            part = slice(width * head, width * (head + 1))
            scores = (q[..., part] @ k[..., part].mT / width**0.5).exp() * seen
            mixed.append(scores / scores.sum(-1, keepdim=True) @ v[..., part])
        t = t + linear(state, f"{b}.attention.out", torch.cat(mixed, -1))
        h = linear(state, f"{b}.linear1", layer_norm(state, f"{b}.norm2", t))
        t = t + linear(state, f"{b}.linear2", h * 0.5 * (1 + torch.erf(h / 2**0.5)))
    return layer_norm(state, "norm", t)


def reference_vit(state, x, patch, heads, depth):
    rows = x.unfold(2, patch, patch).unfold(3, patch, patch)  # n, c, rows, columns, patch, patch
    pieces = rows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    t = pieces @ state["patches.weight"].flatten(1).mT + state["patches.bias"]
    t = torch.cat([state["cls"].expand(len(x), 1, -1), t], 1) + state["position"]
    return linear(state, "head", reference_blocks(state, t, heads, depth, torch.ones(1, 1, 1))[:, 0])


def reference_bert(state, x, heads, depth):
    t = state["embedding.weight"][x] + state["position"]
    return linear(state, "head", reference_blocks(state, t, heads, depth, (x != 0)[:, None, :])[:, 0])


def reference_gpt(state, x, heads, depth):
    t = state["embedding.weight"][x] + state["position"]
    seen = torch.ones(x.shape[1], x.shape[1]).tril()[None]
    return torch.einsum("ntd,vd->nvt", reference_blocks(state, t, heads, depth, seen), state["embedding.weight"])


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "reference"),
    [
        ("small-cnn", {"channels": (4, 6, 5)}, (2, 9, 8), lambda s, x: reference_cnn(s, x, (4, 6, 5))),
        ("resnet20", {}, (3, 12, 8), lambda s, x: reference_resnet(s, x, (3, 3, 3), False, False)),
        ("resnet56", {}, (3, 8, 8), lambda s, x: reference_resnet(s, x, (9, 9, 9), False, False)),
        ("resnet18", {}, (3, 8, 8), lambda s, x: reference_resnet(s, x, (2, 2, 2, 2), False, False)),
        ("resnet50", {"stem": "imagenet"}, (3, 32, 32), lambda s, x: reference_resnet(s, x, (3, 4, 6, 3), True, True)),
        ("wrn", {"depth": 16, "width": 2}, (3, 8, 8), lambda s, x: reference_wrn(s, x, 2)),
        ("wrn", {"depth": 10, "width": 1}, (3, 8, 8), lambda s, x: reference_wrn(s, x, 1)),
        ("vit-tiny", {"depth": 2}, (2, 8, 12), lambda s, x: reference_vit(s, x, 2, 3, 2)),
        ("bert-small", {"vocabulary": 9, "dim": 8, "heads": 2}, (5,), lambda s, x: reference_bert(s, x, 2, 2)),
        ("gpt-small", {"dim": 8, "heads": 2, "depth": 3}, (5,), lambda s, x: reference_gpt(s, x, 2, 3)),
    ],
)
def test_forward_equals_the_papers_formula(name, arguments, shape, reference):
    model = build_model(name, classes=CLASSES, input_shape=shape, **arguments).double().eval()
    generator = torch.Generator().manual_seed(8)
    state = model.state_dict()
    for value in state.values():  # statistics, affines and biases away from 0 and 1
        if value.ndim == 1:
            value += 0.3 * torch.rand(value.shape, dtype=torch.float64, generator=generator)
    x = example_inputs(name, 2, shape, seed=9, dtype=torch.float64)
    if kind_of(name)[0] == "tokens":
        x[1, 3:] = 0  # a shorter text, filled up
    torch.testing.assert_close(model(x), reference(state, x), rtol=1e-8, atol=1e-10)


def test_what_fills_a_text_up_changes_nothing_that_counts():
    text = torch.tensor([[1, 4, 2, 0, 0, 0]])
    for name, arguments in (("bert-small", {"vocabulary": 9, "classes": 3}), ("gpt-small", {"classes": 9})):
        model = build_model(name, input_shape=(6,), dim=8, heads=2, **arguments).double().eval()
        torch.testing.assert_close(model(text[:, :3]), model(text)[..., :3], rtol=1e-10, atol=1e-12)
        if name == "gpt-small":  # what comes later, too
            later = torch.tensor([[1, 4, 2, 5, 6, 7]])
            torch.testing.assert_close(model(later)[..., :3], model(text)[..., :3], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("vocabulary", "length", "dim", "depth", "classes"), [(7, 5, 8, 1, 3), (50, 9, 12, 3, 4)])
def test_parameters_of_text_models_by_their_formula(vocabulary, length, dim, depth, classes):
    norm, attention, mlp = 2 * dim, 4 * (dim * dim + dim), 2 * dim * 4 * dim + 4 * dim + dim
    body = (vocabulary + length) * dim + depth * (2 * norm + attention + mlp) + norm
    options = {"input_shape": (length,), "dim": dim, "depth": depth, "heads": 4}
    bert = build_model("bert-small", classes=classes, vocabulary=vocabulary, **options)
    assert count_parameters(bert) == body + (dim + 1) * classes
    assert body == (vocabulary + length + 12 * depth * dim + 13 * depth + 2) * dim
    assert count_parameters(build_model("gpt-small", classes=vocabulary, **options)) == body


def test_dropout_sits_between_the_convolutions_of_a_wide_block():
    model = build_model("wrn", classes=2, input_shape=(3, 8, 8), depth=10, width=1, dropout=0.5)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    seen = []
    model.groups[0][0].dropout.register_forward_hook(lambda m, i, o: seen.append((i[0], o)))
    model(x)
    before, after = seen[0]
    dropped = (after == 0) & (before > 0)
    assert 0.4 < dropped.sum() / (before > 0).sum() < 0.6
    torch.testing.assert_close(after[~dropped], 2 * before[~dropped])


def test_he_initialization_has_its_variance():
    weight = build_model("resnet18", classes=10, input_shape=(3, 32, 32)).layer4[1].conv2.weight
    expected = (2 / (512 * 9)) ** 0.5
    # Relative standard error of a deviation over 2.4M draws is 5e-4; four of them.
    torch.testing.assert_close(weight.std().item(), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet19", {}, "unknown model 'resnet19': did you mean .*'resnet18'"),
        ("resnet20", {"shortcuts": "pad"}, "unknown argument of resnet20 'shortcuts': did you mean 'shortcut'"),
        ("resnet20", {"shortcut": "none"}, "unknown shortcut 'none'"),
        ("resnet18", {"stem": "tiny"}, "unknown stem 'tiny'"),
        ("resnet18", {"stem": "imagenet", "input_shape": (3, 16, 16)}, "use stem=cifar"),
        ("wrn", {"depth": 20}, "not 6 n \\+ 4"),
        ("resnet", {"depth": 10}, "not 6 n \\+ 2"),
        ("resnet", {"width": 0}, "at least 1 channel"),
        ("resnet", {"stride": 0}, "1 keeps the image's size"),
        ("wrn", {"depth": "deep"}, "depth='deep' of 'wrn' is not of type int"),
        ("wrn", {"dropout": 1.0}, "0 <= dropout < 1"),
        ("mlp", {"hidden": ()}, "at least one layer"),
        ("mlp", {"activation": "rleu"}, "unknown activation 'rleu': did you mean 'relu'"),
        ("small-cnn", {"input_shape": (4,)}, "choose mlp"),
        ("vit-s32", {}, "multiples of 32"),
        ("vit-tiny", {"dim": 10}, "dim a multiple of heads"),
        ("bert-small", {"input_shape": (8,)}, "vocabulary=2048, or choose mlp for features"),
        ("bert-small", {"vocabulary": 9}, "choose vit-tiny for images"),
        ("bert-small", {"input_shape": (8,), "vocabulary": 9, "dim": 10}, "dim a multiple of heads"),
        ("gpt-small", {}, "choose vit-tiny for images"),
        ("gpt-small", {"input_shape": (8,), "heads": 3}, "dim a multiple of heads"),
        ("mlp", {"classes": 0}, "at least one output"),
        ("mlp", {"input_shape": (3, 0, 2)}, "neither \\(features,\\)"),
    ],
)
def test_wrong_arguments_say_what_to_do(name, arguments, message):
    with pytest.raises(InputError, match=message):
        build_model(name, **{"classes": 3, "input_shape": (3, 28, 28), **arguments})


def test_listing_models_imports_no_torch():
    code = (
        "import sys; from trainers.models import MODELS; rows = [(n, e.summary) for n, e in MODELS.entries.items()];"
        "assert all(s for n, s in rows) and len(rows) >= 12, rows; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
