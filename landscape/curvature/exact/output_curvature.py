"""The loss as a function of the network's outputs: its Hessian there, square roots of it, and score vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscape import random
from landscape.curvature.products import second_derivative
from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.problem import Problem


@dataclass(frozen=True)
class Root:
    """Columns S with B = sign * sum_c S_c S_c' for every example: shape (columns, n, outputs)."""

    sign: float
    columns: Tensor


class OutputCurvature:
    """B_i = d2 l_i / do_i^2 / n of the examples of a batch, block-diagonal over examples.

    Args:
        problem: L; the batch's share of L has its Hessian with respect to the outputs here.
        outputs: (n, C) or (n,), the model's outputs on the batch.
        batch: the batch.

    Raises:
        InputError: outputs of another shape, or a loss that couples examples.
    """

    def __init__(self, problem: Problem, outputs: Tensor, batch: Batch) -> None:
        if outputs.dim() not in (1, 2) or outputs.shape[0] != batch.size:
            raise InputError(
                f"outputs of shape {tuple(outputs.shape)} for {batch.size} examples: a matrix that is built from the "
                "loss's Hessian at the outputs needs shape (examples, outputs), which a language model's are not; only "
                'an estimate of the trace does without (method="hutch++")'
            )
        self.outputs = outputs.detach().requires_grad_()
        with torch.enable_grad():
            loss = problem.batch_loss(self.outputs, batch) * problem.share(batch)
            self.slope = torch.autograd.grad(loss, self.outputs, create_graph=True, allow_unused=True)[0]
            if any(leaf is not self.outputs for leaf in second_derivative.leaves(loss)):
                raise InputError(
                    "the loss uses the weights past the model's outputs (weight decay?), which a matrix of the outputs "
                    'leaves out; take the Hessian itself, or estimate its trace: method="hutch++"'
                )
        if self.slope is None:
            raise InputError("the loss does not depend on the model's outputs: give one that does")
        self._problem, self._batch = problem, batch

    def product(self, u: Tensor) -> Tensor:
        """B u for u of the outputs' shape."""
        assert self.slope is not None
        if not self.slope.requires_grad:
            return torch.zeros_like(u)
        slope, outputs = self.slope, self.outputs
        product = second_derivative.named(
            lambda: torch.autograd.grad(slope, outputs, u, retain_graph=True, allow_unused=True)[0]
        )
        return torch.zeros_like(u) if product is None else product

    def check_separable(self) -> None:
        """Raise InputError where the loss of one example depends on another's outputs."""
        if len(self.outputs) > 1:
            probe = torch.zeros_like(self.outputs)
            probe[0] = 1.0
            if bool(self.product(probe)[1:].any()):
                raise InputError(
                    "the loss couples the examples of a batch: it has no matrix of one example's outputs; take "
                    'matrix="hessian", or estimate its trace: method="hutch++"'
                )

    def softmax_scale(self) -> Tensor | None:
        """Factors c (n, 1) with B_i = c_i (diag p_i - p_i p_i'), the Hessian of cross-entropy; None for another loss.

        c_i is the example's share of L: its class weight over the sum of all. Found out by products, not by the name of
        the loss.
        """
        if self.outputs.dim() != 2 or self.outputs.shape[1] < 2:
            return None
        p = torch.softmax(self.outputs.detach(), dim=1)
        probe = random.normal(self.outputs.reshape(-1).detach(), random.stream(0, "softmax")).view_as(p)
        unit, product = p * probe - p * (p * probe).sum(1, keepdim=True), self.product(probe)
        # Saturated examples have no curvature to compare: theirs is the share that the others show.
        largest = (product * unit).sum(1).abs().argmax()
        common = (product[largest] * unit[largest]).sum() / unit[largest].square().sum().clamp(min=1e-30)
        single = (product * unit).sum(1, keepdim=True) / unit.square().sum(1, keepdim=True).clamp(min=1e-30)
        saturated = unit.square().sum(1, keepdim=True) < 1e-10
        share = torch.where(saturated, common, single)
        tolerance, difference = 1e3 * torch.finfo(p.dtype).eps, (product - share * unit).abs()
        if self._problem.objective.cross_entropy:
            fits = difference.amax() <= tolerance * probe.abs().amax() * share.abs().amax()
        else:
            # A small term beside cross-entropy shows where the examples are saturated: relative to the products.
            fits = difference.sum() <= tolerance * product.abs().sum()
        return share if bool(fits) and bool((share >= 0).all()) else None

    def roots(self) -> list[Root]:
        """Square roots of B: for cross-entropy diag(sqrt p) - p sqrt(p)', else by eigendecomposition."""
        scale = self.softmax_scale()
        if scale is not None:
            p = torch.softmax(self.outputs.detach(), dim=1)
            root = p.sqrt() * scale.sqrt()
            columns = -p.expand(p.shape[1], *p.shape) * root.mT[:, :, None]
            columns.diagonal(dim1=0, dim2=2).add_(root)
            return [Root(1.0, columns)]
        values, vectors = torch.linalg.eigh(self.matrix().double())
        roots = []
        for sign in (1.0, -1.0):
            part = (sign * values).clamp(min=0)
            columns = (vectors * part.sqrt()[:, None]).permute(2, 0, 1)
            live = part.amax(0) > 1e-12 * values.abs().amax()
            if bool(live.any()):
                roots.append(Root(sign, columns[live].reshape(-1, *self.outputs.shape).to(self.outputs.dtype)))
        return roots

    def matrix(self) -> Tensor:
        """B of each example: (n, C, C), by C products."""
        flat = self.outputs.detach().reshape(len(self.outputs), -1)
        rows = []
        for c in range(flat.shape[1]):
            unit = torch.zeros_like(flat)
            unit[:, c] = 1.0
            rows.append(self.product(unit.view_as(self.outputs)).reshape(flat.shape))
        stacked = torch.stack(rows, dim=1)
        return (stacked + stacked.mT) / 2

    def score(self) -> Root:
        """Gradient of each example's loss at its outputs: the column of the empirical Fisher matrix."""
        assert self.slope is not None
        with torch.no_grad():
            shares = self._problem.objective.shares(self._batch).to(self.slope) / self._problem.weight
        root = shares.clamp(min=1e-300).rsqrt() * (shares > 0)
        return Root(1.0, (self.slope.detach() * root.view(-1, *[1] * (self.slope.dim() - 1))).unsqueeze(0))

    def sampled(self, drawn: Tensor) -> Root:
        """Scores at targets drawn from the model's own distribution (for another loss than cross-entropy: S xi).

        Args:
            drawn: (n, samples, C) standard normal numbers.
        """
        samples = drawn.shape[1]
        scale = self.softmax_scale()
        if scale is not None:
            p = torch.softmax(self.outputs.detach(), dim=1)
            uniform = torch.special.ndtr(drawn[:, :, 0])
            target = torch.searchsorted(p.cumsum(1), uniform).clamp(max=p.shape[1] - 1)
            one_hot = torch.nn.functional.one_hot(target.mT, p.shape[1]).to(p.dtype)
            return Root(1.0, (p - one_hot) * (scale / samples).sqrt())
        roots = self.roots()
        if len(roots) != 1 or roots[0].sign < 0:
            raise InputError("this loss is not convex in the outputs: it has no distribution to draw targets from")
        columns = roots[0].columns
        return Root(1.0, torch.einsum("isc,ci...->si...", drawn[:, :, : len(columns)], columns) / samples**0.5)


def outputs_of(problem: Problem, batch: Batch) -> Tensor:
    """The tensor of outputs on a batch, with its graph (within `problem.bound_tensors`)."""
    return problem.objective.compared(problem.forward(batch))
