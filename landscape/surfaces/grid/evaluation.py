"""Evaluating one problem at many points w0 + a d1 + b d2: a plain forward each, one axpy, nothing else.

The model is bound once to views of one flat buffer; a point is written into the buffer in place. Sums stay on the
device and are fetched a chunk of points at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.ball.spread import spread_of
from landscape.ball.vectors import dot
from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.outputs import count_hits
from landscape.problem.parameters import Parameters, Slot, aligned
from landscape.problem.precision import tf32
from landscape.problem.problem import Problem
from landscape.sharpness.checks import displacement_error

Point = Sequence[float]
_Values = list[tuple[list[Tensor], list[Tensor | None]]]


@dataclass(frozen=True)
class Choice:
    """How points are evaluated; stored with the result, since it decides the last bits of the values.

    Attributes:
        batch_size: examples a forward; 0 keeps the batches as they were given.
        channels_last: whether images and convolution weights lie channels last.
        points_per_launch: how many points one batched evaluation computes; 1 is the plain forward.
        precision: "native" (the dtype of the weights), "tf32" or "bfloat16" (autocast).
        reason: the rule that they follow from, or who chose.
    """

    batch_size: int = 0
    channels_last: bool = False
    points_per_launch: int = 1
    precision: str = "native"
    reason: str = "batches as given"


class GridEvaluation:
    """L and accuracy of several datasets at points of the plane w0 + a d1 + b d2.

    Args:
        problems: name -> problem; the first is the one whose weights and BatchNorm statistics are used, the others give
            more datasets for the same model.
        center: w0, (d,).
        vectors: the directions, each (d,).
        choice: batch size, memory format, points per launch.

    Memory: 4 flat vectors beside the directions, and `points_per_launch` more where several points share a launch.
    """

    def __init__(
        self, problems: Mapping[str, Problem], center: Tensor, vectors: Sequence[Tensor], choice: Choice
    ) -> None:
        self.problems, self.choice = dict(problems), choice
        self.problem = next(iter(problems.values()))
        parameters = self.problem.parameters
        for name, other in problems.items():
            if other.model is not self.problem.model or other.parameters.names != parameters.names:
                raise InputError(f"the dataset {name!r} belongs to another model: build its Problem from the same one")
        self._layout = [_channels_last(s) if choice.channels_last else None for s in parameters]
        self._center = self._packed(center, parameters)
        self._vectors = [self._packed(v, parameters) for v in vectors]
        self._row = self._center.clone()
        self._row_at: float | None = None
        self._buffer = self._center.clone()
        views = self._shaped(self._buffer, parameters)
        # Views of the buffer; copies, which follow it, where the model needs another dtype or alignment.
        tensors = [aligned(v).to(s.dtype) for v, s in zip(views, parameters, strict=True)]
        self._copies = [(t, v) for t, v in zip(tensors, views, strict=True) if t is not v]
        inside = self.problem.evaluator.graph_inside
        # Statistics follow the weights, and shards are copies of the buffer.
        self._rebinds = self.problem.batch_norm == "recalibrate" or spread_of(center) is not None
        self._tensors = [t.detach().requires_grad_() for t in tensors] if inside else tensors  # the same memory
        self._batches = {name: arranged(problem, choice) for name, problem in problems.items()}
        self._classified = {name: problem.classified for name, problem in problems.items()}
        self._weights = {
            name: [b.weight for b in self._batches[name]] if choice.batch_size else problem.batches.weights
            for name, problem in problems.items()
        }

    def __call__(self, points: Sequence[Point]) -> Tensor:
        """Loss and accuracy at the points: (points, datasets, 2), float64, on the device. Within `opened`."""
        size = self.choice.points_per_launch
        if size == 1:
            return self._means([self._one(point) for point in points])
        return torch.cat([self._launch(points[i : i + size]) for i in range(0, len(points), size)])

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Within the context the model computes at the buffer; it is put back afterwards."""
        with self.problem.evaluator.without_graph():
            if self._rebinds:
                yield
            else:
                with self.problem.bound_tensors(self._tensors), self._precision():
                    yield

    def at(self, point: Point) -> Tensor:
        """w0 + a d1 + b d2 as a flat vector (d,) in the order of the parameters."""
        w = self._center.clone()
        for coordinate, vector in zip(point, self._vectors, strict=True):
            w.add_(vector, alpha=coordinate)
        shaped = self._shaped(w, self.problem.parameters)
        return self.problem.parameters.flatten(shaped)

    def lost(self, axis: int, step: float) -> float:
        """What the weights' dtype cannot hold of a step from the center along a direction, relative to the step."""
        return float(displacement_error(self._center, step * self._vectors[axis].float()))

    def gram(self) -> np.ndarray:
        """Inner products of the directions, (directions, directions), float64."""
        rows = [[float(dot(a, b)) for b in self._vectors] for a in self._vectors]
        return np.array(rows, dtype=np.float64)

    # -- one point -----------------------------------------------------------------------------------------------

    def _one(self, point: Point) -> _Values:
        self._move(point)
        if not self._rebinds:
            return self._evaluated()
        with self.problem.bound_tensors(self._tensors), self._precision():
            return self._evaluated()

    def _move(self, point: Point) -> None:
        """Write the point into the buffer, always from the stored center: rounding never adds up over the walk."""
        if len(point) == 1:
            torch.add(self._center, self._vectors[0], alpha=point[0], out=self._buffer)
        else:
            if self._row_at != point[0]:
                torch.add(self._center, self._vectors[0], alpha=point[0], out=self._row)
                self._row_at = point[0]
            torch.add(self._row, self._vectors[1], alpha=point[1], out=self._buffer)
        for tensor, view in self._copies:
            tensor.copy_(view)

    def _evaluated(self) -> _Values:
        """Mean loss and hits of every batch of every dataset, where the model is now: no arithmetic but the model's."""
        values: _Values = []
        for name, problem in self.problems.items():
            losses, hits = [], []
            for batch in self._batches[name]:
                outputs = problem.forward(batch)
                losses.append(problem.batch_loss(outputs, batch).detach() if batch.weight else problem.zero())
                hits.append(count_hits(outputs, batch.target, problem.objective.ignored))
            values.append((losses, hits))
        return values

    def _means(self, points: list[_Values]) -> Tensor:
        """(points, datasets, 2): sums over the batches in float64, weighted by their sizes, for all points at once."""
        columns = []
        for i, (name, problem) in enumerate(self.problems.items()):
            weights = torch.tensor(self._weights[name], dtype=torch.float64, device=self._center.device)
            losses = (
                torch.stack([loss.double() for one in points for loss in one[i][0]]).view(len(points), -1) @ weights
            )
            hits = [hit for one in points for hit in one[i][1]]
            if any(hit is None for hit in hits):
                right = torch.full_like(losses, float("nan"))
            else:
                right = torch.stack(hits).view(len(points), -1).sum(1).double()  # type: ignore[arg-type]
            columns.append(
                problem.summed(torch.stack([losses / problem.weight, right / self._classified[name]], dim=1))
            )
        return torch.stack(columns, dim=1)

    # -- many points per launch ------------------------------------------------------------------------------------

    def _launch(self, points: Sequence[Point]) -> Tensor:
        """All points at once. A short last tile is filled up, so that a tile always has the same shapes."""
        filled = [*points, *[points[-1]] * (self.choice.points_per_launch - len(points))]
        coordinates = torch.tensor(filled, dtype=torch.float64).to(self._center)
        stacked = self._center + coordinates @ torch.stack(self._vectors)

        def one(w: Tensor) -> Tensor:
            parameters = self.problem.parameters
            tensors = [aligned(v).to(s.dtype) for v, s in zip(self._shaped(w, parameters), parameters, strict=True)]
            with self.problem.bound_tensors(tensors), self._precision():
                return self._means([self._evaluated()])[0]

        counted = {name: problem.passes.forward for name, problem in self.problems.items()}
        values = torch.vmap(one)(stacked)[: len(points)]
        for name, problem in self.problems.items():
            problem.passes.forward += (len(filled) - 1) * (problem.passes.forward - counted[name])
        return values

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        return _precision(self.choice.precision, self._center.device)

    # -- memory format -------------------------------------------------------------------------------------------

    def _packed(self, flat: Tensor, parameters: Parameters) -> Tensor:
        """The vector with every convolution's entries in the order in which they lie in memory."""
        if not any(self._layout):
            return flat.detach()
        tensors = parameters.unflatten(flat.detach())
        return parameters.flatten(
            [t if o is None else t.permute(o) for t, o in zip(tensors, self._layout, strict=True)]
        )

    def _shaped(self, packed: Tensor, parameters: Parameters) -> list[Tensor]:
        """Views of a packed vector in the model's shapes."""
        pieces = packed.split([s.shape.numel() for s in parameters])
        views = []
        for piece, slot, order in zip(pieces, parameters, self._layout, strict=True):
            if order is None:
                views.append(piece.view(slot.shape))
            else:
                inverse = sorted(range(len(order)), key=order.__getitem__)
                views.append(piece.view([slot.shape[a] for a in order]).permute(inverse))
        return views


def arranged(problem: Problem, choice: Choice) -> Sequence[Batch]:
    """The problem's batches in the chosen size and memory format."""
    batches: Sequence[Batch] = problem.batches  # type: ignore[assignment]
    if choice.batch_size:
        batches = list(problem.rebatched(choice.batch_size).batches)
    return [b.map(_image_channels_last) for b in batches] if choice.channels_last else batches


def _image_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _channels_last(slot: Slot) -> tuple[int, ...] | None:
    """Order of dimensions in memory of a convolution's weight."""
    return (0, 2, 3, 1) if len(slot.shape) == 4 else None


def _precision(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return tf32(True) if precision == "tf32" and device.type == "cuda" else contextlib.nullcontext()
