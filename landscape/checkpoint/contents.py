"""What a file or folder holds, as plain containers of tensors; nothing of it is run."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from landscape import archive
from landscape.checkpoint import folders, pickles
from landscape.checkpoint.kinds import is_safetensors, require_known
from landscape.errors import InputError

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}


def contents(path: str | Path) -> Any:
    """The containers and tensors in a file, a file of several (shards), or a folder that holds one network's weights.

    Tensors are on the CPU, memory-mapped where the file allows it.

    Raises:
        InputError: missing, empty, truncated, of a kind that holds no weights, or one that would run code.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file: give the path of a checkpoint (ckpt.pt)")
    if path.is_dir():
        return folders.contents(path, _file)
    return folders.shards(path, _file) or _file(path)


def lacks_checksum(path: str | Path) -> bool:
    """Whether a damaged weight in this file could not be told from a trained one; of a folder, in some file of it.

    Members of a zip archive, as `torch.save` writes it, have a CRC-32 each, which `contents` compares.
    """
    path = Path(path)
    files = [p for p in path.rglob("*") if p.suffix in _WEIGHTS] if path.is_dir() else [path]
    return not all(zipfile.is_zipfile(file) for file in files)


def _file(path: Path) -> Any:
    archive.require_regular(path)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes): the copy or the training was cut off; use another checkpoint")
        require_known(path)
        if is_safetensors(path):
            return _safetensors(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            archive.verify(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "global" in str(error):
            return pickles.with_harmless_types(path, error)
        raise InputError(f"{path} is not a readable checkpoint (truncated or another format)") from error
    except InputError:
        raise
    except Exception as error:  # whatever a reader raises on bytes that nobody wrote for it
        raise InputError(f"{path} is not a readable checkpoint (truncated or another format)") from error


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path}: reading .safetensors needs `pip install safetensors`") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a readable safetensors file (truncated or damaged): {error}") from error
