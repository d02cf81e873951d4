"""MNIST and Fashion-MNIST from their official files: every published form is read, damaged ones are refused."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape.errors import InputError, InputWarning
from tests.data_file_cases import not_published, peak_memory
from trainers.datasets import load_data

REAL = Path(os.environ.get("LANDSCAPE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def rng():
    return np.random.default_rng(0)


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, zipped=True, n=20):
    folder.mkdir(parents=True, exist_ok=True)
    content = {}
    for part, count in (("train", n), ("t10k", 8)):
        content[part] = rng().integers(0, 256, (count, 28, 28)).astype(np.uint8), rng().integers(0, 10, count, np.uint8)
        for name, array in zip((f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"), content[part], strict=False):
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    return content


@not_published
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("folder", ["", "mnist"])
def test_idx_files_are_read_zipped_or_not_from_either_folder(tmp_path, monkeypatch, zipped, folder):
    content = write_mnist(tmp_path / folder, zipped)
    data = load_data("mnist", data_dir=tmp_path)
    pixels = ((data.x_train * data.std + data.mean) * 255).round().to(torch.uint8)
    assert np.array_equal(pixels[:, 0], content["train"][0])
    assert np.array_equal(data.y_test, content["t10k"][1])
    assert data.arguments["data_dir"] == str(tmp_path)
    monkeypatch.setenv("LANDSCAPE_DATA", str(tmp_path))
    assert load_data("mnist").sha256 == data.sha256
    assert "data_dir" not in load_data("mnist").arguments


@not_published
def test_idx_files_of_another_content_are_said_to_be_so(tmp_path):
    write_mnist(tmp_path)
    with pytest.warns(InputWarning, match="train-images.* is not the published file: it holds 20 entries"):
        load_data("mnist", data_dir=tmp_path)


@not_published
@pytest.mark.parametrize("damage", ["cut", "flipped", "no zip", "header", "short", "count", "missing", "directory"])
def test_a_damaged_idx_file_is_named_with_its_checksum(tmp_path, damage):
    write_mnist(tmp_path / "mnist")
    path = tmp_path / "mnist" / "train-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    plain = gzip.decompress(content)
    flipped = bytearray(content)
    flipped[-6] ^= 1
    path.unlink()
    bad = {
        "cut": content[:-9],
        "flipped": bytes(flipped),
        "no zip": plain,
        "header": gzip.compress(b"\0\0\x0d\1" + plain[4:]),
        "short": gzip.compress(plain[:-1]),
        "count": gzip.compress(idx(np.zeros(60_000, np.uint8))),
    }
    if damage == "directory":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(bad[damage])
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\.gz") as error:
        load_data("mnist", data_dir=tmp_path)
    if damage != "directory":
        assert "d53e105ee54ea40749a09fcbcd1e9432" in str(error.value)
        assert "landscape data fetch mnist" in str(error.value)
    if damage == "missing":
        assert str(tmp_path / "mnist") in str(error.value)


@not_published
def test_images_and_labels_must_belong_together(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(19, np.uint8))))
    with pytest.raises(InputError, match="20 training images but 19 labels"):
        load_data("mnist", data_dir=tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.full(20, 10, np.uint8))))
    with pytest.raises(InputError, match="labels are not 0 to 9"):
        load_data("mnist", data_dir=tmp_path)


def test_the_official_fashion_mnist():
    if not (REAL / "fashion-mnist").is_dir():
        pytest.skip("Fashion-MNIST is not at hand: set LANDSCAPE_DATA")
    data = load_data("fashion-mnist", data_dir=REAL)
    assert (data.size("train"), data.size("test"), data.input_shape) == (60_000, 10_000, (1, 28, 28))
    assert torch.bincount(data.y_train).tolist() == [6000] * 10
    # Published moments (torchvision's examples): .2860 and .3530.
    torch.testing.assert_close(data.mean.item(), 0.2860, rtol=0, atol=5e-5)
    torch.testing.assert_close(data.std.item(), 0.3530, rtol=0, atol=5e-5)
    assert data.stored_train.dtype == torch.uint8


@not_published
def test_a_part_of_the_images_are_the_first_ones(tmp_path):
    write_mnist(tmp_path)
    whole, part = load_data("mnist", data_dir=tmp_path), load_data("mnist:train=7,test=3", data_dir=tmp_path)
    assert (part.size("train"), part.size("test")) == (7, 3)
    assert torch.equal(part.y_train, whole.y_train[:7])
    assert torch.equal(part.y_test, whole.y_test[:3])
    pixels = [data.x_test[:3] * data.std + data.mean for data in (whole, part)]
    torch.testing.assert_close(pixels[1], pixels[0], rtol=0, atol=1e-6)  # float32: standardized with other moments
    torch.testing.assert_close(part.x_train.mean().item(), 0.0, rtol=0, atol=1e-6)
    assert load_data(part.name, **part.arguments).sha256 == part.sha256
    for argument, size in (("train=21", 20), ("train=0", 20), ("test=-1", 8)):
        with pytest.raises(InputError, match=f"from 1 to {size}"):
            load_data(f"mnist:{argument}", data_dir=tmp_path)


@pytest.mark.parametrize("shape", [(1, 1, 1), (4000, 1000, 1000), (2**32 - 1,) * 3])
def test_a_gzip_stream_is_read_no_further_than_its_header_says(tmp_path, shape):
    write_mnist(tmp_path / "mnist")
    with gzip.open(tmp_path / "mnist" / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as stream:
        stream.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape))
        for _ in range(16):
            stream.write(bytes(1 << 22))

    def load():
        with pytest.raises(InputError, match="train-images-idx3-ubyte.gz is corrupt"):
            load_data("mnist", data_dir=tmp_path)

    assert peak_memory(load) < 1 << 22
