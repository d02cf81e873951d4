"""Trace and diagonal of the generalized Gauss-Newton matrix, exactly: no sampling, a backward pass per class.

With B_i = S_i S_i' the Hessian of example i's loss at its C outputs,

    tr GGN = 1/n sum_i sum_c ||J_i' s_ic||^2,

the squared norm of the gradient of <f(x_i), s_ic>. One backward pass per column c carries s_ic of *all* examples to the
outputs of the layers; there the norm of each example's gradient follows in closed form (see `gradient_squares`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.curvature.exact import gradient_squares, piecewise
from landscape.curvature.exact.output_curvature import OutputCurvature, Root, outputs_of
from landscape.curvature.products import chunks, second_derivative
from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.problem import Problem

_COUPLED = (
    "an example's outputs depend on other examples, or need them (BatchNorm with batch statistics?): the exact trace "
    'needs batch_norm="frozen"; estimate it instead: method="hutch++"'
)
Roots = Callable[[OutputCurvature], Sequence[Root]]


@dataclass(frozen=True)
class Squares:
    """Sums over examples and columns of squared gradients.

    Attributes:
        tensors: one a parameter tensor: 0-dim float64 (trace of its block), or the diagonal in its shape.
        obstacle: what makes the diagonals of Hessian and GGN differ; None where they are equal.
        slow: names of the parameters that needed per-example gradients of the whole model.
    """

    tensors: list[Tensor]
    obstacle: str | None
    slow: tuple[str, ...]


def ggn_squares(
    problem: Problem,
    w: Tensor | None = None,
    *,
    diagonal: bool = False,
    roots: Roots | None = None,
    chunk_size: int | None = None,
    only_equal: bool = False,
) -> Squares | None:
    """Trace (or diagonal) of the GGN of every parameter tensor.

    Cost: one forward pass and C backward passes to the layers' outputs (no weight gradients): 1 to 2 Hessian-vector
    products for ten classes, whatever the number of parameters.

    Args:
        problem: L; its outputs must be (n, C), each depending on its own example alone.
        w: where (default: the weights of the Problem).
        diagonal: the diagonal instead of its sums.
        roots: which columns; None is the Hessian of the loss at the outputs (GGN).
        chunk_size: examples at once; None chooses.
        only_equal: return None, for the price of two examples, where the diagonal is not the Hessian's.

    Raises:
        InputError: outputs of another shape, or examples that influence each other (batch statistics).
    """
    if not all(b.sliceable for b in problem.batches):
        raise InputError(
            "the exact trace needs batches whose tensors all have the examples first, these hold something else (a "
            'graph, a list); estimate it: method="hutch++"'
        )
    leaves = problem.leaves(w)
    columns_of = roots or OutputCurvature.roots
    # The same attention kernels as everywhere in curvature; the fused ones cannot be vectorized over examples.
    with second_derivative.twice_differentiable(problem.model), problem.bound_tensors(leaves), torch.enable_grad():
        taps = _Taps(problem, leaves)
        obstacle = taps.calibrate(_telling_batch(problem), columns_of)
        if only_equal and obstacle is not None:
            return None
        chunked = _chunked(problem, leaves, taps, chunk_size)
        total = [torch.zeros(x.shape if diagonal else (), dtype=torch.float64, device=x.device) for x in leaves]
        for batch in chunked.weighted_batches():
            for i, value in taps.squares(batch, columns_of, diagonal):
                total[i] += value
    total = [problem.summed(t) for t in total]
    return Squares(total, obstacle, tuple(problem.parameters.names[i] for i in sorted(taps.uncovered)))


def squares_by(
    method: str, problem: Problem, w: Tensor | None = None, *, diagonal: bool = False, chunk_size: int | None = None
) -> Squares | None:
    """The squares where they are what `method` asks for; None where it has to estimate.

    "exact" takes those of the GGN, or says why there are none; "auto" takes them where they are the Hessian's.
    """
    if method not in ("auto", "exact"):
        return None
    try:
        return ggn_squares(problem, w, diagonal=diagonal, chunk_size=chunk_size, only_equal=method == "auto")
    except InputError:
        if method == "exact":
            raise
        return None


class _Taps:
    """The layers that own parameters; their inputs and the edges of the graph at their outputs, forward by forward."""

    def __init__(self, problem: Problem, leaves: Sequence[Tensor]) -> None:
        self.problem, self.leaves = problem, leaves
        index = {id(leaf): i for i, leaf in enumerate(leaves)}
        owners: dict[int, list[nn.Module]] = {}
        self.modules: dict[nn.Module, dict[str, int]] = {}
        for module in problem.model.modules():
            positions = {n: index[id(p)] for n, p in module._parameters.items() if p is not None and id(p) in index}
            if positions:
                self.modules[module] = positions
            for i in positions.values():
                owners.setdefault(i, []).append(module)
        # A tensor of several layers has one gradient, the sum of theirs: no layer's closed form gives its norm.
        self.uncovered = {i for i, modules in owners.items() if len(modules) > 1}
        self.covered: set[int] = set()
        self.columns = 0
        self.output_bytes = 0.0

    def calibrate(self, batch: Batch, columns_of: Roots) -> str | None:
        """Compare every closed form with autograd on one example; what disagrees is left to the whole model.

        Returns:
            What keeps the network from being piecewise multi-affine, None where nothing does.
        """
        passes = (self.problem.passes.forward, self.problem.passes.backward)
        counting = self.problem.objective.shares(batch).nonzero().flatten()[:2]
        pair = self.problem.weighed(batch.select(counting.to(self.leaves[0].device)))
        outputs, seen = self._forward(pair)
        curvature = OutputCurvature(self.problem, outputs, pair)
        curvature.check_separable()
        self.columns = sum(len(r.columns) for r in columns_of(curvature))
        probe = (
            torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype, device=outputs.device).view_as(outputs) + 0.3
        )
        probe[1:] = 0
        exact = torch.autograd.grad(outputs, self.leaves, probe, retain_graph=True, allow_unused=True)
        covered = {i for module in seen for i in self.modules[module].values()} - self.uncovered
        self.uncovered = {i for i, g in enumerate(exact) if g is not None} - covered
        for module, g in self._at_outputs(outputs, seen, probe):
            self.output_bytes += g.numel() * g.element_size() / pair.size
            self.uncovered |= self._disagreeing(module, seen[module][0], g, exact)
            if bool(g[1:].any()):
                raise InputError(_COUPLED)
        self.covered = covered - self.uncovered
        self.problem.passes.forward, self.problem.passes.backward = passes
        return piecewise.obstacle(outputs, self.leaves)

    def _disagreeing(self, module: nn.Module, a: Tensor, g: Tensor, exact: Sequence[Tensor | None]) -> set[int]:
        """Positions of the layer's parameters whose closed form is not the squared norm of the exact gradient."""
        sums = gradient_squares.accumulator(module, a)
        try:
            with torch.no_grad():
                sums.add(g)
                sums.add(-2 * g)
            squares = dict(self._named(module, sums))
        except (RuntimeError, ValueError):  # it cannot be vectorized over examples, or take one alone
            squares = {}
        wrong = set()
        for name, i in self.modules[module].items():
            known = exact[i]
            norm = 0.0 if known is None else 5 * float(known.double().square().sum())
            # Rounding of short sums; a wrong form is off by far more.
            tolerance = 1e-8 if g.dtype == torch.float64 else 1e-3
            if name not in squares or abs(float(squares[name]) - norm) > tolerance * norm:
                wrong.add(i)
        return wrong

    def squares(self, batch: Batch, columns_of: Roots, diagonal: bool) -> Iterator[tuple[int, Tensor]]:
        """(position of a parameter tensor, its sum) for the examples of a batch."""
        outputs, seen = self._forward(batch)
        # A model may run a batch past a layer that the calibration saw (a branch on the size of the batch).
        missed = self.covered - {i for module in seen for i in self.modules[module].values()}
        whole = sorted(self.uncovered | missed)
        curvature = OutputCurvature(self.problem, outputs, batch)
        if not self.problem.objective.exact:
            curvature.check_separable()
        for root in columns_of(curvature):
            self.problem.passes.backward += batch.size * len(root.columns)
            wanted = {m: v for m, v in seen.items() if set(self.modules[m].values()) - self.uncovered}
            sums: dict[nn.Module, gradient_squares.Accumulator] = {}
            for column in root.columns:
                for module, g in self._at_outputs(outputs, wanted, column):
                    with torch.no_grad():
                        if module not in sums:
                            sums[module] = gradient_squares.accumulator(module, wanted[module][0], diagonal)
                        sums[module].add(g)
            for module in list(sums):
                for name, value in self._named(module, sums.pop(module)):
                    if (i := self.modules[module][name]) not in self.uncovered:
                        yield i, root.sign * value
            if whole:
                for i, value in _whole_model(self.problem, self.leaves, whole, batch, outputs, root, diagonal):
                    yield i, root.sign * value

    def _named(self, module: nn.Module, sums: gradient_squares.Accumulator) -> list[tuple[str, Tensor]]:
        with torch.no_grad():
            return [(n, t.detach()) for n, t in sums.result().items() if n in self.modules[module]]

    def _forward(self, batch: Batch) -> tuple[Tensor, dict[nn.Module, tuple[Tensor, Any]]]:
        """Outputs, and of every layer that ran once on one tensor its input and the edge at its output."""
        seen: dict[nn.Module, tuple[Tensor, Any]] = {}
        calls: dict[nn.Module, int] = {}

        def record(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            calls[module] = calls.get(module, 0) + 1
            simple = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            rows = simple and args[0].dim() > 0 and len(args[0]) == len(output) == batch.size
            if rows and output.requires_grad:
                # The edge, not the tensor: a later operation in place would move the tensor's own edge.
                seen[module] = (args[0].detach(), torch.autograd.graph.get_gradient_edge(output))

        with contextlib.ExitStack() as stack:
            for module in self.modules:
                handle = module.register_forward_hook(record, with_kwargs=True)
                stack.callback(handle.remove)
            outputs = outputs_of(self.problem, batch)
        return outputs, {m: v for m, v in seen.items() if calls[m] == 1}

    def _at_outputs(
        self, outputs: Tensor, seen: dict[nn.Module, tuple[Tensor, Any]], column: Tensor
    ) -> Iterator[tuple[nn.Module, Tensor]]:
        """Gradient of <outputs, column> at the output of each layer that takes part: (n, ...)."""
        if seen:
            edges = [edge for _, edge in seen.values()]
            gradients = torch.autograd.grad(outputs, edges, column, retain_graph=True, allow_unused=True)
            yield from ((m, g) for m, g in zip(seen, gradients, strict=True) if g is not None)


def _telling_batch(problem: Problem) -> Batch:
    """The first batch of several examples, which shows whether they influence each other; else the first."""
    batches = problem.weighted_batches()
    first = next(batches)
    return first if first.size > 1 else next((b for b in batches if b.size > 1), first)


def _chunked(problem: Problem, leaves: Sequence[Tensor], taps: _Taps, size: int | None) -> Problem:
    """The examples in chunks whose gradients of all columns fit."""
    graph = chunks.footprint(problem, leaves)
    # All columns of all layers are held at once, besides the graph.
    columns = dataclasses.replace(graph, per_example=graph.per_example + 3 * taps.columns * taps.output_bytes)
    return chunks.chosen(problem, columns, size)


def _whole_model(
    problem: Problem,
    leaves: Sequence[Tensor],
    positions: Sequence[int],
    batch: Batch,
    together: Tensor,
    root: Root,
    diagonal: bool,
) -> Iterator[tuple[int, Tensor]]:
    """Squares of per-example gradients of the whole model: for weights that no single layer owns and applies once."""
    totals = [
        torch.zeros(leaves[i].shape if diagonal else (), dtype=torch.float64, device=leaves[i].device)
        for i in positions
    ]
    chosen = [leaves[i] for i in positions]
    # Normalization over the batch: its own scale and shift show no influence on other examples' gradients.
    rounding = torch.finfo(together.dtype).eps ** 0.5 * float(together.detach().abs().max())
    for k in range(batch.size):
        try:
            outputs = outputs_of(problem, problem.weighed(batch.rows(k, k + 1)))
        except InputError:
            raise InputError(_COUPLED) from None
        if not float((outputs - together[k : k + 1]).detach().abs().max()) <= rounding:
            raise InputError(_COUPLED)
        for column in root.columns[:, k : k + 1]:
            gradients = torch.autograd.grad(outputs, chosen, column, retain_graph=True, allow_unused=True)
            for total, g in zip(totals, gradients, strict=True):
                if g is not None:
                    total += g.double().square() if diagonal else g.double().square().sum()
    yield from zip(positions, totals, strict=True)
