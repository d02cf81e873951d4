"""How a surface comes about: what was asked for, where it is kept, what is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.problem.loss_name import loss_name
from landscape.problem.problem import Problem
from landscape.results import digest, hdf5
from landscape.results.result import plain
from landscape.surfaces import picture_checks
from landscape.surfaces.directions.directions import RADII, Directions
from landscape.surfaces.grid import axes as grids
from landscape.surfaces.grid.choice import choose
from landscape.surfaces.grid.evaluation import Choice, GridEvaluation, Point
from landscape.surfaces.grid.run import Phase, Processes, Run
from landscape.surfaces.grid.store import Journal, refuse_other
from landscape.surfaces.point_curvature import curvature_phase, gradient_phase
from landscape.surfaces.result import Surface

# -- what was asked for ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """The arguments of `landscape.surface`, checked."""

    directions: str
    radius: float | None
    grid: int | Sequence[int]
    seed: int
    dimensions: int
    ranges: Sequence[tuple[float, float]] | None
    spacing: str
    center: bool
    biases: bool
    gradient_norm: bool
    curvature: bool
    precision: str

    def __post_init__(self) -> None:
        if self.dimensions not in (1, 2):
            raise InputError(f"a surface has 1 or 2 dimensions, received {self.dimensions}")
        if self.radius is not None and not (self.radius > 0 and math.isfinite(self.radius)):
            raise InputError(f"radius must be a positive number, received {self.radius}")
        if self.radius is not None and self.ranges is not None:
            raise InputError("radius and ranges were both given: give one of them")

    def spans(self, found: Directions) -> list[tuple[float, float]]:
        """(low, high) of every axis."""
        if self.ranges is not None:
            if len(self.ranges) != len(found):
                raise InputError(f"{len(self.ranges)} ranges for {len(found)} directions: give (low, high) for each")
            return [(float(low), float(high)) for low, high in self.ranges]
        if self.radius is None and found.ranges is not None:
            return list(found.ranges)
        radius = float(RADII.get(found.unit, 1.0) if self.radius is None else self.radius)
        return [(-radius, radius)] * len(found)


def header_of(
    problems: Mapping[str, Problem], found: Directions, asked: Asked, batch_size: int | None, points: int | None
) -> dict[str, Any]:
    """Axes and choice: what a resumed run keeps."""
    axes = grids.axes(asked.grid, asked.spans(found), spacing=asked.spacing, center=asked.center)
    count = math.prod(len(a) for a in axes)
    choice = choose(
        problems,
        found.center,
        found.vectors,
        count,
        batch_size=batch_size,
        points_per_launch=points,
        precision=asked.precision,
    )
    return {"axes": [a.tolist() for a in axes], "choice": asdict(choice)}


def identity_of(
    problems: Mapping[str, Problem],
    asked: Asked,
    own: Directions | None,
    checkpoints: Sequence[Tensor],
    optimizer: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a surface belongs to: a file that holds another one is refused."""
    problem = problems[""]
    hashes = {f"{k} sample_sha256".strip(): p.batches.fingerprint() for k, p in problems.items()}
    given = {"directions_sha256": own.fingerprint()} if own else {}
    through = {"checkpoints_sha256": digest.of_tensors(checkpoints)} if checkpoints else {}
    if optimizer is not None:
        through["optimizer_sha256"] = _digest_of_state(optimizer)
    return plain(
        {
            "weights_sha256": digest.of_tensors([*problem.model.state_dict().values(), problem.weights]),
            **hashes,
            **given,
            **through,
            # The same weights compute something else with other activations.
            "model_sha256": digest.of_parts([repr(problem.model)]),
            "loss": loss_name(problem._loss),
            "logit_normalization": problem.logit_normalization,
            "batch_norm": problem.batch_norm,
            "parameters": list(problem.parameters.names),
            "device": problem.weights.device.type,
            "dtype": str(problem.weights.dtype),
            "arguments": asdict(asked),
        }
    )


def _digest_of_state(optimizer: Mapping[str, Any]) -> str:
    entries = (entry for state in optimizer["state"].values() for entry in state.values())
    return digest.of_tensors(t for t in entries if isinstance(t, Tensor))


# -- the file --------------------------------------------------------------------------------------------------------


@dataclass
class Keeper:
    """The result file and the journal beside it."""

    file: Path
    name: str
    identity: dict[str, Any]
    resume: bool
    replace_other: bool
    journal: Journal | None = None

    def open(self) -> tuple[Surface | None, dict[str, Any] | None, Directions | None]:
        """The finished surface, or the header and directions of an unfinished one, or nothing."""
        directory = self.file.with_name(f"{self.file.name}.{self.name.replace('/', '-')}.partial")
        finished = self._finished()
        if self.resume and finished is not None:
            return finished, None, None
        try:
            self.journal = Journal(directory, self.identity, resume=self.resume)
        except InputError:
            if not self.replace_other:
                raise
            self.journal = Journal(directory, self.identity, resume=False)
        if self.journal.header is None:
            return None, None, None
        return None, self.journal.header, self.journal.directions(torch.empty(0))

    def begin(self, header: Mapping[str, Any], found: Directions) -> None:
        """Start the journal of a new surface."""
        assert self.journal is not None
        self.journal.begin(header, found)

    def save(self, surface: Surface) -> None:
        """Bring the file up to date, atomically."""
        hdf5.save(self.file, {self.name: surface})

    def close(self, *, delete: bool) -> None:
        """Let go of the journal."""
        if self.journal:
            self.journal.close(delete=delete)

    def _finished(self) -> Surface | None:
        """The file's own surface, where it is complete and the same; an unfinished one is the journal's business."""
        if not self.file.exists():
            return None
        held = hdf5.load_group(self.file, self.name)
        if not isinstance(held, Surface):
            if held is None or self.replace_other:
                return None
            raise InputError(f"{self.file} holds another result under {self.name!r}: choose another file")
        if self.replace_other:
            return held if held.complete and held.identity == self.identity else None
        # Starting anew replaces a surface of the same checkpoint, never one of another.
        wanted = self.identity if self.resume else {"weights_sha256": self.identity["weights_sha256"]}
        refuse_other({k: held.identity.get(k) for k in wanted}, wanted, self.file)
        return held if held.complete else None


# -- the work --------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """A surface on its way from its header to the result."""

    problems: dict[str, Problem]
    found: Directions
    header: Mapping[str, Any]
    asked: Asked
    identity: dict[str, Any]
    checks: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.problem = self.problems[""]
        self.axes = [np.array(a, dtype=np.float64) for a in self.header["axes"]]
        self.choice = Choice(**self.header["choice"])
        self.evaluation = GridEvaluation(self.problems, self.found.center, self.found.vectors, self.choice)
        self.provenance = {**self.problem.provenance(), "has_batch_norm": bool(self.problem._evaluator.batch_norms)}
        width = 2 * len(self.problems)
        self.loss = Phase(0, "surface", width, self.choice.points_per_launch, self.evaluation, self.evaluation.opened)
        self.extras: list[Phase] = []
        if self.asked.gradient_norm:
            self.extras.append(gradient_phase(self.problem, self.evaluation))
        if self.asked.curvature:
            self.extras.append(curvature_phase(self.problem, self.evaluation, self.asked.seed))

    def done(self, processes: Processes, keeper: Keeper | None) -> Surface:
        """Compute everything that is missing, check the picture, save it."""
        run = Run(self._points(), processes, keeper.journal if keeper else None, self.problem)
        if keeper:
            run.publish = lambda: keeper.save(self._surface(run))
            run.publish()
        try:
            for phase in (self.loss, *self.extras):
                run.complete(phase)
        except BaseException:
            if keeper:
                keeper.save(self._surface(run))
                keeper.close(delete=False)
            raise
        if self.choice.precision != "native":
            self.facts["precision_error"] = self._precision_error()
        self.checks = picture_checks.check(self._surface(run), self.problem, self.evaluation)
        surface = self._surface(run)
        if keeper:
            keeper.save(surface)
            keeper.close(delete=True)
        return surface

    def _points(self) -> list[Point]:
        stacked = np.stack(np.meshgrid(*self.axes, indexing="ij"), -1).reshape(-1, len(self.axes))
        return [tuple(p) for p in stacked.tolist()]

    def _surface(self, run: Run) -> Surface:
        shape = [len(a) for a in self.axes]
        values = np.moveaxis(run.values(self.loss).reshape(*shape, len(self.problems), 2), (-2, -1), (1, 0))
        known, extras = run.known(self.loss), {}
        complete = bool(known.all())
        for phase in self.extras:
            complete = complete and bool(run.known(phase).all())
            columns = run.values(phase).T.reshape(-1, *shape)
            extras.update(dict(zip(_EXTRAS[phase.number], columns, strict=True)))
        cost = run.cost()
        spans = self.asked.spans(self.found)
        return Surface(
            x=self.axes[0],
            y=self.axes[1] if len(self.axes) == 2 else None,
            loss=values[0, 0],
            accuracy=values[1, 0],
            done=known.reshape(shape),
            other_loss=values[0, 1:] if len(self.problems) > 1 else None,
            other_accuracy=values[1, 1:] if len(self.problems) > 1 else None,
            **extras,
            marks=None if self.found.marks is None else self.found.marks.cpu().numpy(),
            residuals=None if self.found.residuals is None else self.found.residuals.cpu().numpy(),
            others=list(self.problems)[1:],
            unit=self.found.unit,
            directions=self.found.name,
            radius=max(abs(v) for span in spans for v in span),
            facts={**self.found.facts, **self.facts},
            choice=asdict(self.choice),
            checks=self.checks,
            identity=self.identity,
            complete=complete,
            arguments=asdict(self.asked),
            seconds=cost.pop("seconds"),
            cost=cost,
            provenance=self.provenance,
        )

    def _precision_error(self) -> list[dict[str, Any]]:
        """Loss in the native precision beside the surface's, at the center and at the corners."""
        corners = [tuple(c) for c in _corners([(float(a[0]), float(a[-1])) for a in self.axes])]
        points = [(0.0,) * len(self.axes), *corners]
        native = replace(self.choice, precision="native", points_per_launch=1)
        plainly = GridEvaluation({"": self.problem}, self.found.center, self.found.vectors, native)
        return [
            {
                "point": list(p),
                "loss": here,
                "native": there,
                "relative_error": abs(here - there) / max(abs(there), 1e-12),
            }
            for p, here, there in zip(points, _losses(self.evaluation, points), _losses(plainly, points), strict=True)
        ]


_EXTRAS = {1: ("gradient_norm",), 2: ("lambda_min", "lambda_max", "lambda_error")}


def _corners(spans: Sequence[tuple[float, float]]) -> list[list[float]]:
    found: list[list[float]] = [[]]
    for span in spans:
        found = [[*c, end] for c in found for end in span]
    return found


def _losses(evaluation: GridEvaluation, points: Sequence[Point]) -> list[float]:
    with evaluation.opened():
        return evaluation(points)[:, 0, 0].tolist()
