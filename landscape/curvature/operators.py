"""Symmetric matrices of a Problem as operators on flat vectors: Hessian, GGN, Fisher, blocks, T H T."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from landscape.ball.scaling import Scaling
from landscape.ball.spread import spread_of
from landscape.ball.vectors import dimension
from landscape.curvature.factorization import wrong_derivative
from landscape.curvature.products.differences import DifferenceProduct
from landscape.curvature.products.gauss_newton import MATRICES, GaussNewtonGraph
from landscape.curvature.products.hessian_graph import HessianGraph
from landscape.errors import InputError, unknown
from landscape.problem.parameters import Parameters
from landscape.problem.problem import Problem

HVPS = ("double-backward", "differences")


@dataclass(frozen=True)
class Operator:
    """A symmetric d x d matrix known by its products.

    Attributes:
        name: "hessian", "ggn", ...
        matvec: v (d,) -> A v (d,), in the dtype and on the device of `like`.
        like: a vector with the operator's length, dtype and device.
        facts: what was chosen or measured (chunks, kept graphs, error of differences).
        hint: a vector that is known at little cost and lies near the dominant eigenvectors (the gradient); None if
            none is.
        cause: why its products may not be those of a symmetric matrix, in words.
        add: (total, v): adds A v to `total` in place, without a vector for the product; None where it needs one.
    """

    name: str
    matvec: Callable[[Tensor], Tensor]
    like: Tensor
    facts: Callable[[], dict[str, Any]] = field(default=dict, repr=False)
    hint: Callable[[], Tensor | None] = field(default=lambda: None, repr=False)
    cause: Callable[[], str] = field(default=wrong_derivative, repr=False)
    add: Callable[[Tensor, Tensor], None] | None = field(default=None, repr=False)

    @property
    def dimension(self) -> int:
        """Length d of its vectors."""
        return dimension(self.like)

    def __matmul__(self, v: Tensor) -> Tensor:
        """A v for a vector (d,), column by column for a matrix (d, m)."""
        if v.shape[:1] != self.like.shape:
            raise InputError(
                f"{self.name} is {self.dimension} x {self.dimension}: it cannot multiply shape {tuple(v.shape)}"
            )
        v = v.to(self.like)
        return self.matvec(v) if v.dim() == 1 else torch.stack([self.matvec(c) for c in v.mT.contiguous()], dim=1)

    def accumulate(self, total: Tensor, v: Tensor) -> None:
        """Add A v to `total`, in place."""
        if self.add is None:
            total += self.matvec(v)
        else:
            self.add(total, v)

    def dense(self) -> Tensor:
        """The matrix itself, (d, d), by d products."""
        return self @ torch.eye(self.dimension, dtype=self.like.dtype, device=self.like.device)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator`; products pass through the CPU."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator

        def multiply(x: np.ndarray) -> np.ndarray:
            v = torch.from_numpy(np.ascontiguousarray(x).reshape(-1)).to(self.like)
            return self.matvec(v).cpu().numpy()

        dtype = torch.empty((), dtype=self.like.dtype).numpy().dtype
        return LinearOperator((self.dimension,) * 2, matvec=multiply, rmatvec=multiply, dtype=dtype)  # type: ignore[call-arg]


def hessian(
    problem: Problem,
    w: Tensor | None = None,
    *,
    parameters: str | Sequence[str] | None = None,
    hvp: str = "double-backward",
    chunk_size: int | None = None,
    memory: float | None = None,
) -> Operator:
    """Hessian of L at w, by double backward over kept graphs (see `HessianGraph`) or by central differences.

    Args:
        problem: L.
        w: where (default: the weights of the Problem).
        parameters: shell pattern(s): the diagonal block of these parameters.
        hvp: "double-backward", or "differences" for models without second derivative (see `DifferenceProduct`).
        chunk_size: examples in a chunk; None chooses.
        memory: bytes that kept graphs may take; None is half of the free memory, 0 keeps none.
    """
    if parameters is not None and w is None:
        problem, parameters = problem.restricted(parameters), None
    if hvp not in HVPS:
        raise unknown("kind of Hessian-vector product", hvp, HVPS)
    if hvp != "double-backward":
        if parameters is not None:
            _at_own_weights(w)
        other = DifferenceProduct(problem, w)
        return Operator("hessian", other.product, problem.weights, other.facts, other.gradient, other.cause)
    if spread_of(problem.weights) is not None:
        return _spread(hessian(problem.gathered(w), chunk_size=chunk_size, memory=memory), problem)
    graph = HessianGraph(problem, w, chunk_size=chunk_size, memory=memory)
    if parameters is not None:
        return block(graph, positions(problem, parameters))
    return Operator(
        "hessian", graph.product, problem.weights, graph.facts, lambda: graph.gradient, add=graph.add_product
    )


def gauss_newton(
    problem: Problem,
    w: Tensor | None = None,
    *,
    matrix: str = "ggn",
    parameters: str | Sequence[str] | None = None,
    samples: int = 1,
    seed: int = 0,
    chunk_size: int | None = None,
    memory: float | None = None,
) -> Operator:
    """GGN or a Fisher matrix of L at w; arguments as of `GaussNewtonGraph`."""
    if parameters is not None:
        _at_own_weights(w)
        problem = problem.restricted(parameters)
    spread = spread_of(problem.weights)
    whole, w = (problem, w) if spread is None else (problem.gathered(w), None)
    graph = GaussNewtonGraph(whole, w, matrix=matrix, samples=samples, seed=seed, chunk_size=chunk_size, memory=memory)
    operator = Operator(matrix, graph.product, whole.weights, graph.facts, add=graph.add_product)
    return operator if spread is None else _spread(operator, problem)


def build(
    problem: Problem,
    matrix: str = "hessian",
    w: Tensor | None = None,
    *,
    scaling: tuple[str, str] = ("identity", "scaled"),
    parameters: str | Sequence[str] | None = None,
    hvp: str = "double-backward",
    **options: Any,
) -> Operator:
    """The operator called `matrix`: "hessian", "ggn", "fisher", "mc-fisher" or "empirical-fisher".

    Args:
        problem: L.
        matrix: which.
        w: where (default: the weights of the Problem).
        scaling: T of T A T: kind and treatment of the biases (see `landscape.ball.scaling.Scaling`).
        parameters: shell pattern(s): the diagonal block of these parameters.
        hvp: how the Hessian is multiplied.
        options: further keyword arguments of `hessian` or `gauss_newton`.
    """
    if matrix not in ("hessian", *MATRICES):
        raise unknown("matrix", matrix, ("hessian", *MATRICES))
    rule = Scaling.of(*scaling)
    if parameters is not None and spread_of(problem.weights) is not None:
        _at_own_weights(w)
        problem, parameters = problem.restricted(parameters), None
    chosen = positions(problem, parameters) if parameters is not None else None
    diagonal = rule.diagonal(problem.parameters, problem.at(w))
    if diagonal is not None and chosen is not None:
        pieces = problem.parameters.unflatten(diagonal)
        diagonal = torch.cat([pieces[i].reshape(-1) for i in chosen])
    if matrix == "hessian":
        operator = hessian(problem, w, parameters=parameters, hvp=hvp, **options)
    else:
        operator = gauss_newton(problem, w, matrix=matrix, parameters=parameters, **options)
    return scaled(operator, diagonal)


def block(graph: HessianGraph, tensors: Sequence[int]) -> Operator:
    """Diagonal block H_BB of the parameter tensors at these positions, from the kept graph of the whole network.

    The second backward pass runs between the block's tensors alone. Reading a block's entries off a full product
    would give the block's rows of the whole Hessian instead, whose eigenvalues are others.
    """
    like = torch.cat([graph.leaves[i].detach().reshape(-1) for i in tensors]).to(graph.graphs.problem.weights)

    def hint() -> Tensor:
        pieces = graph.graphs.problem.parameters.unflatten(graph.gradient)
        return torch.cat([pieces[i].reshape(-1) for i in tensors])

    return Operator(
        "hessian",
        lambda v: graph.product(v, tensors),
        like,
        graph.facts,
        hint,
        add=lambda total, v: graph.add_product(total, v, tensors),
    )


def layers(problem: Problem) -> dict[str, list[int]]:
    """Module name -> positions of its own parameter tensors: the layers whose blocks are looked at."""
    positions_of: dict[str, list[int]] = {}
    for i, name in enumerate(problem.parameters.names):
        positions_of.setdefault(name.rpartition(".")[0] or name, []).append(i)
    return positions_of


def positions(problem: Problem, pattern: str | Sequence[str]) -> list[int]:
    """Positions in the layout of the parameter tensors that match the pattern(s)."""
    chosen = set(Parameters.of(problem.model, pattern).names)
    return [i for i, name in enumerate(problem.parameters.names) if name in chosen]


def scaled(operator: Operator, diagonal: Tensor | None, name: str | None = None) -> Operator:
    """T A T for a diagonal T (d,); None stands for T = 1."""
    if diagonal is None:
        return operator
    t = diagonal.to(operator.like)

    def hint() -> Tensor | None:
        known = operator.hint()
        return None if known is None else t * known

    name = name or f"scaled {operator.name}"
    return Operator(name, lambda v: t * operator.matvec(t * v), operator.like, operator.facts, hint, operator.cause)


def _spread(operator: Operator, problem: Problem) -> Operator:
    """An operator on whole vectors as one on vectors that are spread over the processes as the weights are.

    Each process multiplies by its own examples' part, with whole weights; the vectors of an algorithm stay spread.
    """
    spread = spread_of(problem.weights)
    assert spread is not None

    def hint() -> Tensor | None:
        known = operator.hint()
        return None if known is None else spread.here(known)

    def product(v: Tensor) -> Tensor:
        return spread.here(operator.matvec(spread.whole(v)))

    return Operator(operator.name, product, problem.weights, operator.facts, hint, operator.cause)


def _at_own_weights(w: Tensor | None) -> None:
    if w is not None:
        raise InputError("parameters= restricts the model at its own weights: give either w or parameters")
