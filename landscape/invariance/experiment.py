"""The rows of the invariance test, one a network, each computed by itself: in turn, or shared by processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.invariance.measures import (
    InvarianceOptions,
    Value,
    adaptive_ball,
    bias_treatments,
    kept_values,
    measure,
    read_values,
    take,
    values_of_rows,
)
from landscape.invariance.rescaling import Symmetries
from landscape.invariance.result import relative_spread
from landscape.invariance.rotations import candidates, rotated
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.random import stream
from landscape.results.journal import Journal

_BLOCKS = 1000
"""Blocks of transforms to be shared, at most: each is a file for a while."""
_ROTATIONS = 10
Rows = Mapping[str, Callable[[], Any]]
"""Name of a row -> what computes it, as plain JSON values."""


@dataclass(frozen=True)
class Experiment:
    """Networks of one function, and what is taken at each.

    Attributes:
        problem: at the weights themselves.
        symmetries: of its network.
        taus: of every transform: the factors.
        maps: of every transform: a matrix for each head; none without attention.
        settings: of the measures.
        reference: outputs at the weights themselves.
        seed: of the rotations.
    """

    problem: Problem
    symmetries: Symmetries
    taus: Sequence[Tensor]
    maps: Sequence[Sequence[Tensor]]
    settings: InvarianceOptions
    reference: Tensor
    seed: int

    def rows(self) -> Rows:
        """Everything that is computed. Costs a pass for each set of weights whose outputs are a reference."""
        rows: dict[str, Callable[[], Any]] = {"reference": lambda: kept_values(measure(self.problem, self.settings))}
        rows |= {f"rescaled {j}": partial(self._rescaled, tau) for j, tau in enumerate(self.taus)}
        rows |= {f"mapped {j}": partial(self._mapped, maps) for j, maps in enumerate(self.maps)}
        for name, w in self._weights_alone().items():
            reference = self.problem.outputs(w)
            rows |= {f"{name} {j}": partial(self._scaled_alone, w, reference, tau) for j, tau in enumerate(self.taus)}
        return {**rows, "rotations": self._rotations}

    def counted(self, compute: Callable[[], Any]) -> dict[str, Any]:
        """A row with its passes, which count nowhere else."""
        passes, before = self.problem.passes, asdict(self.problem.passes)
        row = compute()
        spent = {k: v - before[k] for k, v in asdict(passes).items()}
        vars(passes).update(before)
        return {"row": row, "passes": spent}

    def row(self, name: str, compute: Callable[[], Any], journal: Journal, bar: Bar) -> Any:
        """The row, as the journal keeps it or computed now; either way its passes count now."""
        kept = journal.row(name, partial(self.counted, compute))
        if kept.keys() != {"row", "passes"}:  # release 0.1.0 kept the row alone
            kept = {"row": kept, "passes": {}}
        passes = self.problem.passes
        vars(passes).update({k: v + kept["passes"].get(k, 0) for k, v in asdict(passes).items()})
        bar.advance()
        return kept["row"]

    def blocks(self, rows: Rows) -> dict[tuple[str, ...], Callable[[], list[Any]]]:
        """The rows in pieces to be shared, those of a few transforms together: names -> what computes them."""
        size = -(-len(self.taus) // _BLOCKS)
        parts: dict[str | int, list[str]] = {}
        for name in rows:
            number = name.rpartition(" ")[2]
            parts.setdefault(int(number) // size if number.isdecimal() else name, []).append(name)
        return {tuple(part): partial(self._together, [rows[name] for name in part]) for part in parts.values()}

    def _together(self, computations: Sequence[Callable[[], Any]]) -> list[Any]:
        return [self.counted(compute) for compute in computations]

    def outcome(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of an `Invariance` from all rows."""
        first = read_values(rows["reference"])
        rescaled, mapped = _numbered(rows, "rescaled"), _numbered(rows, "mapped")
        changes, names = [row["change"] for row in rescaled], list(first)
        values = values_of_rows(rescaled, names)
        return {
            "names": names,
            "values": values,
            "reference": np.array([first[name].value for name in names]),
            "rho": np.array([first[name].rho for name in names]),
            "tolerance": np.array([rounding_of(v, first[n].rounding) for n, v in zip(names, values, strict=True)]),
            "logits": np.array([row["logits"] for row in rescaled]),
            "output_changes": np.array(changes),
            "mapped": values_of_rows(mapped, names) if mapped else None,
            "mapped_changes": np.array([row["change"] for row in mapped]) if mapped else None,
            "biases": list(_table_of_biases(rows, max(changes))),
            "rotations": rows["rotations"],
        }

    # -- rows ------------------------------------------------------------------------------------------------------

    def _rescaled(self, tau: Tensor) -> dict[str, Any]:
        """One rescaled network: measures, outputs for the first few inputs, change of all outputs, treatments."""
        rescaled = self.symmetries.apply(self.problem.weights, tau)
        moved = self.problem.relocated(rescaled.weights, rescaled.buffers)
        outputs = moved.outputs()
        few = outputs[:5].reshape(min(5, len(outputs)), -1)
        return {
            "measures": kept_values(measure(moved, self.settings)),
            "logits": few.double().cpu().tolist(),
            "change": relative_change(outputs, self.reference),
            "treatments": bias_treatments(moved, self.settings.adaptive_rho),
        }

    def _mapped(self, maps: Sequence[Tensor]) -> dict[str, Any]:
        """One network whose heads are mapped: measures, change of all outputs."""
        ones = torch.ones(self.symmetries.dimension, dtype=torch.float64)
        moved = self.problem.relocated(self.symmetries.apply(self.problem.weights, ones, maps=maps).weights)
        change = relative_change(moved.outputs(), self.reference)
        return {"measures": kept_values(measure(moved, self.settings)), "change": change}

    def _weights_alone(self) -> dict[str, Tensor]:
        """Weights that are rescaled while the biases stay: as they are, and with biases of 0 where there are any."""
        w = self.problem.weights
        biases = self.problem.parameters.mask(lambda s: s.kind == "bias", w)
        return {"weights only": w, **({"biases 0": w * (1 - biases)} if biases.any() else {})}

    def _scaled_alone(self, w: Tensor, reference: Tensor, tau: Tensor) -> dict[str, Any]:
        """Change of the outputs, and adaptive sharpness, where the weights are rescaled and the biases stay."""
        rescaled = self.symmetries.apply(w, tau, weights_only=True)
        moved = self.problem.relocated(rescaled.weights, rescaled.buffers)
        change = relative_change(moved.outputs(), reference)
        return {"change": change, "treatments": bias_treatments(moved, self.settings.adaptive_rho)}

    def _rotations(self) -> list[dict[str, Any]]:
        """Pairs of linear layers between which a rotation passes unseen: by how much adaptive sharpness varies."""
        rows = []
        for first, second in candidates(self.symmetries):
            generator = stream(self.seed, f"rotation of {first}")
            points = [rotated(self.problem, first, second, generator) for _ in range(_ROTATIONS)]
            worst = relative_change(self.problem.outputs(points[0]), self.reference)
            if worst > rounding_of(np.ones(1), torch.finfo(self.reference.dtype).eps):  # an activation lies between
                continue
            values: dict[str, list[float]] = {}
            for w in [self.problem.weights, *points]:
                worst = max(worst, relative_change(self.problem.outputs(w), self.reference))
                for name, value in self._adaptive(self.problem.relocated(w)).items():
                    values.setdefault(name, []).append(value)
            spreads = {name: relative_spread(np.array(v)) for name, v in values.items()}
            layers = [first.rpartition(".")[0], second.rpartition(".")[0]]
            rows.append({"layers": layers, "draws": _ROTATIONS, "function_residual": worst, "relative_spread": spreads})
        return rows

    def _adaptive(self, problem: Problem) -> dict[str, float]:
        settings = self.settings
        values: dict[str, Value] = {}
        for p in settings.orders:
            rho, ending = (settings.adaptive_rho, "") if p == 2 else (settings.adaptive_rho_inf, "_linf")
            ball = adaptive_ball(problem, rho, p, "elementwise", "scaled", settings.steps)
            take(values, f"adaptive_sharpness{ending}", f"worst_case_adaptive_sharpness{ending}", ball)
        return {name: value.value for name, value in values.items()}


def relative_change(outputs: Tensor, reference: Tensor) -> float:
    """The largest |f' - f| over the largest |f|."""
    return float((outputs - reference).abs().max() / reference.abs().max().clamp(min=torch.finfo(outputs.dtype).tiny))


def rounding_of(values: np.ndarray, rounding: float) -> float:
    """Relative spread up to which differences are rounding: 1e-9, or what the digits of the loss leave of a value."""
    center = abs(float(np.median(values)))
    return max(1e-9, 100 * rounding / center) if center > 0 else 1e-9


def _numbered(rows: Mapping[str, Any], kind: str) -> list[Any]:
    """Rows of one kind, by their numbers."""
    return [row for name, row in rows.items() if name.rpartition(" ")[0] == kind]


def _table_of_biases(rows: Mapping[str, Any], change: float) -> Iterator[dict[str, Any]]:
    """Weights alone, and weights with biases: does the function stay, and does the measure?

    Where all biases are 0, scaling the weights alone is a symmetry: the case in which the ASAM authors' code could be
    invariant, were it not that it perturbs biases too.
    """
    both, alone = _numbered(rows, "rescaled"), _numbered(rows, "weights only")
    zero = _numbered(rows, "biases 0") or alone
    for name, kind, residual in (
        ("weights only", alone, max(row["change"] for row in alone)),
        ("weights and biases", both, change),
        ("weights only, biases 0", zero, max(row["change"] for row in zero)),
    ):
        treatments = [row["treatments"] for row in kind]
        spreads = {n: relative_spread(np.array([t[n] for t in treatments])) for n in treatments[0]}
        yield {"transform": name, "function_residual": residual, "relative_spread": spreads}
