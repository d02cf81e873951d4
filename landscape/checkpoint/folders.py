"""Weights in several files: shards with or without an index, and the folders that libraries save a network in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from landscape.checkpoint import distributed
from landscape.errors import InputError

Reader = Callable[[Path], Any]

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model")
_SUFFIXES = (".safetensors", ".bin")


def contents(folder: Path, read: Reader) -> Any:
    """The weights in a folder: a distributed checkpoint, shards, or the one file that libraries call by a known name.

    Raises:
        InputError: none of these.
    """
    if (folder / ".metadata").is_file():
        return distributed.contents(folder)
    for name in (f"{stem}{suffix}" for suffix in _SUFFIXES for stem in _STEMS):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _of_index(index, read)
        if (folder / name).is_file():
            return read(folder / name)
    parts = [p for p in sorted(folder.iterdir()) if (m := _SHARD.fullmatch(p.name)) and m["suffix"] in _SUFFIXES]
    if parts:
        return _of_count(parts[0], read)
    if (folder / "latest").is_file() and any(folder.glob("*/*_model_states.pt")):
        raise InputError(
            f"{folder} is a checkpoint of DeepSpeed, whose weights lie in parts: join them with its own script, "
            f"python {folder / 'zero_to_fp32.py'} {folder} OUT, and give what it writes"
        )
    raise InputError(f"{folder} is a directory{_hint(folder)}")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds the weights of one network, under names that libraries give them."""
    known = [f"{stem}{suffix}{end}" for stem in _STEMS for suffix in _SUFFIXES for end in ("", ".index.json")]
    shards = (m for p in folder.iterdir() if (m := _SHARD.fullmatch(p.name)))
    return any((folder / n).is_file() for n in (".metadata", *known)) or any(m["suffix"] in _SUFFIXES for m in shards)


def _hint(folder: Path) -> str:
    if (folder / "ckpt.pt").exists():
        return f": did you mean {folder / 'ckpt.pt'}?"
    kinds = (".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors")
    files = [p.name for p in sorted(folder.iterdir()) if p.suffix in kinds]
    return f" of several files: give one of {', '.join(files[:5])}" if files else ": give the path of a checkpoint file"


def shards(path: Path, read: Reader) -> dict[str, Any] | None:
    """The whole state dict where `path` is its index or one of its shards, else None."""
    if path.name.endswith(".index.json"):
        return _of_index(path, read)
    match = _SHARD.fullmatch(path.name)
    if not match:
        return None
    index = path.with_name(f"{match['stem']}{match['suffix']}.index.json")
    return _of_index(index, read) if index.is_file() else _of_count(path, read)


def _of_index(index: Path, read: Reader) -> dict[str, Any]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is not an index of shards: it has no readable weight_map") from error
    # A file names its neighbors and nothing else on the disk.
    if not names or any(not isinstance(n, str) or Path(n).name != n for n in names):
        raise InputError(f"{index} is not an index of shards: it must name files of its own folder")
    return _joined([index.with_name(name) for name in names], read)


def _of_count(path: Path, read: Reader) -> dict[str, Any]:
    match = _SHARD.fullmatch(path.name)
    assert match is not None
    count = int(match["count"])
    names = (f"{match['stem']}-{i:05d}-of-{count:05d}{match['suffix']}" for i in range(1, count + 1))
    return _joined([path.with_name(name) for name in names], read)


def _joined(parts: Iterable[Path], read: Reader) -> dict[str, Any]:
    parts = list(parts)
    absent = [p.name for p in parts if not p.is_file()]
    if absent:
        raise InputError(
            f"{parts[0].parent}: the weights lie in several files (shards), {absent[0]} is missing"
            + (f" with {len(absent) - 1} more" if len(absent) > 1 else "")
            + ": put all of them beside each other"
        )
    whole: dict[str, Any] = {}
    for part in parts:
        tensors = read(part)
        if not isinstance(tensors, dict) or whole.keys() & tensors.keys():
            raise InputError(f"{part} is not a shard of one state dict: it repeats another's tensors or holds none")
        whole.update(tensors)
    return whole
