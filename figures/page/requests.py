"""What is to be measured: measures as the command line names them, with their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from landscape import MEASURES
from landscape.errors import InputError
from trainers.names import checked_arguments, parse_name

SURFACE = "surface"
DEFAULT_MEASURES = ("sam_sharpness", "adaptive_sharpness", "hessian_top_eigenvalues")


@dataclass(frozen=True)
class Request:
    """One measure with its arguments; `key` names its result."""

    key: str
    measure: str
    arguments: dict[str, Any]


def requests(texts: Sequence[str], rho: Sequence[float] = (), **common: Any) -> list[Request]:
    """Measures as the command line names them, `NAME` or `NAME:rho=0.5,scaling=filterwise`.

    Args:
        texts: the names; several radii are a tuple, `rho=(0.1,0.2)`.
        rho: radii of the plain measures (those whose entry has the fact `plain_radius`) that do not state their own.
        common: arguments for every measure that has an option of that name (k, seed); None is left out.
    """
    requests: dict[str, Request] = {}
    for text in texts:
        name, stated = parse_name(text)
        entry = MEASURES.entry(name)
        arguments = {o.name: common[o.name] for o in entry.options if common.get(o.name) is not None}
        if rho and entry.facts.get("plain_radius"):
            arguments["rho"] = tuple(rho)
        key = name if name not in requests else text
        if key in requests:
            raise InputError(f"--measure {text} is given twice: give it once")
        requests[key] = Request(key, name, checked_arguments(entry, {**arguments, **stated}))
    return list(requests.values())


def surface_request(grid: int, radius: float, seed: int, directions: str = "gaussian") -> Request:
    """The loss surface as one of the things that are wanted."""
    arguments = {"directions": directions, "radius": radius, "grid": grid, "seed": seed}
    return Request(SURFACE, SURFACE, arguments)
