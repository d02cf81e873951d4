"""Relative flatness of a layer: the Hessian's trace, weighed by the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape import random
from landscape.curvature import operators, stochastic
from landscape.curvature.products.hessian_graph import HessianGraph
from landscape.errors import InputError, unknown
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.progress import track
from landscape.results.result import Result, array
from landscape.sharpness.checks import check_weights


@dataclass(frozen=True, kw_only=True)
class RelativeFlatness(Result):
    """Relative flatness of one layer, or of several.

    Attributes:
        value: kappa; of several layers the sum.
        stderr: its standard error, widened for the few probes that it rests on; 0 where nothing was sampled.
        exact: whether nothing was sampled.
        layers: names of the weights.
        layer_values: (layer,) kappa of each.
        layer_stderr: (layer,) their standard errors.
        hvps: products with the layers' blocks of the Hessian.
    """

    value: float
    stderr: float
    exact: bool
    layers: list[str]
    layer_values: np.ndarray = array("layer")
    layer_stderr: np.ndarray = array("layer")
    hvps: int

    def summary(self) -> dict[str, Any]:
        """Value, standard error, and the layers by name."""
        layers = dict(zip(self.layers, self.layer_values, strict=True))
        return self.summary_of({k: getattr(self, k) for k in ("value", "stderr", "exact", "hvps")} | {"layers": layers})


@measure(
    "relative_flatness",
    label="Relative flatness",
    meaning="Curvature of the loss in the weights of a layer (the last unless others are asked for), weighed by the "
    "products of the weights themselves. Smaller is flatter.",
    unit="loss",
    flat="small",
)
def relative_flatness(
    problem: Problem,
    w: Tensor | None = None,
    *,
    layer: str = "last",
    probes: int = 100,
    chunk_size: int | None = None,
    seed: int = 0,
) -> RelativeFlatness:
    """Relative flatness of a layer: kappa = sum_{s,t} <w_s, w_t> tr H_st, small where it is flat.

    w_s are the rows of the layer's weight W (the incoming weights of one neuron; a convolution's filters), H_st the
    block of the Hessian between rows s and t. It is tr(R'HR) with R Z = W Z for the m x m matrices Z that mix the
    inputs of the layer: the mean second derivative of the loss under a relative perturbation W (I + Z) of the layer,
    which is a perturbation of its inputs. For a layer with one output it is ||w||^2 tr H; for the last layer under
    cross-entropy mean_i ||phi_i||^2 tr(WW' (diag p_i - p_i p_i')), phi_i its inputs.
    Invariant where all inputs of a layer are divided by one factor and W multiplied by it, and where rows (what leaves
    it) are multiplied by factors of their own; *not* where each input has a factor of its own, D: tr(D^-1 H_st D^-1)
    and <D w_s, D w_t> then change apart. Of a network's hidden units only the first layer's measure is thus invariant
    under all rescalings, and any layer's under those that treat the units of a layer alike.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        layer: "last" (the last weight in the order in which the model registers them), "first", "all", or the name of
            one, with or without ".weight".
        probes: Hessian-vector products allowed for each layer; where they suffice for a basis nothing is sampled.
        chunk_size: examples differentiated at once; None chooses.
        seed: draws the probes.

    Returns:
        RelativeFlatness with `value`, `stderr`, `layers`, `layer_values`.

    Raises:
        InputError: no weight, or none of that name; fewer than 4 probes; a model without second derivative.

    Cost: for each layer at most `probes` Hessian-vector products with its block.
    Source: Petzka, Kamp, Adilova, Sminchisescu and Boley 2021 (arXiv 2001.00939), Definition 3. They take the layer
    behind the features, here "last". Differs from their code: no dense Hessian.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.constant_(line.weight, 3.0)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 3
        >>> flatness = landscape.relative_flatness(problem)
        >>> round(flatness.value, 6), flatness.exact  # w^2 H
        (18.0, True)
    """
    stochastic.check(probes, None)
    check_weights(problem)
    positions = _positions(problem, layer)
    names = [problem.parameters.names[i] for i in positions]
    graph = HessianGraph(problem, w, chunk_size=chunk_size)
    tensors = problem.parameters.unflatten(problem.at(w))
    estimates = []
    for i, name in track(zip(positions, names, strict=True), "relative flatness", total=len(names)):
        mixed = _Mixed(operators.block(graph, [i]), tensors[i], problem.parameters.slots[i].filter_axis)
        generator = random.stream(seed, f"relative flatness {name}")
        estimates.append(stochastic.trace(mixed.matvec, mixed.like, probes=probes, generator=generator))
    values, errors = (np.array([getattr(e, k) for e in estimates]) for k in ("value", "stderr"))
    return RelativeFlatness(
        value=float(values.sum()),
        stderr=float(np.sqrt((errors**2).sum())),
        exact=all(e.all_units for e in estimates),
        layers=names,
        layer_values=values,
        layer_stderr=errors,
        hvps=sum(e.products for e in estimates),
        provenance=graph.facts(),
    )


class _Mixed:
    """R'HR of one layer, a matrix in the entries of Z.

    Any factor A with A A' = W W' gives the same trace. It is W itself for few inputs, else the triangular A = R' of
    W' = QR, with as many columns as W has rows; both follow a scaling of the rows, so that an estimate from the same
    probes is as invariant as the measure.
    """

    def __init__(self, block: operators.Operator, tensor: Tensor, axis: int) -> None:
        self._block, self._axis = block, axis
        self._shape = tensor.movedim(axis, 0).shape
        rows = tensor.movedim(axis, 0).flatten(1).double()
        outputs, inputs = rows.shape
        factor = rows if inputs < outputs else torch.linalg.qr(rows.mT.cpu(), mode="r").R.mT.to(rows)
        self._factor = factor.to(tensor.dtype)
        self._columns = inputs
        self.like = tensor.new_empty(self._factor.shape[1] * inputs)

    def matvec(self, z: Tensor) -> Tensor:
        """A' H (A Z), the entries of Z in a row."""
        moved = (self._factor @ z.view(-1, self._columns)).view(self._shape)
        v = moved.movedim(0, self._axis).reshape(-1)
        product = self._block.matvec(v).view(moved.movedim(0, self._axis).shape)
        return (self._factor.mT @ product.movedim(self._axis, 0).flatten(1)).reshape(-1)


def _positions(problem: Problem, layer: str) -> list[int]:
    weights = {s.name: i for i, s in enumerate(problem.parameters) if s.kind == "weight"}
    if not weights:
        raise InputError("no parameter is the weight of a layer, with rows: choose other parameters")
    places = list(weights.values())
    if layer in ("last", "first", "all"):
        return {"last": places[-1:], "first": places[:1], "all": places}[layer]
    name = layer if layer in weights else f"{layer}.weight"
    if name not in weights:
        raise unknown("layer", layer, ["last", "first", "all", *weights])
    return [weights[name]]
