"""What makes a function a measure: its name and words, and the bookkeeping around what it computes.

A measure is a pure function `(problem, ..., *, options) -> Result` that fills in its result's own fields. `@measure`
adds what every result carries: label, arguments, cost, seconds and provenance.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from landscape.meaning import filled, labels
from landscape.results import digest
from landscape.results.result import Result

P = ParamSpec("P")
R = TypeVar("R", bound=Result)
Reading = Callable[[Mapping[str, Any], float], str]


def measure(
    name: str,
    *,
    label: str = "",
    meaning: str = "",
    unit: str = "",
    plural: str = "",
    flat: str = "",
    fields: Mapping[str, tuple[str, str, str]] | None = None,
    says: Reading | None = None,
    plain_radius: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a measure. All but `says` are literals: they are read without importing the file.

    Args:
        name: in `landscape.MEASURES`, on the command line, in files.
        label: names its value, as in "{matrix} trace" (see `landscape.meaning`).
        meaning: explains it, in a sentence or two.
        unit: of its value.
        plural: title where several values are drawn.
        flat: "small" where the flatter of two minima has the smaller value, "large" where the larger; "" for neither.
        fields: for a result without `value` or `values`: name in the summary -> (label, name of its error bound or "",
            what it says).
        says: (summary, loss at w) -> a sentence that reads one value aloud, "" where there is nothing to say.
        plain_radius: whether `--rho` of the command line is its radius.
    """

    def decorate(compute: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(compute)
        options = [k for k, v in signature.parameters.items() if v.kind is v.KEYWORD_ONLY]

        @functools.wraps(compute)
        def measured(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            problem = bound.args[0]
            start = time.perf_counter()
            with problem.counting() as cost:
                result = compute(*args, **kwargs)
            arguments = {k: _recorded(bound.arguments[k]) for k in options} | result.arguments
            if bound.arguments.get("w") is not None:  # else a number of other weights reads as one of the network's
                arguments["w"] = f"other weights, sha256 {digest.of_parts([bound.arguments['w']])[:16]}"
            return dataclasses.replace(
                result,
                label=filled(label, labels(arguments | vars(result))),
                arguments=arguments,
                cost=cost,
                seconds=time.perf_counter() - start,
                provenance={**problem.provenance(), **result.provenance},
            )

        measured.registered_name, measured.says = name, says  # type: ignore[attr-defined]
        return measured

    return decorate


def _recorded(value: Any) -> Any:
    """An option as it is stored: an infinite p as "inf", which JSON can hold and `float` reads."""
    return "inf" if isinstance(value, float) and math.isinf(value) else value
