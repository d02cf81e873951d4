"""Anybody's arrays in a file of NumPy: ``npz:FILE``."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from landscape.errors import InputError
from landscape.registry import register
from trainers.data import Arrays, Source
from trainers.data.forms import Form, file_of, require_parts

RESIDENT_BYTES = 2 << 30
"""A member larger than this is mapped, not read, where the file holds it uncompressed (``numpy.savez``)."""

DEFLATE_RATIO = 1032
"""No byte of a deflated stream stands for more."""

_PIECE = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22x2H")


@register("npz", file="FILE", options="forms.Form")
def npz(source: Source, **options: Any) -> Arrays:
    """npz:FILE, plain arrays x_train, y_train, x_test, y_test; one of the two parts may be absent.

    Images are uint8 or floating (n, height, width, channels), channels first where the shape leaves no doubt, or
    (n, height, width) uint8; features floating (n, d); labels integers (n,) or (n, 1) from 0. Nothing in the file is
    executed.
    """
    path, form = file_of(source), Form(**options)
    return form.arrays(path, _read(path, form))


def _read(path: Path, form: Form) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
        require_parts(path, form, members, ", ".join(sorted(members)))
        with zipfile.ZipFile(path) as archive:
            return {key: _member(path, archive, members[key]) for key in form.names if key in members}
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
