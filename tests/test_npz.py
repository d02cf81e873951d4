"""Arrays from npz files: standardization, storage, hash, and what is refused."""

from __future__ import annotations

import io
import os
import random
import zipfile

import numpy as np
import pytest
import torch

from landscape.errors import InputError
from trainers import datasets
from trainers.data import fingerprint, npz, standardization
from trainers.datasets import load_data


def rng():
    return np.random.default_rng(0)


def arrays(shape=(7, 5, 3), n=30, dtype=np.uint8):
    x = rng().integers(0, 256, (n + 10, *shape)).astype(dtype)
    y = rng().integers(0, 4, n + 10)
    y[:4] = range(4)
    return {"x_train": x[:n], "y_train": y[:n], "x_test": x[n:], "y_test": y[n:]}


def save_npz(path, save=np.savez, **changes):
    content = {**arrays(), **changes}
    save(path, **{key: value for key, value in content.items() if value is not None})
    return content


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_images_become_standardized_channels_first(tmp_path, save):
    content = save_npz(tmp_path / "a.npz", save)
    data = load_data(f"npz:{tmp_path / 'a.npz'}")
    x = content["x_train"].astype(np.float64) / 255
    mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))
    np.testing.assert_allclose(data.mean.flatten(), mean, rtol=1e-6)
    np.testing.assert_allclose(data.std.flatten(), std, rtol=1e-6)
    expected = ((content["x_test"] / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(data.x_test, expected, rtol=1e-5, atol=1e-5)  # float32 arithmetic
    assert (data.classes, data.augment, data.input_shape) == (4, True, (3, 7, 5))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_npz_features_and_a_constant_one(tmp_path, dtype):
    content = arrays((6,), dtype=dtype)
    content["x_train"][:, 2] = 0.1
    content["x_test"][:, 2] = 0.3
    np.savez(tmp_path / "a.npz", **content)
    data = load_data(f"npz:{tmp_path / 'a.npz'}")
    others = [0, 1, 3, 4, 5]
    x = content["x_train"].astype(np.float64)[:, others]
    np.testing.assert_allclose(data.x_train[:, others], (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-5)
    assert data.std[2] == 1
    np.testing.assert_allclose(data.x_test[:, 2], 0.2, rtol=2e-3)  # half precision of the stored .1 and .3
    assert data.augment is False


def test_bytes_kept_and_bytes_standardized_at_once_give_the_same_bits(tmp_path, monkeypatch):
    save_npz(tmp_path / "a.npz")
    whole = load_data(f"npz:{tmp_path / 'a.npz'}")
    monkeypatch.setattr(datasets, "STANDARDIZED_BYTES", 0)
    kept = load_data(f"npz:{tmp_path / 'a.npz'}")
    assert (whole.stored_train.dtype, kept.stored_train.dtype) == (torch.float32, torch.uint8)
    index = torch.tensor([3, 0, 29])
    for split in ("train", "test"):
        assert torch.equal(whole.inputs(index % whole.size(split), split), kept.inputs(index % kept.size(split), split))
    assert torch.equal(whole.x_train, kept.x_train)
    assert whole.sha256 == kept.sha256


@pytest.mark.parametrize("shape", [(7, 5, 3), (6,)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_members_over_the_budget_are_mapped_and_equal(tmp_path, monkeypatch, shape, order):
    content = arrays(shape, dtype=np.float32)
    np.savez(tmp_path / "a.npz", **{key: np.asarray(value, order=order) for key, value in content.items()})
    whole = load_data(f"npz:{tmp_path / 'a.npz'}")
    monkeypatch.setattr(npz, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(datasets, "STANDARDIZED_BYTES", 0)
    monkeypatch.setattr(standardization, "CHUNK_BYTES", 1000)
    opened = []
    original = npz._map
    monkeypatch.setattr(npz, "_map", lambda *a: opened.append(a) or original(*a))
    mapped = load_data(f"npz:{tmp_path / 'a.npz'}")
    assert len(opened) == 4
    assert mapped.sha256 == whole.sha256
    # Sums in another order.
    torch.testing.assert_close(mapped.x_train, whole.x_train, rtol=1e-5, atol=1e-6)
    moved = mapped.to("meta", budget=0)
    assert (moved.stored_train.device.type, moved.device.type) == ("cpu", "meta")
    assert moved.inputs(torch.tensor([1, 2])).shape == (2, *whole.input_shape)
    assert mapped.to("meta").stored_train.device.type == "meta"


def test_the_hash_of_large_arrays_sees_blocks_over_all_of_them(monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE_BYTES", 1 << 12)
    monkeypatch.setattr(fingerprint, "BLOCKS", 8)
    x = torch.arange(100_000).reshape(10_000, 10)
    before = fingerprint.fingerprint(x)
    assert before == fingerprint.fingerprint(x.clone())
    for row in (0, 9_999):
        changed = x.clone()
        changed[row, 3] += 1
        assert fingerprint.fingerprint(changed) != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y_test": None},
            "holds x_test and lacks y_test: both are needed; it holds x_test, .* --data-arg y_test=NAME",
        ),
        (
            {"x_train": None, "x_test": None, "y_train": None, "y_test": None, "images": np.zeros(3)},
            "it holds images; say which",
        ),
        ({"x_train": np.zeros((30, 7, 5, 3), np.int32)}, "x_train is int32: images must be uint8 or floating"),
        ({"x_train": np.zeros((30, 7, 5, 3), complex)}, "x_train is complex128"),
        ({"x_train": np.zeros((30, 7, 4, 3), np.uint8)}, "must be equal"),
        ({"x_train": np.zeros((30, 7, 5), np.float32)}, "has shape \\(30, 7, 5\\)"),
        ({"x_train": np.full((30, 7, 5, 3), np.nan, np.float32)}, "x_train holds NaN"),
        ({"x_test": np.full((10, 7, 5, 3), np.inf, np.float32)}, "x_test holds NaN or infinity"),
        ({"y_train": np.zeros(29, np.int64)}, "x_train has 30 examples, y_train has 29 labels"),
        ({"y_train": np.zeros(30)}, "y_train is float64"),
        ({"y_train": np.zeros((30, 2), np.int64)}, "labels are integers of shape \\(n,\\)"),
        ({"y_train": np.eye(4)[np.arange(30) % 4]}, "these are one-hot, y.argmax\\(1\\) are their labels"),
        ({"y_train": np.r_[np.arange(28) % 4, -1, -100]}, "the smallest is -100: 2 of 30 examples have no label"),
        ({"x_train": np.zeros((0, 7, 5, 3), np.uint8)}, "it is empty"),
        ({"y_train": np.array([None] * 30)}, "something else than plain arrays"),
    ],
)
def test_npz_arrays_that_do_not_fit_are_refused(tmp_path, changes, message):
    save_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(InputError, match=message):
        load_data(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "directory", "flipped"])
def test_a_damaged_npz_is_refused(tmp_path, damage):
    path = tmp_path / "a.npz"
    save_npz(path)
    content = bytearray(path.read_bytes())
    if damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        content[600] ^= 255
        path.write_bytes({"empty": b"", "text": b"x,y\n1,2\n", "cut": content[:-900], "flipped": content}[damage])
    with pytest.raises(InputError, match=r"a\.npz"):
        load_data(f"npz:{path}")


def test_data_are_rebuilt_from_name_and_arguments(tmp_path):
    save_npz(tmp_path / "a.npz")
    for data in (
        load_data("toy2d:variance=15", n=50, seed=3, label_noise=0.2),
        load_data("random-images:shape=1x4x4,n=9"),
        load_data(f"npz:{tmp_path / 'a.npz'}"),
    ):
        again = load_data(data.name, **data.arguments)
        assert torch.equal(again.x_train, data.x_train)
        assert torch.equal(again.y_train, data.y_train)
        assert again.sha256 == data.sha256
        assert all(isinstance(v, int | float | str | tuple | None) for v in data.arguments.values())
    assert load_data("toy2d", n=50).sha256 != load_data("toy2d", n=50, seed=1).sha256


def _array_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _forged(path, content, method=zipfile.ZIP_STORED, suffix=".npy"):
    with zipfile.ZipFile(path, "w", method) as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(key + suffix, content)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (b"hello", ".npy"),
        (b"hello", ""),
        (_array_bytes(np.zeros((4, 8, 8), "f4"))[:200], ".npy"),
        (_array_bytes(np.zeros(4))[:100], ".npy"),
        (_array_bytes(np.zeros(4)) + b"more", ".npy"),
        (_array_bytes(np.zeros(4)).replace(b"(4,), }            ", b"(10000000000000,), }"), ".npy"),
        (_array_bytes(np.zeros(4)).replace(b"(4,)", b"4** "), ".npy"),
        (b"", ".npy"),
    ],
)
def test_members_that_are_no_arrays_are_one_line(tmp_path, content, suffix, method):
    _forged(tmp_path / "a.npz", content, method, suffix)
    with pytest.raises(InputError, match="a.npz") as raised:
        load_data(f"npz:{tmp_path / 'a.npz'}")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("resident", [0, 2 << 30])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_damaged_byte_of_a_member_is_noticed(tmp_path, monkeypatch, save, resident):
    monkeypatch.setattr(npz, "RESIDENT_BYTES", resident)
    save_npz(tmp_path / "whole.npz", save)
    raw, path = (tmp_path / "whole.npz").read_bytes(), tmp_path / "a.npz"
    whole, draw = load_data(f"npz:{tmp_path / 'whole.npz'}").sha256, random.Random(0)
    refused = 0
    for _ in range(100):
        changed = bytearray(raw)
        changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            assert load_data(f"npz:{path}").sha256 == whole
        except InputError as error:
            refused += str(error).isprintable()
    assert refused > 80


@pytest.mark.parametrize("path", ["/dev/zero", "pipe"])
def test_a_device_or_a_pipe_is_not_read(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(InputError, match="not a regular file"):
        load_data(f"npz:{path}")
