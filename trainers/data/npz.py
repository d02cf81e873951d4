"""Anybody's arrays: ``npz:FILE`` with x_train, y_train, x_test, y_test."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy

from landscape.archive import require_regular
from landscape.errors import InputError
from landscape.registry import register
from trainers.data import Arrays, Source

KEYS = ("x_train", "y_train", "x_test", "y_test")
RESIDENT_BYTES = 2 << 30
"""A member larger than this is mapped, not read, where the file holds it uncompressed (``numpy.savez``)."""

DEFLATE_RATIO = 1032
"""No byte of a deflated stream stands for more."""

_PIECE = 1 << 20
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
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
        absent = [key for key in KEYS if key not in members]
        if absent:
            present = ", ".join(sorted(members)) or "nothing"
            raise InputError(f"{path} lacks {', '.join(absent)}: it holds {present}; needed are {', '.join(KEYS)}")
        with zipfile.ZipFile(path) as archive:
            return {key: _member(path, archive, members[key]) for key in KEYS}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: write npz:FILE with an existing file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"{path} is corrupt or no npz file ({error}): write it with numpy.savez") from None
    except InputError:
        raise
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path} holds something else than plain arrays ({reason}): write it with numpy.savez"
        ) from None


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """The array of a member, where its header promises what the member holds, and its CRC-32 is right."""
    stored = info.compress_type == zipfile.ZIP_STORED
    if info.file_size > (info.compress_size if stored else 64 + DEFLATE_RATIO * info.compress_size):
        raise zipfile.BadZipFile(f"{info.filename} claims more bytes than it can hold")
    with archive.open(info) as stream:
        shape, fortran, dtype = _header(stream)
        start, size = stream.tell(), math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{info.filename} is an array of objects")
        if start + size != info.file_size:
            raise zipfile.BadZipFile(f"{info.filename} has {info.file_size - start} bytes for the shape {shape}")
        if stored and size > RESIDENT_BYTES:
            while stream.read(_PIECE):  # raises at the end where the CRC-32 is another
                pass
            array = _map(path, info, start, shape, fortran, dtype)
        else:
            content = bytearray(size)
            with memoryview(content) as view:
                at = 0
                while piece := stream.read(min(_PIECE, size - at)):
                    view[at : at + len(piece)] = piece
                    at += len(piece)
            if at < size or stream.read(1):
                raise zipfile.BadZipFile(f"{info.filename} is cut off")
            array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)


def _map(
    path: Path, info: zipfile.ZipInfo, start: int, shape: tuple[int, ...], fortran: bool, dtype: np.dtype
) -> np.ndarray:
    """The array as pages of the file: a stored member lies there as it is, after its local header."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        _, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    # Copy on write: torch wants writable memory, the file stays as it is.
    at = info.header_offset + _LOCAL_HEADER.size + name + extra + start
    return np.memmap(path, dtype, "c", at, shape, "F" if fortran else "C")


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
