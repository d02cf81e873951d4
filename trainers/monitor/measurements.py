"""Which measures a Monitor takes, and the numbers that they give at the weights of one step."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

from landscape import MEASURES
from landscape.errors import InputError, is_out_of_memory, unknown
from landscape.problem.problem import Problem
from landscape.results.result import Result, plain
from trainers.companions import Companions
from trainers.monitor.columns import numbers
from trainers.names import parse_name
from trainers.requests import MeasureRequest, requests

ALIASES = {"lambda_max": "hessian_top_eigenvalues:k=1", "sharpness": "sam_sharpness", "trace": "hessian_trace"}
"""Short names of what is watched most -> the measures."""

DEFAULT_MEASURES: tuple[str, ...] = ("lambda_max", "sharpness", "gradient_norm", "trace")


def require_watchable(measures: Sequence[str]) -> None:
    """Refuse measures that no training can be watched by: unknown ones, wrong options, what needs a second loss.

    Raises:
        InputError: the first of them.
    """
    beside = Companions(optimizer=lambda: None)  # type: ignore[arg-type, return-value]  # every training has one
    for request in named(measures):
        beside.require(request)


class Measurements:
    """Measures with their options, taken again and again; eigenvectors and steps start from those of the last time.

    Args:
        requests: the measures, see `named`.
        companions: what some of them take beside the Problem.

    Attributes:
        requests: these.
        keys: names of the measures in a row.
        described: key -> measure and options; plain JSON values.
        provenance: of the last result.

    Raises:
        InputError: one that needs what is not there.
    """

    def __init__(self, requests: Sequence[MeasureRequest], companions: Companions) -> None:
        for request in requests:
            companions.require(request)
        self.requests = requests
        self._companions = companions
        self._starts: dict[str, Any] = {}
        self.keys = [r.key for r in requests]
        self.described = {r.key: plain({"measure": r.measure, **r.arguments}) for r in requests}
        self.provenance: dict[str, Any] = {}

    @property
    def chained(self) -> bool:
        """Whether a number depends on what was measured before, within its error."""
        return any("start" in inspect.signature(MEASURES[r.measure]).parameters for r in self.requests)

    def __call__(self, problem: Problem, *, columns: Sequence[str] | None = None) -> dict[str, float]:
        """Column -> number, see `trainers.monitor.columns`.

        Args:
            problem: L.
            columns: of earlier rows. With them a measure that fails is reported in a warning and its columns are nan.
        """
        values: dict[str, float] = {}
        for request in self.requests:
            try:
                values |= self._numbers(problem, request)
            except Exception as error:
                if columns is None or not (isinstance(error, InputError) or is_out_of_memory(error)):
                    raise
                text = f"{request.key} could not be measured and is nan: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=4)
        return values if columns is None else {name: values.get(name, math.nan) for name in columns}

    def units(self, columns: Sequence[str]) -> dict[str, str]:
        """Column -> unit, of measures of one quantity; those of several state none for each."""
        units = {}
        for request in self.requests:
            facts = MEASURES.entry(request.measure).facts
            for column in columns:
                inside = column == request.key or column.startswith(f"{request.key}.")
                if inside and not column.endswith(".hvps") and "fields" not in facts:
                    units[column] = str(facts.get("unit", ""))
        return units

    def _numbers(self, problem: Problem, request: MeasureRequest) -> dict[str, float]:
        return numbers(request.key, self.result(problem, request), MEASURES.entry(request.measure))

    def start(self, request: MeasureRequest) -> dict[str, Any]:
        """The argument `start` of a measure that was taken before: its eigenvectors or its step; else none."""
        return {"start": self._starts[request.key]} if request.key in self._starts else {}

    def result(self, problem: Problem, request: MeasureRequest, companions: Companions | None = None) -> Result:
        """One measure, taken once more; `companions` are those of this Problem where they are not always the same."""
        measure = MEASURES[request.measure]
        arguments = (companions or self._companions).arguments(request)
        result = measure(problem, **arguments, **self.start(request))
        self.provenance = result.provenance
        if result.neighboring_start is not None and "start" in inspect.signature(measure).parameters:
            self._starts[request.key] = result.neighboring_start
        return result


def named(names: Sequence[str]) -> list[MeasureRequest]:
    """Measures as on the command line, or of `ALIASES`.

    Raises:
        InputError: none, or an unknown one.
    """
    if not names:
        raise InputError(f"no measure is named: name some of {', '.join([*ALIASES, *MEASURES])}")
    for name in (parse_name(text)[0] for text in names):
        if name not in ALIASES and name not in MEASURES:
            raise unknown("measure", name, [*ALIASES, *MEASURES])
    return requests(names, aliases=ALIASES)
