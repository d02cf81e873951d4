"""The child process in which HDF5 files are read that this process has not written itself; one for all of them."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from landscape.results import hdf5_contents
from landscape.results.hdf5_contents import Contents, ForeignContent

_lock = threading.Lock()
_child: subprocess.Popen[bytes] | None = None
_owner = 0


def contents(image: bytes) -> Contents:
    """See `hdf5_contents.contents`; about 0.2 s the first time.

    Raises:
        ForeignContent: as there; its message is empty where the file is damaged, or reading it took too long or too
            much memory.
    """
    return _asked(None, image)


def arrays(image: bytes, names: Sequence[str]) -> Contents:
    """See `hdf5_contents.arrays`.

    Raises:
        ForeignContent: as `contents`.
    """
    return _asked(list(names), image)


def _asked(names: list[str] | None, image: bytes) -> Contents:
    with _lock:
        answer = _ask(json.dumps(names).encode(), image)
    if answer is None or answer[:1] != b"+":
        raise ForeignContent("" if answer is None else answer[1:].decode())
    return hdf5_contents.unpack(answer[1:])


def _ask(names: bytes, image: bytes) -> bytes | None:
    child = _running()
    assert child.stdin is not None
    assert child.stdout is not None
    answer = None
    try:
        hdf5_contents.send(child.stdin, names)
        hdf5_contents.send(child.stdin, image)
        answer = hdf5_contents.receive(child.stdout)
    except BrokenPipeError:
        pass
    finally:
        if answer is None:  # it ended within the library, or waiting was interrupted
            _stop()
    return answer


def _running() -> subprocess.Popen[bytes]:
    """The child; a process that was forked from another has one of its own."""
    global _child, _owner
    if _child is None or _owner != os.getpid() or _child.poll() is not None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "HDF5_PLUGIN_PRELOAD": "::",  # no filters but the library's own
            "OPENBLAS_NUM_THREADS": "1",
        }
        # A session of its own: ctrl-C is this process's to answer. -P: nothing of the current directory is imported.
        _child = subprocess.Popen(
            [sys.executable, "-S", "-P", str(Path(hdf5_contents.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        _owner = os.getpid()
    return _child


@atexit.register
def _stop() -> None:
    global _child
    if _child is not None and _owner == os.getpid():
        _child.kill()
        _child.wait()
        for stream in (_child.stdin, _child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what it did not take is written once more
                    stream.close()
        _child = None
