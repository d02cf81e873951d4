"""Rescaling symmetries of the built-in networks: dimensions against counts by hand, outputs against torch."""

import pytest
import torch
from rescaling_cases import check, images, settle
from torch import nn
from torch.testing import assert_close

from landscape.invariance.rescaling import find
from trainers.models import build_model


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
