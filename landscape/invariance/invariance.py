"""The invariance test: which measures of sharpness see the network's function, and which its parametrization.

A network is replaced by n others that compute the same function, random members of its group of rescalings
(`landscape.invariance.rescaling`), and, where it has attention, by n whose heads are mapped by random matrices; every
measure is taken at each. What changes then is no property of the function.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.invariance import rescaling
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
from landscape.invariance.rotations import candidates, rotated
from landscape.problem.problem import Problem
from landscape.progress import Bar
from landscape.random import stream
from landscape.results import digest
from landscape.results.journal import Journal
from landscape.results.result import Result, array, plain
from landscape.sharpness.checks import check_weights


@dataclass(frozen=True, kw_only=True)
class Invariance(Result):
    """Every measure at n networks of one function.

    Attributes:
        names: the measures.
        values: (measure, transform).
        reference: (measure,) at the weights themselves.
        rho: (measure,) radius; nan for a measure without one.
        tolerance: (measure,) relative spread up to which differences are rounding.
        logits: (transform, input, output) of the first few inputs.
        output_changes: (transform,) max |f' - f| / max |f| over all inputs.
        mapped: (measure, transform) where a random invertible matrix passes through every head of attention; None
            without such heads.
        mapped_changes: (transform,) as `output_changes`, of these networks.
        groups: the symmetries: dimension, blocks, residual, heads, what was rejected.
        biases: rows of the table on biases: transform, function residual, relative spread under each treatment.
        rotations: pairs of layers without activation between them, rotated: function residual and relative spread.
    """

    names: list[str]
    values: np.ndarray = array("measure", "transform")
    reference: np.ndarray = array("measure")
    rho: np.ndarray = array("measure")
    tolerance: np.ndarray = array("measure")
    logits: np.ndarray = array("transform", "input", "output")
    output_changes: np.ndarray = array("transform")
    mapped: np.ndarray | None = array("measure", "transform", default=None)
    mapped_changes: np.ndarray | None = array("transform", default=None)
    groups: dict[str, Any] = field(default_factory=dict)
    biases: list[dict[str, Any]] = field(default_factory=list)
    rotations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def measures(self) -> list[str]:
        """Names along the axis `measure`."""
        return self.names

    def of(self, name: str) -> np.ndarray:
        """Values of one measure: (transform,)."""
        return self.values[self.names.index(name)]

    def spread(self, name: str) -> float:
        """(max - min) / |median| over the transforms."""
        return relative_spread(self.of(name))

    def verdict(self, name: str) -> str:
        """In words: invariant (to rounding), or the factor by which the measure varies."""
        return verdict(self.of(name), float(self.tolerance[self.names.index(name)]))

    def attention(self) -> dict[str, Any] | None:
        """What invertible maps of heads do: outputs, and values, spread and verdict of every measure."""
        if self.mapped is None or self.mapped_changes is None:
            return None
        rows = {
            name: {"values": row, "relative_spread": relative_spread(row), "verdict": verdict(row, float(tolerance))}
            for name, row, tolerance in zip(self.names, self.mapped, self.tolerance, strict=True)
        }
        return {"outputs": {"max_relative_change": float(self.mapped_changes.max())}, "measures": rows}

    def summary(self) -> dict[str, Any]:
        """The JSON of `landscape invariance`."""
        measures = {
            name: {
                "values": self.values[i],
                "reference": self.reference[i],
                "rho": None if math.isnan(self.rho[i]) else self.rho[i],
                "relative_spread": self.spread(name),
                "tolerance": self.tolerance[i],
                "verdict": self.verdict(name),
            }
            for i, name in enumerate(self.names)
        }
        change = float(self.output_changes.max()) if len(self.output_changes) else 0.0
        return plain(
            {
                **self.arguments,
                "measures": measures,
                "outputs": {"max_relative_change": change},
                "groups": self.groups,
                "attention": self.attention(),
                "biases": self.biases,
                "not_claimed": {"rotations": self.rotations},
                "cost": self.cost,
                "seconds": self.seconds,
            }
        )


def rescaling_invariance(
    problem: Problem,
    *,
    transforms: int = 50,
    low: float = 0.5,
    high: float = 1.5,
    settings: InvarianceOptions | None = None,
    hints: Mapping[str, str] | None = None,
    seed: int = 0,
    journal: Journal | None = None,
) -> Invariance:
    """Take every measure at random rescalings of a network that keep its function.

    The symmetries are found from the model and verified (`landscape.rescaling.find`); each transform draws all factors
    tau uniformly from [low, high) and moves weights and BatchNorm statistics. Expected in float64: outputs equal to
    rounding; element-wise adaptive sharpness with biases scaled or fixed, and the top eigenvalue of T H T, equal to
    1e-9; not so SAM sharpness, the top eigenvalue of H, filter-wise and layer-wise sharpness, the ASAM authors' code.

    Where the network has attention, n more networks are made by a random invertible matrix for every head, with
    singular values from [low, high): queries against keys, values against the layer that reads them (`mapped`). Of all
    measures of sharpness geodesic sharpness alone stays, and the Fisher-Rao norm; under rescalings that reach into a
    head's weights from outside (a gain of a norm) geodesic sharpness varies.

    Not claimed, and shown: element-wise measures are invariant under positive diagonal rescaling only. Where two linear
    layers have no activation between them, rotating what passes between them keeps the function too, and changes them
    (`rotations`). And a scaling of weights that leaves the biases is no symmetry (`biases`).

    Args:
        problem: the loss; a float64 model shows the invariance to 1e-9, a float32 one to its own rounding.
        transforms: number n of networks.
        low: smallest factor, > 0.
        high: largest factor.
        settings: radii, orders, steps of the measures.
        hints: for a model that cannot be traced, see `landscape.invariance.rescaling.find`.
        seed: of the factors.
        journal: keeps what is finished, so that an interrupted run goes on; default in memory only.

    Returns:
        The values and their verdicts; without any measure where the network has no symmetry.

    Raises:
        InputError: outputs that differ between two evaluations (the test would mean nothing), a model that cannot be
            traced, fewer than 2 transforms, not 0 < low < high, a radius that is not positive, p not 2 or inf, nan
            weights.

    Cost: for each transform about 5 worst-case ascents for each p and 2 Lanczos runs; with attention twice that.
    Source: Kwon 2021 (arXiv 2102.11600), Definition 2 and Theorem 2.
    """
    settings = (settings or InvarianceOptions()).with_hints(hints or {})
    if transforms < 2:
        raise InputError(f"transforms={transforms}: a spread needs at least 2")
    check_weights(problem)
    reference = _deterministic_outputs(problem)
    chosen = {**asdict(settings), "orders": ["inf" if math.isinf(p) else p for p in settings.orders]}
    arguments = {"transforms": transforms, "low": low, "high": high, "seed": seed, **chosen}
    journal = journal or Journal()
    start = time.perf_counter()
    with problem.counting() as cost, Bar("rescalings", 3 * transforms + 1) as bar:
        symmetries = rescaling.find(
            problem.model,
            problem.few_examples(8),
            parameters=problem.parameters,
            hints=hints,
            batch_norm=problem.batch_norm,
        )
        generator = stream(seed, "rescaling")
        taus = [symmetries.sample(generator, low, high) for _ in range(transforms)]
        journal.open(_key_of(problem, {**arguments, "hints": dict(hints or {})}))
        maps = [symmetries.sample_maps(stream(seed, f"maps {j}"), low, high) for j in range(transforms)]
        run = _Run(problem, symmetries, taus, maps if symmetries.heads else [], settings, reference, bar, journal)
        parts = run.all() if symmetries.dimension else _nothing(reference)
        rotations = run.rotations(seed) if symmetries.dimension else []
    return Invariance(
        **parts,
        groups=symmetries.summary(),
        rotations=rotations,
        arguments=arguments,
        cost=cost,
        seconds=time.perf_counter() - start,
        provenance=problem.provenance(),
    )


def relative_spread(values: np.ndarray) -> float:
    """(max - min) / |median|; 0 where all are equal, also to 0; nan where one is not finite."""
    if not np.isfinite(values).all():
        return math.nan
    width, center = float(np.ptp(values)), abs(float(np.median(values)))
    return 0.0 if width == 0 else width / center if center > 0 else math.inf


def verdict(values: np.ndarray, tolerance: float) -> str:
    """In words: invariant (to rounding), or by which factor the values vary."""
    if not np.isfinite(values).all():
        return "not finite at some rescalings"
    if relative_spread(values) <= tolerance:
        return "invariant (to rounding)"
    low, high = float(np.abs(values).min()), float(np.abs(values).max())
    if values.min() < 0 < values.max() or low == 0:
        return f"varies between {values.min():.3g} and {values.max():.3g}"
    factor = high / low
    return f"varies by a factor {factor:.3g}" if factor >= 1.01 else f"varies by a factor 1 + {factor - 1:.1e}"


# -- the experiment ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    problem: Problem
    symmetries: Symmetries
    taus: Sequence[Tensor]
    maps: Sequence[Sequence[Tensor]]
    settings: InvarianceOptions
    reference: Tensor
    bar: Bar
    journal: Journal

    def all(self) -> dict[str, Any]:
        """Measures at every transform, outputs, and the table on biases."""
        first = read_values(self._row("reference", lambda: kept_values(measure(self.problem, self.settings))))
        rows = [self._row(f"rescaled {j}", partial(self._at, tau)) for j, tau in enumerate(self.taus)]
        mapped = [self._row(f"mapped {j}", partial(self._mapped, maps)) for j, maps in enumerate(self.maps)]
        changes, names = [row["change"] for row in rows], list(first)
        values = values_of_rows(rows, names)
        return {
            "names": names,
            "values": values,
            "reference": np.array([first[name].value for name in names]),
            "rho": np.array([first[name].rho for name in names]),
            "tolerance": np.array([_tolerance(v, first[n].rounding) for n, v in zip(names, values, strict=True)]),
            "logits": np.array([row["logits"] for row in rows]),
            "output_changes": np.array(changes),
            "mapped": values_of_rows(mapped, names) if mapped else None,
            "mapped_changes": np.array([row["change"] for row in mapped]) if mapped else None,
            "biases": self._biases([row["treatments"] for row in rows], max(changes)),
        }

    def _at(self, tau: Tensor) -> dict[str, Any]:
        """One rescaled network: measures, outputs for the first few inputs, change of all outputs, treatments."""
        rescaled = self.symmetries.apply(self.problem.weights, tau)
        moved = self.problem.relocated(rescaled.weights, rescaled.buffers)
        outputs = moved.outputs()
        few = outputs[:5].reshape(min(5, len(outputs)), -1)
        return {
            "measures": kept_values(measure(moved, self.settings)),
            "logits": few.double().cpu().tolist(),
            "change": _change(outputs, self.reference),
            "treatments": bias_treatments(moved, self.settings.adaptive_rho),
        }

    def _mapped(self, maps: Sequence[Tensor]) -> dict[str, Any]:
        """One network whose heads are mapped: measures, change of all outputs."""
        ones = torch.ones(self.symmetries.dimension, dtype=torch.float64)
        moved = self.problem.relocated(self.symmetries.apply(self.problem.weights, ones, maps=maps).weights)
        change = _change(moved.outputs(), self.reference)
        return {"measures": kept_values(measure(moved, self.settings)), "change": change}

    def _row(self, name: str, compute: Callable[[], Any]) -> Any:
        """The row, with its passes: those of a kept one count as if it had been computed now."""
        passes, before = self.problem.passes, asdict(self.problem.passes)

        def counted() -> dict[str, Any]:
            row = compute()
            return {"row": row, "passes": {k: v - before[k] for k, v in asdict(passes).items()}}

        kept = self.journal.row(name, counted)
        if kept.keys() != {"row", "passes"}:  # release 0.1.0 kept the row alone
            kept = {"row": kept, "passes": {}}
        vars(passes).update({k: v + kept["passes"].get(k, 0) for k, v in before.items()})
        self.bar.advance()
        return kept["row"]

    def _biases(self, both: list[dict[str, float]], change: float) -> list[dict[str, Any]]:
        """Weights alone, and weights with biases: does the function stay, and does the measure?

        Where all biases are 0, scaling the weights alone is a symmetry: the case in which the ASAM authors' code could
        be invariant, were it not that it perturbs biases too.
        """
        biases = self.problem.parameters.mask(lambda s: s.kind == "bias", self.problem.weights)
        alone = self._weights_alone("weights only", self.problem.weights)
        zero = self._weights_alone("biases 0", self.problem.weights * (1 - biases)) if biases.any() else alone
        rows = [("weights only", alone), ("weights and biases", (change, both)), ("weights only, biases 0", zero)]
        return [
            {"transform": name, "function_residual": residual, "relative_spread": _spreads(values)}
            for name, (residual, values) in rows
        ]

    def _weights_alone(self, name: str, w: Tensor) -> tuple[float, list[dict[str, float]]]:
        """Outputs and adaptive sharpness where the weights are rescaled and the biases stay."""
        reference = self.problem.outputs(w)

        def at(tau: Tensor) -> dict[str, Any]:
            rescaled = self.symmetries.apply(w, tau, weights_only=True)
            moved = self.problem.relocated(rescaled.weights, rescaled.buffers)
            change = _change(moved.outputs(), reference)
            return {"change": change, "treatments": bias_treatments(moved, self.settings.adaptive_rho)}

        rows = [self._row(f"{name} {j}", partial(at, tau)) for j, tau in enumerate(self.taus)]
        return max(row["change"] for row in rows), [row["treatments"] for row in rows]

    def rotations(self, seed: int, draws: int = 10) -> list[dict[str, Any]]:
        """Pairs of linear layers between which a rotation passes unseen: by how much adaptive sharpness varies."""
        rows = []
        for first, second in candidates(self.symmetries):
            generator = stream(seed, f"rotation of {first}")
            points = [rotated(self.problem, first, second, generator) for _ in range(draws)]
            worst = _change(self.problem.outputs(points[0]), self.reference)
            if worst > _tolerance(np.ones(1), torch.finfo(self.reference.dtype).eps):  # an activation lies between
                continue
            values: dict[str, list[float]] = {}
            for w in [self.problem.weights, *points]:
                worst = max(worst, _change(self.problem.outputs(w), self.reference))
                for name, value in self._adaptive(self.problem.relocated(w)).items():
                    values.setdefault(name, []).append(value)
            spreads = {name: relative_spread(np.array(v)) for name, v in values.items()}
            layers = [first.rpartition(".")[0], second.rpartition(".")[0]]
            rows.append({"layers": layers, "draws": draws, "function_residual": worst, "relative_spread": spreads})
        return rows

    def _adaptive(self, problem: Problem) -> dict[str, float]:
        settings = self.settings
        values: dict[str, Value] = {}
        for p in settings.orders:
            rho, ending = (settings.adaptive_rho, "") if p == 2 else (settings.adaptive_rho_inf, "_linf")
            ball = adaptive_ball(problem, rho, p, "elementwise", "scaled", settings.steps)
            take(values, f"adaptive_sharpness{ending}", f"worst_case_adaptive_sharpness{ending}", ball)
        return {name: value.value for name, value in values.items()}


def _nothing(reference: Tensor) -> dict[str, Any]:
    empty = np.zeros(0)
    arrays = dict.fromkeys(("reference", "rho", "tolerance", "output_changes"), empty)
    return {"names": [], "values": np.zeros((0, 0)), "logits": np.zeros((0, 0, 0)), **arrays}


def _spreads(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: relative_spread(np.array([row[name] for row in rows])) for name in rows[0]}


def _tolerance(values: np.ndarray, rounding: float) -> float:
    """Relative spread up to which differences are rounding: 1e-9, or what the digits of the loss leave of a value."""
    center = abs(float(np.median(values)))
    return max(1e-9, 100 * rounding / center) if center > 0 else 1e-9


def _change(outputs: Tensor, reference: Tensor) -> float:
    return float((outputs - reference).abs().max() / reference.abs().max().clamp(min=torch.finfo(outputs.dtype).tiny))


def _deterministic_outputs(problem: Problem) -> Tensor:
    first, second = problem.outputs(), problem.outputs()
    change = _change(second, first)
    if not change <= 100 * torch.finfo(first.dtype).eps:
        causes = "; ".join(problem.random_causes) or "randomness or state in the model"
        raise InputError(
            f"two evaluations of the outputs differ by {change:.1e} relative ({causes}): an invariance test would mean "
            "nothing; make the model and the batches deterministic"
        )
    return first


def _key_of(problem: Problem, arguments: dict[str, Any]) -> str:
    """What rows belong to: the weights, buffers and sample of a problem, and what was asked."""
    asked = json.dumps(arguments, sort_keys=True, default=str)
    facts = (problem.batches.fingerprint(), problem.batch_norm, problem.parameters.names, problem.loss_name)
    return digest.of_parts([asked, problem.weights, *problem.model.buffers(), repr(problem.model), str(facts)])
