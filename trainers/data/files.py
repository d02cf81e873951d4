"""The official files: where they are published, their checksums, and how they are fetched."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.archive import require_regular
from landscape.errors import InputError, unknown
from landscape.progress import Bar
from trainers.data import DATA, data_directory

TIMEOUT_SECONDS = 30
HTTP_PART, HTTP_NOTHING_LEFT = 206, 416
_MEGABYTE = 1e6


@dataclass(frozen=True)
class OfficialFile:
    """A published file: its address and MD5 as its authors give it."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rsplit("/", 1)[1]


OFFICIAL = {
    name: tuple(OfficialFile(url, md5) for url, md5 in entry.facts["download"])
    for name, entry in DATA.entries.items()
    if "download" in entry.facts
}
"""The files of every data set that is fetched, as its registration lists them."""


LARGEST = 1 << 29
"""Bytes of any file of a published data set, packed or unpacked; the largest has 186 MB."""


def read_file(path: Path) -> bytes:
    """All bytes of `path`; what the system refuses (a directory, no permission) is an InputError, so is a device."""
    require_regular(path)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} has {path.stat().st_size} bytes: no published file is larger than {LARGEST}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


class Bounded(io.RawIOBase):
    """An unpacked stream that ends in an error after `LARGEST` bytes: it may be a thousand times the packed one."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self._left = stream, LARGEST

    def read(self, size: int = -1) -> bytes:
        """At most that many bytes."""
        content = self._stream.read(size if 0 <= size <= self._left else self._left + 1)
        self._left -= len(content)
        if self._left < 0:
            raise OSError(f"it unpacks to more than {LARGEST} bytes")
        return content

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True


def md5_of(content: bytes) -> str:
    """MD5 as the authors publish it: against damage in transit, not against an attacker."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def missing(name: str, file: str, md5: str, folder: Path) -> InputError:
    """The error for a file that is nowhere."""
    return InputError(
        f"{name}: {file} (MD5 {md5}) is missing: put it into {folder}, or run `landscape data fetch {name}`, or say "
        "where it is with --data-dir or LANDSCAPE_DATA"
    )


def corrupt(name: str, path: Path | str, why: str, md5: str | None) -> InputError:
    """The error for a file that is not what it should be."""
    expected = f"expected MD5 {md5}; " if md5 else ""
    return InputError(
        f"{name}: {path} is corrupt ({why}): {expected}delete it and run `landscape data fetch {name}`, or replace it"
    )


def fetch(name: str, data_dir: str | Path | None = None) -> list[Path]:
    """Download the official files of `name` into ``data_dir/name`` and check them.

    Files that are there and whole are not fetched again; an interrupted download goes on where it stopped. A file gets
    its name only when its checksum is right.

    Raises:
        InputError: for a dataset that is not downloaded, or a download that fails: it says which file to put where.
    """
    if name not in OFFICIAL:
        if name in DATA:
            raise InputError(f"{name!r} needs no download: fetch one of {', '.join(sorted(OFFICIAL))}")
        raise unknown("dataset to fetch", name, OFFICIAL)
    folder = data_directory(data_dir) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}: choose another --data-dir") from None
    return [_fetch_file(name, file, folder) for file in OFFICIAL[name]]


def _fetch_file(name: str, file: OfficialFile, folder: Path) -> Path:
    import pooch
    import requests

    beside = folder.parent / file.name
    if beside.exists() and md5_of(read_file(beside)) == file.md5:
        return beside
    pooch.get_logger().setLevel("ERROR")
    try:
        path = pooch.retrieve(
            file.url,
            f"md5:{file.md5}",
            fname=file.name,
            path=folder,
            downloader=_Resuming(folder / f"{file.name}.part"),
        )
    except (requests.RequestException, OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if nothing was saved
        raise InputError(
            f"could not fetch {file.url} ({_reason(error)}): download it elsewhere, check that its MD5 is {file.md5} "
            f"and put it into {folder}"
        ) from None
    return Path(path)


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, requests.ConnectionError):
        return "no connection to the server"
    return (str(error).splitlines() or [""])[0][:200]


class _Resuming:
    """A pooch downloader that keeps what it has in `part` and asks the server for the rest."""

    def __init__(self, part: Path) -> None:
        self.part = part

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        """Download `url`, going on from `part`; then hand the file over for its check."""
        import requests

        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            if response.status_code != HTTP_NOTHING_LEFT:
                response.raise_for_status()
                self._append(response, have if response.status_code == HTTP_PART else 0)
        shutil.move(self.part, output_file)

    def _append(self, response: Any, have: int) -> None:
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            self.part.open("r+b" if have else "wb") as out,
            Bar(f"{self.part.stem} (MB)", total and total / _MEGABYTE, done=have / _MEGABYTE) as bar,
        ):
            out.seek(have)
            for chunk in response.iter_content(1 << 18):
                out.write(chunk)
                bar.advance(len(chunk) / _MEGABYTE)
            if total is not None and out.tell() < total:
                raise OSError(f"the connection ended after {out.tell()} of {total} bytes; fetch again to go on")
