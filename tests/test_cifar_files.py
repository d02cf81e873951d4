"""CIFAR from its official files: every published form is read, damaged and hostile ones are refused."""

import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from landscape.errors import InputError, InputWarning
from tests.data_file_cases import batch, not_published, peak_memory, write_cifar
from trainers.data import cifar, files
from trainers.datasets import load_data


@not_published
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_every_published_form_of_cifar_is_read(tmp_path, name, form, packed, nested):
    write_cifar(tmp_path / name if nested else tmp_path, name, form, packed)
    data = load_data(name, data_dir=tmp_path)
    classes = int(name.removeprefix("cifar"))
    batches = [batch(10, classes, seed) for seed in range(6 if classes == 10 else 2)]
    pixels = np.concatenate([b[0] for b in batches[:-1]]).reshape(-1, 3, 32, 32)
    restored = ((data.x_train * data.std + data.mean) * 255).round().to(torch.uint8)
    assert np.array_equal(restored, pixels)
    assert np.array_equal(data.y_train, np.concatenate([b[1][:, 1] for b in batches[:-1]]))
    assert np.array_equal(data.y_test, batches[-1][1][:, 1])
    assert (data.classes, data.augment) == (classes, True)


@not_published
@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_python_3_are_read_in_every_protocol(tmp_path, protocol):
    write_cifar(tmp_path, "cifar10", "python", packed=False)
    with pytest.warns(InputWarning, match="data_batch_1 is not the published file: 10 images, not 10000"):
        expected = load_data("cifar10", data_dir=tmp_path).sha256
    for seed, part in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        data, labels = batch(10, 10, seed)
        values = {"data": data, "labels": [int(x) for x in labels[:, 1]], b"name": b"\xff"}
        (tmp_path / "cifar-10-batches-py" / part).write_bytes(pickle.dumps(values, protocol=protocol))
    assert load_data("cifar10", data_dir=tmp_path).sha256 == expected


@not_published
@pytest.mark.parametrize("form", ["binary", "python"])
def test_a_damaged_cifar_file_is_named(tmp_path, form):
    last = write_cifar(tmp_path, "cifar10", form, packed=False)
    content = last.read_bytes()
    checksum = {"binary": "803d5f7f4d78ea53de84dbe85f74fb6d", "python": "40351d587109b95175f43aff81a1287e"}[form]
    for bad in (content[:-1], b"", content[:100]):
        last.write_bytes(bad)
        with pytest.raises(InputError, match=f"{last.name} .*corrupt|{last.name} is corrupt"):
            load_data("cifar10", data_dir=tmp_path)
    last.unlink()
    with pytest.raises(InputError, match=f"{last.name} \\(MD5 {checksum}\\) is missing"):
        load_data("cifar10", data_dir=tmp_path)


@not_published
def test_a_batch_of_the_official_size_must_be_the_official_one(tmp_path, monkeypatch):
    last = write_cifar(tmp_path, "cifar10", "binary", packed=False)
    checksums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in last.parent.iterdir()}
    version = cifar._CIFAR10[0]
    official = type(version)(version.folder, version.archive, version.archive_md5, checksums, version.labels, (10, 10))
    monkeypatch.setattr(cifar, "_CIFAR10", (official,))
    load_data("cifar10", data_dir=tmp_path)
    content = bytearray(last.read_bytes())
    content[50] ^= 1
    last.write_bytes(content)
    with pytest.raises(InputError, match=f"its MD5 is not that.*{checksums[last.name]}.*data fetch cifar10"):
        load_data("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("form", ["binary", "python"])
def test_a_damaged_archive_is_refused(tmp_path, form):
    archive = write_cifar(tmp_path, "cifar100", form, packed=True)
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"cifar-100-.*\.tar\.gz is corrupt .*MD5"):
        load_data("cifar100", data_dir=tmp_path)


def test_an_archive_without_the_files_is_refused(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(InputError, match=r"data_batch_1\.bin is not in it"):
        load_data("cifar10", data_dir=tmp_path)


def test_missing_cifar_names_the_archive_and_the_folder(tmp_path):
    with pytest.raises(InputError, match=r"cifar-10-binary.tar.gz .*c32a1d4ab5d03f1284b67883e8d87530.*cifar10, or run"):
        load_data("cifar10", data_dir=tmp_path / "nowhere")


def test_an_archive_is_unpacked_no_further_than_any_published_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 1 << 20)
    (tmp_path / "cifar10").mkdir()
    with tarfile.open(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.size = 1 << 26
        tar.addfile(info, io.BytesIO(bytes(info.size)))

    def load():
        with pytest.raises(InputError, match="unpacks to more than"):
            load_data("cifar10", data_dir=tmp_path)

    assert peak_memory(load) < 1 << 23


def test_labels_that_are_nested_lists_are_refused(tmp_path):
    shared = [1]
    for _ in range(40):
        shared = [shared] * 10
    batch = {b"data": np.zeros((10, 3072), np.uint8), b"labels": shared}
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(InputError, match="is not a list of 10 integers"):
        load_data("cifar10", data_dir=tmp_path)
