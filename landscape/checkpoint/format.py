"""The checkpoint format of this toolkit: read safely, written atomically.

A checkpoint holds tensors, str, int, float, bool, None, list and dict and nothing else, so that it loads with
`torch.load(weights_only=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.checkpoint.contents import contents
from landscape.checkpoint.states import require_numbers
from landscape.errors import InputError
from landscape.files import write_tensors

FORMAT, VERSION = "landscape-checkpoint", 1
REQUIRED = ("model", "data", "method", "epoch", "step", "provenance")


def write(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that the file at `path` is always whole: the old one or the new one.

    Raises:
        InputError: a value of a type that would not load safely (its place is named), or the disk is full.
    """
    content = {"format": FORMAT, "version": VERSION, **content}
    _require_plain(content, "checkpoint")
    write_tensors(path, content)


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this toolkit, memory-mapped on the CPU.

    Raises:
        InputError: missing, a directory, empty, truncated, not a checkpoint, another tool's, another version.
    """
    content = contents(path)
    if not is_ours(content):
        named = f"hf:{path}" if (Path(path) / "config.json").is_file() else "NAME or module:callable"
        raise InputError(
            f"{path} is not a checkpoint of this toolkit: to analyze it say how its network and its data are made, "
            f"--model {named}, and --data"
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


def is_ours(content: Any) -> bool:
    """Whether this toolkit's training wrote it."""
    return isinstance(content, dict) and content.get("format") == FORMAT


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
        require_numbers(path, name, tensor)


def _other_kind(path: str | Path, name: str, value: Any, kind: str) -> InputError:
    return InputError(
        f"{path}: {name} is {'missing' if value is None else 'a ' + type(value).__name__}, not a {kind}: "
        "it was written by another program or is damaged; use another copy of it"
    )


def _require_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _require_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _require_plain(inner, f"{where}[{i}]")
    elif type(value) not in (Tensor, torch.nn.Parameter, str, int, float, bool, type(None)):
        raise InputError(
            f"{where} is a {type(value).__name__}: a checkpoint holds tensors, "
            "str, int, float, bool, None, list and dict only"
        )
