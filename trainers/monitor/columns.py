"""The numbers of a result that fit into one row: its values, how sure they are, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from landscape.registry import Entry
from landscape.results.result import Result

_SURE = ("stderr", "error_bound", "low", "high")


def numbers(key: str, result: Result, entry: Entry) -> dict[str, float]:
    """Name of a column -> number; nan where the measure found none.

    `key` for a single value, `key.1`, `key.2`, ... for several (largest first), `key.NAME` for a measure of several
    quantities or layers; `.stderr`, `.error_bound`, `.low` and `.high` of each where they are known; `key.hvps`, the
    Hessian-vector products spent.
    """
    return columns_of(key, result.summary(), entry)


def columns_of(key: str, summary: Mapping[str, Any], entry: Entry) -> dict[str, float]:
    """The same of a summary."""
    parts: dict[str, Any] = {key: summary}
    if fields := entry.facts.get("fields"):
        parts = {f"{key}.{name}": _field(summary, name, bound) for name, (_, bound, _) in fields.items()}
    elif not {"value", "values"} & summary.keys():
        parts = {f"{key}.{layer}": part for layer, part in summary.get("layers", {}).items()}
    columns: dict[str, float] = {}
    for name, part in parts.items():
        columns |= _columns(name, part)
    if "hvps" in summary:
        columns[f"{key}.hvps"] = _number(summary["hvps"])
    return columns


def _field(summary: Mapping[str, Any], name: str, bound: str) -> dict[str, Any]:
    value = summary.get(name)
    if isinstance(value, dict):
        return value
    return {"value": value, **({"error_bound": summary.get(bound)} if bound else {})}


def _columns(name: str, part: Mapping[str, Any]) -> dict[str, float]:
    if "values" in part:
        values, bounds = part["values"], part.get("error_bounds", [])
        names = [name] if len(values) == 1 else [f"{name}.{i}" for i in range(1, len(values) + 1)]
        columns = dict(zip(names, map(_number, values), strict=True))
        return columns | {f"{n}.error_bound": _number(b) for n, b in zip(names, bounds, strict=False)}
    value = math.nan if part.get("refused") else _number(part.get("value"))  # no note stands beside it in a row
    return {name: value} | {f"{name}.{k}": _number(part[k]) for k in _SURE if k in part}


def _number(value: Any) -> float:
    """A number of a summary, whose nan and inf are None."""
    return float(value) if isinstance(value, int | float) else math.nan
