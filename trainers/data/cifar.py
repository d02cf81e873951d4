"""CIFAR-10 and CIFAR-100: binary and python version, from their folders or straight from the official archives."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from landscape.archive import require_regular
from landscape.errors import InputError, InputWarning
from landscape.registry import register
from trainers.data import Arrays, Source, restricted_pickle
from trainers.data.files import OFFICIAL, Bounded, corrupt, md5_of, missing, read_file

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Version:
    """One published form of a dataset: `files` maps names to MD5 (None: unpublished), the last is the test set."""

    folder: str
    archive: str
    archive_md5: str
    files: dict[str, str | None]
    labels: tuple[str, ...]
    counts: tuple[int, int]

    @property
    def binary(self) -> bool:
        """Fixed-length records rather than pickles."""
        return next(iter(self.files)).endswith(".bin")


_CIFAR10 = (
    Version(
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        OFFICIAL["cifar10"][0].md5,
        {
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
        },
        ("labels",),
        (10_000, 10_000),
    ),
    Version(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        ("labels",),
        (10_000, 10_000),
    ),
)
_CIFAR100 = (
    Version(
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        OFFICIAL["cifar100"][0].md5,
        {"train.bin": None, "test.bin": None},
        ("coarse_labels", "fine_labels"),
        (50_000, 10_000),
    ),
    Version(
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        ("coarse_labels", "fine_labels"),
        (50_000, 10_000),
    ),
)


@register(
    "cifar10",
    download=(("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
)
def cifar10(source: Source, *, train: int | None = None, test: int | None = None) -> Arrays:
    """CIFAR-10: 50,000 + 10,000 color 32x32 photographs, 10 classes.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.

    Args:
        train: training images, the first of the files; default all.
        test: test images, the first of the file; default all.
    """
    return _first(_load(source, _CIFAR10, classes=10), train, test)


@register(
    "cifar100",
    download=(("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
)
def cifar100(source: Source, *, train: int | None = None, test: int | None = None) -> Arrays:
    """CIFAR-100: 50,000 + 10,000 color 32x32 photographs, 100 (fine) classes.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.

    Args:
        train: training images, the first of the files; default all.
        test: test images, the first of the file; default all.
    """
    return _first(_load(source, _CIFAR100, classes=100), train, test)


def _first(whole: Arrays, train: int | None, test: int | None) -> Arrays:
    for name, wanted, labels in (("train", train, whole.y_train), ("test", test, whole.y_test)):
        if wanted is not None and not 1 <= wanted <= len(labels):
            raise InputError(f"{name}={wanted}: it is a number of images from 1 to {len(labels)}")
    parts = (whole.x_train[:train], whole.y_train[:train], whole.x_test[:test], whole.y_test[:test])
    return Arrays(*parts, classes=whole.classes, augment=whole.augment)


def _load(source: Source, versions: tuple[Version, ...], classes: int) -> Arrays:
    version, contents, where = _find(source, versions)
    parts = []
    for index, (file, md5) in enumerate(version.files.items()):
        path = where / file
        parse = _parse_records if version.binary else _parse_pickle
        images, labels = parse(source.name, path, contents[file], version, md5)
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
            raise corrupt(source.name, path, f"labels are not 0 to {classes - 1}", md5)
        official = version.counts[index == len(version.files) - 1]
        if len(labels) != official:
            text = f"{path} is not the published file: {len(labels)} images, not {official}"
            warnings.warn(InputWarning(text), stacklevel=4)
        elif md5 is not None and md5_of(contents[file]) != md5:
            raise corrupt(source.name, path, "its MD5 is not that of the published file", md5)
        parts.append((images, labels))
    x_train, y_train = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts[:-1], strict=True))
    x_test, y_test = (torch.from_numpy(array.copy()) for array in parts[-1])
    return Arrays(x_train, y_train, x_test, y_test, classes, augment=True)


def _find(source: Source, versions: tuple[Version, ...]) -> tuple[Version, dict[str, bytes], Path]:
    """The first version that is there: folders before archives, binary before python."""
    roots = (source.directory / source.name, source.directory)
    for version in versions:
        for folder in [root / version.folder for root in roots] + [roots[0]]:
            if any((folder / file).exists() for file in version.files):
                return version, _read_folder(source.name, folder, version), folder
    for version in versions:
        for archive in (root / version.archive for root in roots):
            if archive.exists():
                return version, _read_archive(source.name, archive, version), archive
    raise missing(source.name, versions[0].archive, versions[0].archive_md5, source.directory / source.name)


def _read_folder(name: str, folder: Path, version: Version) -> dict[str, bytes]:
    for file, md5 in version.files.items():
        if not (folder / file).exists():
            raise missing(name, file, md5 or "not published", folder)
    return {file: read_file(folder / file) for file in version.files}


def _read_archive(name: str, archive: Path, version: Version) -> dict[str, bytes]:
    """The wanted members, read in one pass and never unpacked to disk."""
    contents: dict[str, bytes] = {}
    try:
        require_regular(archive)
        with gzip.open(archive) as packed, tarfile.open(fileobj=Bounded(packed), mode="r|") as tar:
            for member in tar:
                folder, _, file = member.name.removeprefix("./").rpartition("/")
                wanted = member.isreg() and folder == version.folder and file in version.files
                if wanted and (content := tar.extractfile(member)) is not None:
                    contents[file] = content.read()
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise corrupt(name, archive, str(error), version.archive_md5) from None
    absent = [file for file in version.files if file not in contents]
    if absent:
        raise corrupt(name, archive, f"{version.folder}/{absent[0]} is not in it", version.archive_md5)
    unchecked = [file for file, md5 in version.files.items() if md5 is None]
    record = PIXELS + len(version.labels)
    if unchecked and len(contents[unchecked[0]]) == version.counts[0] * record:
        with archive.open("rb") as stream:
            if hashlib.file_digest(stream, "md5").hexdigest() != version.archive_md5:
                raise corrupt(name, archive, "its MD5 is not that of the published file", version.archive_md5)
    return contents


def _parse_records(
    name: str, path: Path, content: bytes, version: Version, md5: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Records of label bytes (coarse, fine) and 3,072 bytes of pixels: red, green, blue planes, row by row."""
    labels = len(version.labels)
    if not content or len(content) % (PIXELS + labels):
        raise corrupt(name, path, f"{len(content)} bytes are not records of {PIXELS + labels}", md5)
    records = np.frombuffer(content, np.uint8).reshape(-1, PIXELS + labels)
    return records[:, labels:].reshape(-1, 3, 32, 32).copy(), records[:, labels - 1].astype(np.int64)


def _parse_pickle(
    name: str, path: Path, content: bytes, version: Version, md5: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """A dict of `data`, uint8 (n, 3072), and a list of labels; keys are bytes or text."""
    batch = restricted_pickle.loads(content, path)
    if not isinstance(batch, dict):
        raise corrupt(name, path, "the pickle holds no dict", md5)
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, key = batch.get("data"), version.labels[-1]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS:
        raise corrupt(name, path, f"'data' is not a uint8 array of shape (n, {PIXELS})", md5)
    try:
        if not isinstance(batch[key], np.ndarray) and not all(type(v) is int for v in batch[key]):
            raise ValueError  # lists of lists may nest beyond any size
        labels = np.asarray(batch[key])
        if labels.dtype.kind not in "iu" or labels.shape != (len(data),):
            raise ValueError
    except (KeyError, ValueError, TypeError, OverflowError):
        raise corrupt(name, path, f"{key!r} is not a list of {len(data)} integers", md5) from None
    return data.reshape(-1, 3, 32, 32), labels.astype(np.int64)
