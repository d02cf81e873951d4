"""What is to be measured: measures as the command line names them, with their arguments; light, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from landscape import MEASURES
from landscape.errors import InputError
from trainers.names import checked_arguments, parse_name

NO_ALIASES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class MeasureRequest:
    """One measure with its arguments; `key` names its result."""

    key: str
    measure: str
    arguments: dict[str, Any]


def requests(
    texts: Sequence[str], rho: Sequence[float] = (), *, aliases: Mapping[str, str] = NO_ALIASES, **common: Any
) -> list[MeasureRequest]:
    """Measures as the command line names them, `NAME` or `NAME:rho=0.5,scaling=filterwise`.

    Args:
        texts: the names; several radii are a tuple, `rho=(0.1,0.2)`.
        rho: radii of the plain measures (those whose entry has the fact `plain_radius`) that do not state their own.
        aliases: other names -> measures, which may bring arguments.
        common: arguments for every measure that has an option of that name (k, seed); None is left out.

    Raises:
        InputError: an unknown measure, an argument that it does not have, a measure that is named twice in one way.
    """
    requests: dict[str, MeasureRequest] = {}
    for text in texts:
        name, stated = parse_name(text)
        measure, brought = parse_name(aliases.get(name, name))
        entry = MEASURES.entry(measure)
        arguments = {o.name: common[o.name] for o in entry.options if common.get(o.name) is not None}
        if rho and entry.facts.get("plain_radius"):
            arguments["rho"] = tuple(rho)
        key = name if name not in requests else text
        if key in requests:
            raise InputError(f"--measure {text} is given twice: give it once")
        requests[key] = MeasureRequest(key, measure, checked_arguments(entry, {**arguments, **brought, **stated}))
    return list(requests.values())
