"""Batches: augmentation against a loop, order, resumption, devices."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from landscape.errors import InputError
from landscape.random import stream
from trainers.data.batches import TrainingBatches, augment
from trainers.datasets import load_data


def rng():
    return np.random.default_rng(0)


@functools.cache
def digits():
    return load_data("digits")


def test_augmentation_equals_a_loop_over_the_images():
    x = torch.randn(50, 3, 9, 7, generator=stream(0, "x"))
    result = augment(x, stream(1, "draws"))
    draws = stream(1, "draws")
    shift = torch.randint(9, (2, 50), generator=draws)
    mirrored = torch.randint(2, (50,), generator=draws)
    padded = F.pad(x, (4, 4, 4, 4))
    for i in range(50):
        down, right = shift[:, i].tolist()
        crop = padded[i, :, down : down + 9, right : right + 7]
        assert torch.equal(result[i], crop.flip(-1) if mirrored[i] else crop)
    assert torch.equal(result, augment(x, stream(1, "draws")))
    assert not torch.equal(result, augment(x, stream(2, "draws")))


def test_augmentation_reaches_every_shift_and_both_mirrorings():
    x = torch.arange(1.0, 82).reshape(1, 1, 9, 9).expand(20_000, -1, -1, -1)
    out = augment(x, stream(0, "draws"))
    center, right = out[:, 0, 4, 4], out[:, 0, 4, 5]
    kinds = torch.stack([center, right - center], 1).unique(dim=0, return_counts=True)[1]
    assert len(kinds) == 9 * 9 * 2
    # Expected 123 each, standard deviation 11.
    assert kinds.min() > 123 - 5 * 11


def test_an_epoch_visits_every_example_once_with_its_target():
    data = digits()
    batches = TrainingBatches(data, 100, stream(0, "batches"))
    assert len(batches) == 15
    seen = list(batches)
    assert [len(i) for *_, i in seen] == [100] * 14 + [37]
    indices = torch.cat([i for *_, i in seen])
    assert torch.equal(indices.sort().values, torch.arange(1437))
    for inputs, targets, index in seen:
        assert torch.equal(inputs, data.x_train[index])
        assert torch.equal(targets, data.y_train[index])
    assert not torch.equal(indices, torch.cat([i for *_, i in batches]))
    assert [len(i) for *_, i in TrainingBatches(data, 100, stream(0, "b"), drop_last=True)] == [100] * 14


def test_the_generators_state_resumes_the_batches_bit_for_bit():
    data = load_data("random-images:shape=3x8x8,n=90,classes=3")
    generator = stream(0, "batches")
    batches = TrainingBatches(data, 32, generator, augment=True)
    list(batches)
    state = generator.get_state()
    second = list(batches)
    other = torch.Generator()
    other.set_state(state)
    again = list(TrainingBatches(data, 32, other, augment=True))
    assert len(second) == len(again) == 3
    assert all(torch.equal(a, b) for one, two in zip(second, again, strict=True) for a, b in zip(one, two, strict=True))


def test_batches_leave_the_global_stream_alone():
    before = torch.random.get_rng_state()
    list(TrainingBatches(digits(), 500, stream(0, "batches"), augment=True))
    load_data("toy2d", label_noise=0.1)
    load_data("random-images:shape=1x2x2").inputs(torch.arange(3))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fixed_batches_come_in_order_every_time():
    data = digits()
    batches = data.batches("test", 100)
    assert (len(batches), batches.examples) == (4, 360)
    for _ in range(2):
        assert torch.equal(torch.cat([x for x, _ in batches]), data.x_test)
        assert torch.equal(torch.cat([y for _, y in batches]), data.y_test)
    chosen = torch.tensor([5, 900, 3])
    (x0, y0), (x1, y1) = data.batches("train", 2, chosen)
    assert torch.equal(torch.cat([x0, x1]), data.x_train[chosen])
    assert torch.equal(torch.cat([y0, y1]), data.y_train[chosen])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: TrainingBatches(d, 0, stream(0, "b")), "at least 1"),
        (lambda d: TrainingBatches(d, 2000, stream(0, "b"), drop_last=True), "batch size 2000 is over the 1437"),
        (lambda d: TrainingBatches(load_data("toy2d"), 5, stream(0, "b"), augment=True), "features, not images"),
        (lambda d: d.batches("val", 5), "choose train or test"),
        (lambda d: d.batches("test", 0), "at least 1"),
    ],
)
def test_impossible_batches_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(digits())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["digits", "random-images:shape=3x224x224,n=5000", "toy2d"])
def test_data_on_the_gpu_equal_those_on_the_cpu(name):
    data = load_data(name)
    moved = data.to("cuda")
    index = torch.tensor([1, 77, 3])
    assert moved.inputs(index).device.type == "cuda"
    torch.testing.assert_close(moved.inputs(index).cpu(), data.inputs(index), rtol=1e-6, atol=1e-6)
    assert torch.equal(moved.targets(index.cuda()).cpu(), data.targets(index))
    pairs = zip(TrainingBatches(data, 64, stream(0, "b")), TrainingBatches(moved, 64, stream(0, "b")), strict=True)
    for _, (here, there) in zip(range(3), pairs, strict=False):
        assert torch.equal(here[2], there[2].cpu())
        torch.testing.assert_close(there[0].cpu(), here[0], rtol=1e-6, atol=1e-6)
    if len(data.input_shape) == 3:
        x = data.inputs(torch.arange(8))
        assert torch.equal(augment(x.cuda(), stream(0, "a")).cpu(), augment(x, stream(0, "a")))
