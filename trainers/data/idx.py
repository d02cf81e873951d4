"""MNIST and Fashion-MNIST from their official IDX files, gzipped as published or unpacked."""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from math import prod
from pathlib import Path

import numpy as np
import torch

from landscape.errors import InputError, InputWarning
from landscape.registry import register
from trainers.data import Arrays, Source, data_directory
from trainers.data.files import LARGEST, OFFICIAL, OfficialFile, corrupt, md5_of, missing, read_file

_FOLDERS = {"mnist": ("mnist", "", "MNIST/raw"), "fashion-mnist": ("fashion-mnist", "", "FashionMNIST/raw")}
OFFICIAL_COUNTS = {"train": 60_000, "t10k": 10_000}


@register(
    "mnist",
    small={"train": 2000, "test": 500},
    download=(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/train-labels-idx1-ubyte.gz",
            "d53e105ee54ea40749a09fcbcd1e9432",
        ),
        ("https://ossci-datasets.s3.amazonaws.com/mnist/t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        ("https://ossci-datasets.s3.amazonaws.com/mnist/t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
)
def mnist(source: Source, *, train: int | None = None, test: int | None = None) -> Arrays:
    """MNIST: 60,000 + 10,000 gray 28x28 handwritten digits.

    Source: LeCun, Bottou, Bengio, Haffner 1998.

    Args:
        train: training images, the first of the file; default all.
        test: test images, the first of the file; default all.
    """
    return _load(source, train, test)


@register(
    "fashion-mnist",
    small={"train": 2000, "test": 500},
    download=(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        ),
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz",
            "25c81989df183df01b3e8a0aad5dffbe",
        ),
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-images-idx3-ubyte.gz",
            "bef4ecab320f06d8554ea6380940ec79",
        ),
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-labels-idx1-ubyte.gz",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
)
def fashion_mnist(source: Source, *, train: int | None = None, test: int | None = None) -> Arrays:
    """Fashion-MNIST: 60,000 + 10,000 gray 28x28 images of clothes, 10 classes.

    The files are shuffled: their first images are a random part.
    Source: Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747.

    Args:
        train: training images, the first of the file; default all.
        test: test images, the first of the file; default all.
    """
    return _load(source, train, test)


def _load(source: Source, train: int | None, test: int | None) -> Arrays:
    x_train, y_train, x_test, y_test = (_read(source, _FOLDERS[source.name], file) for file in OFFICIAL[source.name])
    for x, y, part in ((x_train, y_train, "training"), (x_test, y_test, "test")):
        if len(x) != len(y):
            raise InputError(
                f"{source.name}: {len(x)} {part} images but {len(y)} labels: the files do not belong together"
            )
        if len(y) == 0 or y.max() > 9:
            raise InputError(f"{source.name}: the {part} labels are not 0 to 9: replace the files, or use npz:FILE")
    for name, wanted, y in (("train", train, y_train), ("test", test, y_test)):
        if wanted is not None and not 1 <= wanted <= len(y):
            raise InputError(f"{name}={wanted} of {source.name}: it is a number of images from 1 to {len(y)}")
    images = [torch.from_numpy(x[:n].copy()).unsqueeze(1) for x, n in ((x_train, train), (x_test, test))]
    labels = [torch.from_numpy(y[:n].copy()).long() for y, n in ((y_train, train), (y_test, test))]
    return Arrays(images[0], labels[0], images[1], labels[1], classes=10)


def available(name: str, data_dir: str | Path | None = None) -> bool:
    """Whether all files of "mnist" or "fashion-mnist" are there; none is opened."""
    directory = data_directory(data_dir)
    return all(_find(directory, _FOLDERS[name], file) is not None for file in OFFICIAL[name])


def _find(directory: Path, folders: tuple[str, ...], file: OfficialFile) -> Path | None:
    plain = file.name.removesuffix(".gz")
    candidates = [directory / folder / name for folder in folders for name in (file.name, plain)]
    return next((c for c in candidates if c.exists()), None)


def _read(source: Source, folders: tuple[str, ...], file: OfficialFile) -> np.ndarray:
    path = _find(source.directory, folders, file)
    if path is None:
        raise missing(source.name, file.name, file.md5, source.directory / source.name)
    content = read_file(path)
    packed = path.suffix == ".gz"
    try:
        with gzip.open(io.BytesIO(content)) if packed else io.BytesIO(content) as stream:
            return _parse(source.name, path, stream, file, published=md5_of(content) == file.md5 if packed else None)
    except (EOFError, OSError, zlib.error) as error:
        raise corrupt(source.name, path, str(error), file.md5) from None


def _parse(
    name: str, path: Path, stream: gzip.GzipFile | io.BytesIO, file: OfficialFile, published: bool | None
) -> np.ndarray:
    """Checks header and size, and reads no more than they say.

    A gzipped file of the official count must be the published one.
    """
    dimensions = 3 if "images" in file.name else 1
    header = stream.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
        raise corrupt(name, path, f"no IDX header for unsigned bytes in {dimensions} dimensions", file.md5)
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", dimensions, 4))
    if prod(shape) > LARGEST:
        raise corrupt(name, path, f"the shape {shape} is larger than any published file", file.md5)
    # The byte more is the end of a file that is whole, where gzip compares its checksum.
    content = stream.read(prod(shape) + 1)
    if len(content) != prod(shape):
        more = "more than " if len(content) > prod(shape) else ""
        raise corrupt(name, path, f"{more}{min(len(content), prod(shape))} bytes for the shape {shape}", file.md5)
    if published is False:
        if shape[0] == OFFICIAL_COUNTS[file.name.split("-")[0]]:
            raise corrupt(name, path, "its MD5 is not that of the published file", file.md5)
        text = f"{path} is not the published file: it holds {shape[0]} entries"
        warnings.warn(InputWarning(text), stacklevel=6)
    return np.frombuffer(content, np.uint8).reshape(shape).copy()
