"""The numbers of a directory, whatever they were written in, without seconds and dates."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.results import digest, hdf5

TIMES = ("seconds", "checksum", "command", "date", "hz")
"""Parts of names that stand for a time, or for what contains one."""


def contents(folder: Path) -> dict[str, Any]:
    """Path of every file -> what it holds; of pictures and pages that they are there and not empty."""
    return {str(p.relative_to(folder)): _content(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two trees differ, bit for bit; nan equals nan."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [k for k in {**one, **other} if not _is_time(k)]
        missing = [f"{at}/{k} is {'not there' if k in one else 'there'}" for k in keys if (k in one) != (k in other)]
        both = (k for k in keys if k in one and k in other)
        return [*missing, *(d for k in both for d in differences(one[k], other[k], f"{at}/{k}"))]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{at}/{i}")]
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return []
    return [] if type(one) is type(other) and one == other else [f"{at}: {one!r:.60} and {other!r:.60}"]


def _is_time(key: Any) -> bool:
    return isinstance(key, str) and any(part in key.lower() for part in TIMES)


def _content(path: Path) -> Any:
    readers = {".pt": _tensors, ".h5": _results, ".json": _record, ".csv": _table}
    return readers.get(path.suffix, lambda p: p.stat().st_size > 0)(path)


def _tensors(path: Path) -> Any:
    return _plain(torch.load(path, weights_only=True))


def _results(path: Path) -> Any:
    groups = hdf5.read(path).items()
    arrays = {n: {k: v for k, v in g.arrays.values.items() if not _is_time(k)} for n, g in groups}
    return {n: {**{k: _json(v) for k, v in g.attributes.items()}, "arrays": _plain(arrays[n])} for n, g in groups}


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _record(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _table(path: Path) -> Any:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if not any(_is_time(v) for v in row.values())]


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return digest.of_tensors([value])
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), value.tolist()]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
