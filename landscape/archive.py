"""Zip archives, as torch and NumPy write them: every byte is verified before it is used, and no size is believed."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

from landscape.errors import InputError

DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError, IndexError)
"""What `zipfile` raises on archives that are not whole (RuntimeError: a member marked as encrypted)."""

_PIECE = 1 << 20


def require_regular(path: str | Path) -> None:
    """Raise InputError for what is there but no regular file: a device or a pipe may never end."""
    path = Path(path)
    if path.exists() and not path.is_dir() and not path.is_file():
        raise InputError(f"{path} is not a regular file (a device, a pipe or a socket): give a file")


def verify(path: str | Path) -> None:
    """Read every member of a zip archive once and compare its CRC-32 with the one that the archive holds.

    Readers that map an archive into memory skip this check and take compressed bytes for numbers; about 1 s per 2 GB.

    Raises:
        InputError: a member is damaged, compressed, or the members together are larger than the file.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED for m in members):
                raise InputError(
                    f"{path} is compressed: unpack and zip it again without compression (zip -0), or save it again by "
                    "torch.save(torch.load(path, weights_only=True, mmap=False), path)"
                )
            if sum(m.file_size for m in members) > path.stat().st_size:
                raise zipfile.BadZipFile("its members are larger than the file")
            for member in members:
                _read(archive, member)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"{path} is damaged ({_reason(error)}): use another copy of it") from error


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    try:
        with archive.open(member) as stream:
            # The reader raises at the end of a member whose CRC-32 is not what it should be.
            while stream.read(_PIECE):
                pass
    except (zipfile.BadZipFile, struct.error, EOFError) as error:
        # torch puts all members in a folder that is named after the temporary file that it wrote.
        name = member.filename.partition("/")[2] or member.filename
        raise zipfile.BadZipFile(f"its member {name} is not what was written") from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
