"""Profiles: the loss on lines, with a band over several directions and several parts of the data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.progress import track
from landscape.random import stream
from landscape.results.result import Result, array, plain
from landscape.sharpness.subsets import part_that_counts
from landscape.surfaces.result import Surface
from landscape.surfaces.surface import surface


@dataclass(frozen=True, kw_only=True)
class Profiles(Result):
    """L(w0 + a d) on a line, for several directions and several parts of the data: a mean and a band.

    Attributes:
        x: coordinates, in multiples of `unit`.
        loss: (x,) mean over directions and subsets.
        low: (x,) 5% quantile over them.
        high: (x,) 95% quantile.
        losses: (direction, subset, x) each profile.
        direction_deviation: (x,) standard deviation between directions (of means over the subsets).
        subset_deviation: (x,) standard deviation between subsets (mean over the directions): the noise of the sample.
        unit: what one unit of the axis is.
        directions: kind of the directions.
        radius: farthest end.
        center_loss: mean loss at the trained weights.
        facts: seeds of the directions, examples of each part.
    """

    x: np.ndarray = array("x")
    loss: np.ndarray = array("x")
    low: np.ndarray = array("x")
    high: np.ndarray = array("x")
    losses: np.ndarray = array("direction", "subset", "x")
    direction_deviation: np.ndarray = array("x")
    subset_deviation: np.ndarray = array("x")
    unit: str = ""
    directions: str = ""
    radius: float = 0.0
    center_loss: float = float("nan")
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> tuple[np.ndarray]:
        """Coordinates of the axis."""
        return (self.x,)

    @property
    def done(self) -> np.ndarray:
        """(x,) bool: a band is only made of finished profiles."""
        return np.ones(self.x.shape, dtype=bool)

    @property
    def checks(self) -> list[dict[str, Any]]:
        """Whether the band stands out from its own width."""
        relief = float(np.nanmax(self.loss) - np.nanmin(self.loss))
        width = float(np.nanmax(self.high - self.low))
        if not width > relief:
            text = f"the mean varies by {relief:.3g}, {relief / width:.1f} times the widest band" if width else ""
            return [{"name": "band", "ok": True, "text": text, "value": relief / width}] if width else []
        text = f"the mean varies by {relief:.2g}, less than the band is wide ({width:.2g}): more draws, a larger radius"
        return [{"name": "band", "ok": False, "text": text, "value": relief / width}]

    @property
    def warnings(self) -> list[str]:
        """Reasons not to believe the picture."""
        return [c["text"] for c in self.checks if not c["ok"]]

    def caption(self) -> str:
        """What must be said under a figure: how it was computed."""
        directions, subsets = self.losses.shape[:2]
        parts = [
            f"{directions} {self.directions} directions, seeds from {self.arguments.get('seed')}",
            f"{subsets} parts of the data" if subsets > 1 else "",
            f"radius {self.radius:g} {self.unit}",
            f"{self.provenance.get('examples', 0):,} samples",
            f"BatchNorm {self.provenance['batch_norm']}" if self.provenance.get("has_batch_norm") else "",
        ]
        return "; ".join(p for p in parts if p)


def profiles(
    problem: Problem,
    directions: str = "gaussian",
    radius: float | None = None,
    grid: int = 41,
    seed: int = 0,
    *,
    draws: int = 5,
    subsets: int = 1,
    spacing: str = "linear",
    biases: bool = False,
) -> Profiles:
    """Mean and band of a one-dimensional profile over `draws` directions and `subsets` disjoint parts of the data.

    Args:
        problem: what is evaluated.
        directions: a drawn kind: "gaussian", "filter" or "layer".
        radius: half-width, see `landscape.surface`.
        grid: points.
        seed: direction i has the seed seed + i; the parts of the data are drawn from the seed too.
        draws: directions, at least 2 for a band over them.
        subsets: parts of (almost) equal size that the examples are divided into at random.
        spacing: see `landscape.surface`.
        biases: see `landscape.surface`.

    Raises:
        InputError: draws or subsets below 1, more subsets than examples, data that are not kept in memory.

    Cost: draws x grid forward passes.
    """
    if draws < 1 or subsets < 1:
        raise InputError(f"draws and subsets must be at least 1, received {draws} and {subsets}")
    started, surfaces = time.monotonic(), []
    parts = [problem] if subsets == 1 else _parts(problem, subsets, seed)
    choice: dict[str, Any] = {}
    for i in track(range(draws), "profiles"):
        others = {str(k): p for k, p in enumerate(parts[1:])}
        one = surface(
            parts[0],
            directions,
            radius,
            grid,
            seed + i,
            dimensions=1,
            spacing=spacing,
            biases=biases,
            others=others,
            **choice,
        )
        choice = {"batch_size": one.choice["batch_size"]}
        surfaces.append(one)
    one = surfaces[0]
    return Profiles(
        **_band(surfaces),
        unit=one.unit,
        directions=one.directions,
        radius=one.radius,
        facts={"seeds": [seed + i for i in range(draws)], "examples_a_subset": [p.examples for p in parts]},
        arguments=plain(
            {
                "directions": directions,
                "radius": radius,
                "grid": grid,
                "seed": seed,
                "draws": draws,
                "subsets": subsets,
                "spacing": spacing,
                "biases": biases,
            }
        ),
        cost={"forward": sum(s.cost["forward"] for s in surfaces)},
        seconds=time.monotonic() - started,
        provenance=one.provenance | problem.provenance(),
    )


def _band(surfaces: Sequence[Surface]) -> dict[str, Any]:
    """Mean, band and deviations of lines over directions and datasets."""
    losses = np.stack([np.stack([s.loss, *(() if s.other_loss is None else s.other_loss)]) for s in surfaces])
    every, x = losses.reshape(-1, losses.shape[-1]), surfaces[0].x
    return {
        "x": x,
        "loss": every.mean(0),
        "low": np.quantile(every, 0.05, axis=0),
        "high": np.quantile(every, 0.95, axis=0),
        "losses": losses,
        "direction_deviation": _deviation(losses.mean(1)),
        "subset_deviation": _deviation(losses.mean(0)),
        "center_loss": float(every.mean(0)[x == 0][0]),
    }


def _parts(problem: Problem, count: int, seed: int) -> list[Problem]:
    """Disjoint random parts of the examples, each in batches of the first batch's size."""
    whole = problem.batches.whole()
    if problem.undividable is not None or whole is None:
        raise InputError(f"data subsets regroup the examples: {problem.undividable or 'their shapes differ'}")
    if count > whole.size:
        raise InputError(f"{count} subsets of {whole.size} examples: at most one per example")
    order = torch.randperm(whole.size, generator=stream(seed, "data subsets"))
    size = problem.batches.sizes[0]
    parts = []
    for chosen in order.tensor_split(count):
        rows = chosen.sort().values.to(problem.weights.device)
        part = whole.select(rows)
        pieces = [part.rows(i, i + size) for i in range(0, len(rows), size)]
        parts.append(part_that_counts(problem, pieces, f"one of {count} data subsets", f"fewer subsets than {count}"))
    return parts


def _deviation(values: np.ndarray) -> np.ndarray:
    """Standard deviation over the first axis; nan where there is one value only."""
    return values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)
