"""Largest eigenvalues of the Hessian's diagonal blocks, one block a layer, in one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from landscape import random
from landscape.curvature import krylov, operators
from landscape.curvature.products.hessian_graph import HessianGraph
from landscape.measure import measure
from landscape.problem.problem import Problem
from landscape.progress import track
from landscape.results.result import Result, array


@dataclass(frozen=True, kw_only=True)
class LayerEigenvalues(Result):
    """Largest eigenvalues of the layers' blocks.

    Attributes:
        layers: names of the layers.
        sizes: (layers,) number of parameters of each.
        values: (layers, k) largest first; nan where a layer has fewer than k parameters.
        error_bounds: (layers, k): an eigenvalue of the block lies within this distance.
        hvps: (layers,) products with each block.
        converged: whether every bound is at most tol |lambda|, or the block's rounding where that is more, and the
            looks for missed eigenvalues saw no more, with a `missed_probability` of at most 20% each.
        missed_probability: (layers,) that the look overlooked a larger eigenvalue of the block, if there is one.
    """

    layers: list[str]
    sizes: np.ndarray = array("layer")
    values: np.ndarray = array("layer", "index")
    error_bounds: np.ndarray = array("layer", "index")
    hvps: np.ndarray = array("layer")
    converged: bool
    missed_probability: np.ndarray | None = array("layer", default=None)

    def summary(self) -> dict[str, Any]:
        """Values and bounds by the name of the layer."""
        rows = zip(self.layers, self.values, self.error_bounds, self.hvps, strict=True)
        layers = {n: {"values": v, "error_bounds": b, "hvps": h} for n, v, b, h in rows}
        return self.summary_of({"layers": layers, "converged": self.converged})


@measure(
    "layer_eigenvalues",
    label="Largest eigenvalue of the Hessian's block",
    meaning="Which layer is how sharp.",
    unit="loss / weight²",
)
def layer_eigenvalues(
    problem: Problem,
    w: Tensor | None = None,
    *,
    k: int = 1,
    tol: float = 1e-2,
    kind: str = "all",
    max_hvps: int = 100,
    chunk_size: int | None = None,
    seed: int = 0,
) -> LayerEigenvalues:
    """Largest eigenvalues of each layer's diagonal block of the Hessian, with error bounds.

    All blocks share one kept graph of the first derivative; a product with a block is a second backward pass that is
    restricted to the layer. Entries of a full product H v would not do: they hold the other layers' influence, and
    their eigenvalues have been seen 93 times too large.

    Every block is looked at a second time for what its first process missed (a layer repeats eigenvalues where its
    outputs do not meet again, as the last layer of a regression), as `hessian_top_eigenvalues` does.

    Cost: about 15 block products per layer; the blocks of a 20-layer ResNet cost about 5 full products per step.
    Source: Zhang 2024 (arXiv 2402.16788) for the spectra of the blocks H_l = d^2 L / dw_l^2.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        k: eigenvalues of each layer; fewer where a layer has fewer parameters.
        tol: residual allowed, relative to each |lambda|.
        kind: "all" layers, or "weight" for those that hold a weight (no norms, no tokens).
        max_hvps: block products allowed for each layer, the look included; then converged is False.
        chunk_size: examples differentiated at once; None chooses.
        seed: draws the start vectors.

    Raises:
        InputError: k < 1, tol <= 0, or what the Hessian's products raise.

    Example:
        >>> import landscape, torch
        >>> line = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> x, _ = torch.ones(4, 1, dtype=torch.float64), torch.nn.init.ones_(line.weight)
        >>> problem = landscape.Problem(line, torch.nn.MSELoss(), [(x, 2 * x)])  # L(w) = (w - 2)^2 at w = 1
        >>> blocks = landscape.layer_eigenvalues(problem)
        >>> blocks.layers, blocks.values.round(6).tolist()
        (['weight'], [[2.0]])
    """
    krylov.check_request(k, problem.dimension, tol)
    slots = problem.parameters.slots
    layers = {
        name: positions
        for name, positions in operators.layers(problem).items()
        if kind == "all" or any(slots[i].kind == "weight" for i in positions)
    }
    values = np.full((len(layers), k), np.nan)
    bounds = values.copy()
    sizes, spent, missed, converged = [], [], [], True
    graph = HessianGraph(problem, w, chunk_size=chunk_size)
    for row, (name, positions) in enumerate(track(layers.items(), "layers", total=len(layers))):
        block = operators.block(graph, positions)
        pairs = krylov.lanczos(
            block,
            count := min(k, block.dimension),
            tol=tol,
            hint=block.hint(),
            generator=random.stream(seed, f"lanczos {name}"),
            max_products=max_hvps,
        )
        values[row, :count], bounds[row, :count] = pairs.values, pairs.residuals
        sizes.append(block.dimension)
        spent.append(pairs.products)
        missed.append(np.nan if pairs.missed_probability is None else pairs.missed_probability)
        converged &= pairs.converged
    return LayerEigenvalues(
        layers=list(layers),
        sizes=np.array(sizes),
        values=values,
        error_bounds=bounds,
        hvps=np.array(spent),
        converged=converged,
        missed_probability=np.array(missed),
        provenance=graph.facts(),
    )
