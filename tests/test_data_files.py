"""Official files: every published form is read, damaged and hostile ones are refused."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape.errors import InputError
from trainers.data import cifar, files, restricted_pickle
from trainers.datasets import load_data

REAL = Path(os.environ.get("LANDSCAPE_DATA") or Path(__file__).parents[2] / "shared" / "data")
not_published = pytest.mark.filterwarnings("ignore:.*is not the published file")


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
    with pytest.warns(UserWarning, match="train-images.* is not the published file: it holds 20 entries"):
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


def batch(n, classes, seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, 3072)).astype(np.uint8), generator.integers(0, classes, (n, 2)).astype(
        np.uint8
    )


def python2_pickle(data, labels, key=b"labels"):
    """The opcodes that Python 2 and its numpy wrote into the official files."""

    def text(b):
        return b"U" + bytes([len(b)]) + b

    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\0K\1\x87R(K\3"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    shape = b"".join(b"M" + struct.pack("<H", size) for size in data.shape) + b"\x86"
    raw = b"T" + struct.pack("<I", data.nbytes) + data.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"
        + text(b"b")
        + b"\x87R(K\1"
        + shape
        + dtype
        + b"\x89"
        + raw
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\2}(" + text(b"data") + array + text(key) + numbers + text(b"batch_label") + text(b"training") + b"u."


def cifar_files(name, form):
    """{path in the archive: content} for ten images a batch."""
    hundred = name == "cifar100"
    parts = ["train", "test"] if hundred else [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    folder = {
        "binary": ("cifar-10-batches-bin", "cifar-100-binary"),
        "python": ("cifar-10-batches-py", "cifar-100-python"),
    }
    content = {}
    for seed, part in enumerate(parts):
        data, labels = batch(10, 100 if hundred else 10, seed)
        path = f"{folder[form][hundred]}/{part}"
        if form == "binary":
            content[path + ".bin"] = np.concatenate([labels if hundred else labels[:, 1:], data], 1).tobytes()
        else:
            content[path] = python2_pickle(data, labels[:, 1], b"fine_labels" if hundred else b"labels")
    return content


def write_cifar(folder, name, form, packed):
    content = cifar_files(name, form)
    if packed:
        folder.mkdir(parents=True, exist_ok=True)
        archive = f"cifar-{name.removeprefix('cifar')}-{form}.tar.gz"
        with tarfile.open(folder / archive, "w:gz") as tar:
            for path, data in content.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return folder / archive
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder / path


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
    expected = load_data("cifar10", data_dir=tmp_path).sha256
    for seed, part in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        data, labels = batch(10, 10, seed)
        values = {"data": data, "labels": [int(x) for x in labels[:, 1]], b"name": b"\xff"}
        (tmp_path / "cifar-10-batches-py" / part).write_bytes(pickle.dumps(values, protocol=protocol))
    assert load_data("cifar10", data_dir=tmp_path).sha256 == expected


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    return {
        "system": pickle.dumps(Call(os.system, f"touch {marker}")),
        "eval": pickle.dumps({"data": Call(eval, f"open({str(marker)!r}, 'w')")}, protocol=2),
        "open": pickle.dumps(Call(open, str(marker), "w")),
        "getattr": pickle.dumps(Call(getattr, "x", "upper")),
        "partial": pickle.dumps(functools.partial(open, str(marker), "w")),
        "numpy load": b"cnumpy\nload\n(V" + str(marker).encode() + b"\ntR.",
        "ndarray called": b"cnumpy\nndarray\n(I10\ntR.",
        "constructor kept": b"cnumpy\ndtype\n.",
        "itself": b"\x80\x02]q\x00h\x00a.",
        "nested name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__class__\x93.",
        "object array": pickle.dumps(np.array([Call(os.system, f"touch {marker}")], dtype=object)),
    }


@pytest.mark.parametrize("kind", list(hostile(Path("x"))))
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path, kind):
    marker = tmp_path / "it-ran"
    write_cifar(tmp_path, "cifar10", "python", packed=False)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(hostile(marker)[kind])
    with pytest.raises(InputError, match="data_batch_1"):
        load_data("cifar10", data_dir=tmp_path)
    assert not marker.exists()


def test_the_refusal_names_what_the_pickle_asks_for():
    with pytest.raises(InputError, match=r"x was refused: it is a pickle that names .*system.*fetch the official file"):
        restricted_pickle.loads(pickle.dumps(Call(os.system, "true")), "x")


def test_the_stand_ins_of_the_unpickler_have_nothing_to_overwrite():
    for stand_in in restricted_pickle._ALLOWED.values():
        for name in ("changed", "construct"):
            with pytest.raises(AttributeError):
                setattr(stand_in, name, 1)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "f4", ">f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_number_type_come_back(protocol, dtype, order):
    array = np.asarray(rng().integers(0, 2, (3, 4, 2)).astype(dtype), order=order)
    content = {"a": [array, (array[0, 0, 0], 1.5, None)], b"empty": b""}
    loaded = restricted_pickle.loads(pickle.dumps(content, protocol=protocol), "x")
    back, (scalar, number, nothing) = loaded["a"]
    np.testing.assert_array_equal(back, array)
    assert (scalar, number, nothing, loaded[b"empty"]) == (array[0, 0, 0], 1.5, None, b"")


def test_the_state_of_a_type_cannot_smuggle_records_or_change_numpy():
    state = (3, ">", None, None, None, -1, -1, 0)
    assert restricted_pickle.loads(pickle.dumps(np.arange(3, dtype=">i8"), protocol=2), "x").tolist() == [0, 1, 2]
    dtype = restricted_pickle._Dtype("i8")
    dtype.__setstate__(state)
    assert np.dtype("i8").isnative
    with pytest.raises(InputError, match="array of"):
        restricted_pickle.loads(pickle.dumps(np.zeros(2, [("a", "i4")])), "x")
    with pytest.raises(ValueError, match="records"):
        dtype.__setstate__((3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 63))


def test_object_arrays_are_refused():
    with pytest.raises(InputError, match="array of object"):
        restricted_pickle.loads(pickle.dumps(np.array([1, None], dtype=object)), "x")


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


# -- files that unpack beyond any size ---------------------------------------------------------------------------------


def _peak(call):
    """Bytes that Python allocated at most during the call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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

    assert _peak(load) < 1 << 22


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

    assert _peak(load) < 1 << 23


def test_lists_shared_within_a_pickle_are_converted_once():
    shared = [1]
    for _ in range(40):
        shared = [shared] * 10
    start = time.monotonic()
    loaded = restricted_pickle.loads(pickle.dumps(shared, 2), "x")
    assert loaded[0] is loaded[9]
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("container", ["dict", "list of keys", "set", "frozenset"])
def test_keys_that_take_for_ever_to_hash_are_refused(container):
    """Forty tuples of twice the one before: 2^40 steps for a hash, whatever the container."""
    key = b"K\x01\x85q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(40)
    )
    programs = {
        "dict": b"\x80\x04}(" + key + b"K\x01u.",
        "list of keys": b"\x80\x04}" + key + b"K\x01s.",
        "set": b"\x80\x04\x8f(" + key + b"\x90.",
        "frozenset": b"\x80\x04(" + key + b"\x91.",
    }
    with pytest.raises(InputError, match="x is corrupt"):
        restricted_pickle.loads(programs[container], "x")


def test_labels_that_are_nested_lists_are_refused(tmp_path):
    shared = [1]
    for _ in range(40):
        shared = [shared] * 10
    batch = {b"data": np.zeros((10, 3072), np.uint8), b"labels": shared}
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(InputError, match="is no list of 10 integers"):
        load_data("cifar10", data_dir=tmp_path)
