"""The checkpoint format: read safely, written atomically; other tools' state dicts on request.

A checkpoint holds tensors, str, int, float, bool, None, list and dict and nothing else, so that it loads with
`torch.load(weights_only=True)`: a file never runs code and never names code to import.
"""

from __future__ import annotations

import errno
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape import archive
from landscape.errors import InputError
from landscape.files import atomic

FORMAT, VERSION = "landscape-checkpoint", 1
REQUIRED = ("model", "data", "method", "epoch", "step", "provenance")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_NESTED = ("state_dict", "model_state_dict", "model", "model_state", "state")


def write(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that the file at `path` is always whole: the old one or the new one.

    Raises:
        InputError: a value of a type that would not load safely (its place is named), or the disk is full.
    """
    content = {"format": FORMAT, "version": VERSION, **content}
    _plain(content, "checkpoint")
    with atomic(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:
            # The zip writer reports a failed write as a RuntimeError of varying text; the content itself was checked.
            free = shutil.disk_usage(temporary.parent).free
            raise OSError(errno.ENOSPC, f"writing failed with {free} bytes free") from error


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this toolkit, memory-mapped on the CPU.

    Raises:
        InputError: missing, a directory, empty, truncated, not a checkpoint, another tool's, another version.
    """
    content = _load(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a checkpoint of this toolkit: to analyze it give --model module:callable and --data"
        )
    if content.get("version") != VERSION:
        raise InputError(
            f"{path} has checkpoint version {content.get('version')!r}, this release reads {VERSION}: "
            "use the release that wrote it"
        )
    missing = [k for k in REQUIRED if k not in content]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: it was written incompletely; train again or use a backup")
    _require_kinds(path, content)
    return content


def _require_kinds(path: str | Path, content: Mapping[str, Any]) -> None:
    """Raise InputError naming the first field whose value is of another kind than `write` was meant for."""
    kinds: dict[str, type] = {"epoch": int, "step": int, "provenance": dict}
    for part in ("model", "data", "method"):
        kinds.update({part: dict, f"{part}.name": str, f"{part}.arguments": dict})
    for name, kind in {**kinds, "model.state": dict}.items():
        part, _, inner = name.partition(".")
        value = content[part].get(inner) if inner else content[part]
        if type(value) is not kind:
            raise _other_kind(path, name, value, kind.__name__)
    for name, tensor in content["model"]["state"].items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise _other_kind(path, f"model.state[{name!r}]", tensor, "tensor")
        _require_numbers(path, name, tensor)


def _require_numbers(path: str | Path, name: str, tensor: Tensor) -> None:
    """Raise InputError where a tensor has more entries than its file holds numbers: strides of zero make any size."""
    held = tensor.untyped_storage().nbytes() // tensor.element_size() if tensor.layout is torch.strided else 0
    if tensor.numel() > held:
        raise InputError(
            f"{path}: {name} has {tensor.numel()} entries but the file holds {held}: save it again after .contiguous()"
        )


def _other_kind(path: str | Path, name: str, value: Any, kind: str) -> InputError:
    return InputError(
        f"{path}: {name} is {'missing' if value is None else 'a ' + type(value).__name__}, not a {kind}: "
        "it was written by another program or is damaged; use another copy of it"
    )


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The model's state dict from a file of any origin: ours, bare, or nested under a usual key.

    Prefixes of wrappers ("module.", "_orig_mod.", "model.") that all keys share are removed.

    Raises:
        InputError: as `read`, or no state dict inside.
    """
    content = _load(Path(path))
    if isinstance(content, dict) and content.get("format") == FORMAT:
        content = content["model"]["state"]
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path} holds no state dict: save one with torch.save(model.state_dict(), path)")
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    for prefix in _PREFIXES:
        if all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _load(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"{path}: no such file: give the path of a checkpoint (ckpt.pt)")
    if path.is_dir():
        inside = path / "ckpt.pt"
        hint = f": did you mean {inside}?" if inside.exists() else ": give the path of a checkpoint file"
        raise InputError(f"{path} is a directory{hint}")
    archive.require_regular(path)
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): the copy or the training was cut off; use another checkpoint")
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        zipped = zipfile.is_zipfile(path)
        if zipped:
            archive.verify(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            raise InputError(
                f"{path} holds pickled Python objects, which are never loaded: save a state dict instead, "
                "torch.save(model.state_dict(), path), and give --model module:callable"
            ) from error
        raise InputError(f"{path} is not a readable checkpoint (truncated or another format)") from error
    except InputError:
        raise
    except Exception as error:  # whatever a reader raises on bytes that nobody wrote for it
        raise InputError(f"{path} is not a readable checkpoint (truncated or another format)") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path}: reading .safetensors needs `pip install safetensors`") from error
    return load_file(path)


def _plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _plain(inner, f"{where}[{i}]")
    elif type(value) not in (Tensor, torch.nn.Parameter, str, int, float, bool, type(None)):
        raise InputError(
            f"{where} is a {type(value).__name__}: a checkpoint holds tensors, "
            "str, int, float, bool, None, list and dict only"
        )
