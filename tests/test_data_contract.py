"""What every registered data set must keep; a new file in trainers/data is tested at once."""

from __future__ import annotations

import json

import pytest
import torch
from data_form_cases import WRITE
from torch import Tensor

from landscape.errors import InputError
from trainers.data import DATA
from trainers.datasets import Data, load_data
from trainers.names import FILE_PREFIXES


@pytest.fixture(scope="module", params=list(DATA))
def data(request, tmp_path_factory) -> Data:
    """The set in its small configuration; files are written here, downloads are skipped where absent."""
    name, entry = request.param, DATA.entry(request.param)
    if "file" in entry.facts:
        path = tmp_path_factory.mktemp("files") / "arrays"
        WRITE[name](path)
        name = f"{name}:{path}"
    try:
        return load_data(name, **entry.facts.get("small", {}))
    except InputError as error:
        absent = "download" in entry.facts and " is missing: " in str(error)
        if absent or " needs tokenizers: " in str(error):
            pytest.skip(str(error))
        raise


def same(one: Data, other: Data) -> bool:
    pairs = [(getattr(one, k), getattr(other, k)) for k in ("x_train", "x_test", "y_train", "y_test", "mean", "std")]
    return one.sha256 == other.sha256 and all(torch.equal(a, b) for a, b in pairs)


def test_its_parts_have_the_shapes_and_types_of_their_kind(data):
    assert len(data.input_shape) in (1, 3)
    for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        assert x.shape == (data.size(split), *data.input_shape)
        assert y.shape == (x.shape if data.kind[1] == "next tokens" else x.shape[:1])
        assert (x.dtype, y.dtype) == (torch.float32 if data.vocabulary is None else torch.int64, torch.int64)
        assert x.isfinite().all()
        assert data.vocabulary is None or 0 <= x.min() <= x.max() < data.vocabulary
        ignored = y == -100 if data.kind[1] == "next tokens" else torch.zeros_like(y, dtype=torch.bool)
        assert not ignored.reshape(len(y), -1).all(1).any()
        assert y[~ignored].min() >= 0
        assert y.max() < data.classes


def test_inputs_are_standardized_over_the_training_set(data):
    if data.vocabulary is not None:
        pytest.skip("tokens stay as they are")
    axes = (0, 2, 3) if data.x_train.ndim == 4 else (0,)
    x = data.x_train.double()
    # Moments that are known without looking hold for the distribution: 4 standard errors of a mean, generous for std.
    tolerance = 1e-5 if isinstance(data.stored_train, Tensor) else 4 / (x.numel() / x.shape[1]) ** 0.5
    assert data.mean.shape == data.std.shape == ((len(x[0]), 1, 1) if x.ndim == 4 else x[0].shape)
    assert x.mean(axes).abs().max() <= tolerance
    assert (x.std(axes, correction=0) - 1).abs().max() <= tolerance


def test_its_name_and_arguments_as_a_checkpoint_keeps_them_give_it_again(data):
    assert same(data, load_data(data.name, **json.loads(json.dumps(data.arguments))))


def test_one_example_is_the_same_alone_in_a_batch_and_at_other_places(data):
    order = torch.tensor([3, 0, 3])
    assert torch.equal(data.inputs(order), data.x_train[order])
    assert torch.equal(data.targets(order), data.y_train[order])
    batches = list(data.batches("test", 7))
    assert torch.equal(torch.cat([x for x, _ in batches]), data.x_test)
    assert torch.equal(torch.cat([y for _, y in batches]), data.y_test)


def test_its_hash_says_what_was_trained_on(data):
    assert len(bytes.fromhex(data.sha256)) == 32
    if data.kind[1] == "next tokens":
        with pytest.raises(InputError, match="has next tokens"):
            load_data(data.name, **{**data.arguments, "label_noise": 0.3})
        return
    noisy = load_data(data.name, **{**data.arguments, "label_noise": 0.3})
    assert noisy.sha256 != data.sha256
    assert (noisy.y_train != data.y_train).sum() == round(0.3 * data.size("train"))
    assert torch.equal(noisy.x_train, data.x_train)
    assert torch.equal(noisy.y_test, data.y_test)


def test_training_and_test_examples_are_not_the_same(data):
    seen = {x.numpy().tobytes() for x in data.x_train}
    shared = sum(x.numpy().tobytes() in seen for x in data.x_test)
    assert shared <= 0.01 * data.size("test")


def test_it_says_what_it_is(data):
    entry = DATA.entry(data.name.partition(":")[0])
    assert entry.summary
    assert set(entry.facts) <= {"small", "download", "file"}


def test_the_prefixes_of_files_are_those_of_the_registry():
    assert set(FILE_PREFIXES) == {f"{entry.name}:" for entry in DATA.entries.values() if "file" in entry.facts}
