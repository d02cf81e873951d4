"""Anybody's arrays: ``npz:FILE`` with x_train, y_train, x_test, y_test."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from landscape.errors import InputError
from landscape.registry import register
from trainers.data import Arrays, Source

KEYS = ("x_train", "y_train", "x_test", "y_test")
RESIDENT_BYTES = 2 << 30
"""A member larger than this is mapped, not read, where the file holds it uncompressed (``numpy.savez``)."""

_LOCAL_HEADER = struct.Struct("<4s22x2H")


@register("npz")
def npz(source: Source) -> Arrays:
    """npz:FILE, plain arrays x_train, y_train, x_test, y_test.

    Images are uint8 or floating (n, height, width, channels), or (n, height, width) uint8; features floating (n, d);
    labels integers (n,) from 0. Nothing in the file is executed.
    """
    if not source.file:
        raise InputError("npz names no file: write npz:FILE")
    path = Path(source.file).expanduser()
    arrays = _read(path)
    classes = 0
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        _check_examples(path, f"x_{part}", x)
        _check_labels(path, f"y_{part}", y)
        if len(x) != len(y):
            raise InputError(
                f"{path}: x_{part} has {len(x)} examples, y_{part} has {len(y)} labels: they must be equal"
            )
        classes = max(classes, int(y.max()) + 1)
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        shapes = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
        raise InputError(
            f"{path}: an example of x_train has shape {shapes[0]}, of x_test {shapes[1]}: they must be equal"
        )
    x_train, x_test = (_channels_first(arrays[f"x_{part}"]) for part in ("train", "test"))
    y_train, y_test = (torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)) for part in ("train", "test"))
    color = x_train.ndim == 4 and x_train.shape[1] == 3 and x_train.dtype == torch.uint8
    return Arrays(x_train, y_train, x_test, y_test, classes, augment=color)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        absent = [key for key in KEYS if key not in members]
        if absent:
            present = ", ".join(sorted(members)) or "nothing"
            raise InputError(f"{path} lacks {', '.join(absent)}: it holds {present}; needed are {', '.join(KEYS)}")
        with np.load(path, allow_pickle=False) as archive:
            return {key: _member(path, archive, key, members[key]) for key in KEYS}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: write npz:FILE with an existing file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        raise InputError(f"{path} is corrupt or no npz file ({error}): write it with numpy.savez") from None
    except InputError:
        raise
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} holds something else than plain arrays ({reason}): write it with numpy.savez"
        ) from None


def _member(path: Path, archive: np.lib.npyio.NpzFile, key: str, info: zipfile.ZipInfo) -> np.ndarray:
    stored = info.compress_type == zipfile.ZIP_STORED
    array = _map(path, info) if stored and info.file_size > RESIDENT_BYTES else archive[key]
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _map(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """The array as pages of the file: a stored member lies there as it is, after its own header."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        magic, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if magic != b"PK\x03\x04":
            raise zipfile.BadZipFile("a member has no header")
        file.seek(name + extra, 1)
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} is an array of objects")
        if file.tell() + math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise zipfile.BadZipFile(f"{info.filename} is cut off")
        # Copy on write: torch wants writable memory, the file stays as it is.
        return np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C")


def _check_examples(path: Path, key: str, x: np.ndarray) -> None:
    if x.dtype != np.uint8 and x.dtype not in (np.float16, np.float32, np.float64):
        raise InputError(f"{path}: {key} is {x.dtype}: images must be uint8 or floating, features floating")
    if x.ndim not in (2, 4) and not (x.ndim == 3 and x.dtype == np.uint8):
        raise InputError(f"{path}: {key} has shape {x.shape}: images are (n, height, width, channels), features (n, d)")
    if x.size == 0:
        raise InputError(f"{path}: {key} has shape {x.shape}: it is empty")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] > 4:
        raise InputError(f"{path}: {key} has shape {x.shape}, channels first: images are (n, height, width, channels)")


def _check_labels(path: Path, key: str, y: np.ndarray) -> None:
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise InputError(f"{path}: {key} is {y.dtype} of shape {y.shape}: labels are integers of shape (n,)")
    if y.size == 0 or int(y.min()) < 0:
        raise InputError(f"{path}: {key} must hold labels from 0, the smallest is {y.min() if y.size else 'missing'}")


def _channels_first(x: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(x)
    if tensor.ndim == 3:
        return tensor.unsqueeze(1)
    if tensor.ndim == 4:
        tensor = tensor.permute(0, 3, 1, 2)
        return tensor if isinstance(x, np.memmap) else tensor.contiguous()
    return tensor
