"""Small files in the published forms of CIFAR, and what the tests of data files share."""

import io
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest

not_published = pytest.mark.filterwarnings("ignore:.*is not the published file")


def peak_memory(call):
    """Bytes that Python allocated at most during the call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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
