"""Passes over the batches of a Problem: bound to weights, counted, weighed; what analyzers build on."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from landscape.ball.spread import spread_of
from landscape.ball.vectors import dimension
from landscape.errors import InputError
from landscape.problem.batches import Batch, Batches
from landscape.problem.evaluator import Evaluator, require_derivatives
from landscape.problem.objective import Objective, Pair, telling
from landscape.problem.outputs import logits_of
from landscape.problem.parameters import Parameters


@dataclass
class Passes:
    """Work done, in examples: forward passes, backward passes and Hessian-vector products."""

    forward: float = 0
    backward: float = 0
    hvp: float = 0


@dataclass
class Shared:
    """What a Problem and those derived from it know together.

    Attributes:
        passes: work done.
        notes: what a reader of any result has to know.
        random: the notes that say why two evaluations may differ.
        division: why batches may not be regrouped, once that was tried out.
        verified: sizes of chunks over which L was seen to be the same.
        computed_in: the coarsest dtype that L is computed in, once that was tried out.
    """

    passes: Passes = field(default_factory=Passes)
    notes: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)
    division: list[str | None] = field(default_factory=list)
    verified: set[int] = field(default_factory=set)
    computed_in: list[torch.dtype] = field(default_factory=list)


class BatchPasses:
    """A model bound to weights, batch by batch; see `Problem`, whose attributes these are."""

    model: nn.Module
    objective: Objective
    parameters: Parameters
    weights: Tensor
    evaluator: Evaluator
    batches: Batches
    calibration_batches: Batches
    examples: int
    classified: int
    weight: float
    batch_norm: str
    logit_normalization: bool
    recalibration_examples: int
    distributed: bool
    _shared: Shared

    @property
    def dimension(self) -> int:
        """Number of entries d of w."""
        return dimension(self.weights)

    @property
    def passes(self) -> Passes:
        """Work done so far, in examples."""
        return self._shared.passes

    @property
    def notes(self) -> list[str]:
        """What a reader of any result has to know."""
        return self._shared.notes

    @property
    def random_causes(self) -> list[str]:
        """The notes that say why two evaluations of L(w) may differ."""
        return self._shared.random

    @property
    def verified(self) -> set[int]:
        """Sizes of chunks over which L was seen to be the same."""
        return self._shared.verified

    def leaves(self, w: Tensor | None = None) -> list[Tensor]:
        """Views of w in the model's shapes and dtypes, each a leaf of automatic differentiation.

        The flat vector itself never takes part: the backward pass of slicing it would cost a copy of it per slice.
        """
        require_derivatives("a derivative is asked for")
        return [t.detach().requires_grad_() for t in self.parameters.typed(self.at(w))]

    def bindable(self, w: Tensor | None = None) -> list[Tensor]:
        """What `bound_tensors` takes for a pass whose gradient `evaluator.backward` adds up.

        The leaves, but of a sharded network the values alone: its graph leads to its own parameters.
        """
        return self.parameters.typed(self.at(w)) if spread_of(self.weights) is not None else self.leaves(w)

    @contextlib.contextmanager
    def bound(self, w: Tensor | None = None) -> Iterator[None]:
        """Within the context the model computes at w (by default: at the weights of the Problem)."""
        with self.bound_tensors(self.parameters.typed(self.at(w))):
            yield

    @contextlib.contextmanager
    def values(self, w: Tensor | None = None) -> Iterator[None]:
        """`bound` for passes whose derivatives nobody takes: without a graph, unless forward() itself needs one."""
        inside = self.evaluator.graph_inside
        with self.evaluator.without_graph(), self.bound_tensors(self.leaves(w)) if inside else self.bound(w):
            yield

    @contextlib.contextmanager
    def bound_tensors(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Within the context the model computes with these tensors, statistics by the BatchNorm policy."""
        statistics = None
        if self.batch_norm == "recalibrate" and self.evaluator.batch_norms:
            statistics = self.evaluator.recalibrated(tensors, self._calibration_passes())
        with self.evaluator.bound(tensors, statistics):
            yield

    def weighted_batches(self) -> Iterator[Batch]:
        """The batches with c_b > 0: the others' losses (0/0 where all targets are ignored) are not part of L."""
        return (batch for batch in self.batches if batch.weight)

    def contributing(self) -> int:
        """Number of examples that have a part in L, over all processes: those with a label that counts.

        L as a mean over n examples has this n, whatever ignored ones stand beside them.

        Raises:
            InputError: a loss that does not show whether it ignores labels of -100.
        """
        count = self.zero()
        for batch in self.batches:
            count += self.objective.contributing(batch).sum()
        return int(self.summed(count))

    def share(self, batch: Batch) -> float:
        """c_b / sum of c_b."""
        return batch.weight / self.weight

    def weighed(self, batch: Batch) -> Batch:
        """The batch with its c_b."""
        return batch if batch.weight == batch.weight else replace(batch, weight=self.objective.weigh(None, batch))

    def forward(self, batch: Batch) -> Any:
        """The model's outputs on a batch (within `bound`); normalized logits where that was asked for."""
        self.passes.forward += batch.size
        outputs = self.objective.forward(self.model, batch)
        if isinstance(outputs, Pair) and outputs.weight is not None:
            self._same_weight(outputs, batch)
        if not self.logit_normalization:
            return outputs
        logits = logits_of(outputs)
        centered = logits - logits.mean(dim=-1, keepdim=True)
        return centered / torch.linalg.vector_norm(centered, dim=-1, keepdim=True).clamp(min=1e-12)

    def batch_outputs(self, batch: Batch) -> Tensor:
        """The tensor that stands for the model's outputs on a batch (within `bound`), see `outputs`."""
        if self.objective.function is not None:
            raise InputError(
                "an objective function shows no outputs of the model: give Problem a loss(outputs, targets)"
            )
        return logits_of(self.forward(batch))

    def batch_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """l_b: the mean loss of a batch, a 0-dim tensor in the graph of the outputs."""
        value = self.objective.value(outputs, batch)
        return value if value.dim() == 0 else value.mean()

    def first_derivative(self, loss: Tensor, leaves: Sequence[Tensor], batch: Batch) -> list[Tensor | None]:
        """Gradient of the batch's share of L, with its graph: one tensor per leaf, None where the loss ignores it."""
        self._differentiable(loss)
        self.passes.backward += batch.size
        share = loss * self.share(batch)
        with telling("the backward pass", batch):
            return list(torch.autograd.grad(share, leaves, create_graph=True, allow_unused=True))

    def add_second_derivative(
        self,
        total: Tensor,
        gradients: Sequence[Tensor | None],
        leaves: Sequence[Tensor],
        pieces: Sequence[Tensor],
        batch: Batch,
        *,
        retain_graph: bool = False,
    ) -> None:
        """Add the derivative of <gradients, pieces>, the batch's share of H v, to `total`, flat over the leaves."""
        pairs = [(g, v) for g, v in zip(gradients, pieces, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return
        self.passes.hvp += batch.size
        add_gradient(total, leaves, *zip(*pairs, strict=True), retain_graph=retain_graph)

    @contextlib.contextmanager
    def counting(self) -> Iterator[dict[str, float]]:
        """A dict that holds, after the context, the passes over the n examples that were made within it."""
        before, cost = copy.copy(self.passes), {}  # type: ignore[var-annotated]
        yield cost
        cost.update({k: (v - getattr(before, k)) / self.examples for k, v in asdict(self.passes).items()})

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Passes within the context are not counted: tries that belong to no result."""
        before = asdict(self.passes)
        try:
            yield
        finally:
            vars(self.passes).update(before)

    def at(self, w: Tensor | None) -> Tensor:
        """The weights w as a flat vector (d,) like the weights; the model's for None."""
        if w is None:
            return self.weights
        spread = spread_of(self.weights)
        if spread is not None and spread_of(w) is not spread and w.shape == (spread.length,):
            w = spread.here(w)
        if w.shape != self.weights.shape or spread_of(w) is not spread:
            raise InputError(f"w must be a flat vector of shape ({self.dimension},), received {tuple(w.shape)}")
        return w.to(self.weights)

    def zero(self) -> Tensor:
        """A 0-dim float64 tensor on the device."""
        return torch.zeros((), dtype=torch.float64, device=self.weights.device)

    def summed(self, value: Tensor) -> Tensor:
        """The value summed over the processes; what is spread over them was summed where it was spread."""
        if self.distributed and spread_of(value) is None:
            torch.distributed.all_reduce(value)
        return value

    def _calibration_passes(self) -> Iterator[None]:
        seen = 0
        for batch in self.calibration_batches:
            # A short last batch would weigh as much as a full one in the cumulative average.
            if seen and batch.size < self.calibration_batches.sizes[0]:
                continue
            self.forward(batch)
            seen += batch.size
            yield
            if seen >= self.recalibration_examples:
                return

    def _differentiable(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise InputError(
                "the loss does not depend on the chosen parameters through differentiable operations: choose others"
            )

    def _same_weight(self, outputs: Pair, batch: Batch) -> None:
        weight = outputs.weight
        on_host = not (
            isinstance(weight, Tensor) and (weight.is_cuda or torch._C._functorch.is_functorch_wrapped_tensor(weight))
        )
        if on_host and batch.weight == batch.weight and outputs.number(batch) != batch.weight:
            raise InputError(
                f"the objective returned the weight {outputs.number(batch):g} for {batch} and {batch.weight:g} before: "
                "c_b must be the same at every w"
            )


def add_gradient(
    total: Tensor,
    leaves: Sequence[Tensor],
    outputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    *,
    retain_graph: bool = False,
) -> None:
    """Add the derivative of <outputs, vectors> by the leaves to `total`, flat over them.

    The backward pass adds tensor by tensor as it goes: no list of all gradients and no copy of it is made.
    """
    parts = [p.view(x.shape) for p, x in zip(total.split([x.numel() for x in leaves]), leaves, strict=True)]
    try:
        for leaf, part in zip(leaves, parts, strict=True):
            leaf.grad = part if part.dtype == leaf.dtype else torch.zeros_like(leaf)
        torch.autograd.backward(outputs, vectors, retain_graph=retain_graph, inputs=list(leaves))
        for leaf, part in zip(leaves, parts, strict=True):
            if part.dtype != leaf.dtype:
                part += leaf.grad
    finally:
        for leaf in leaves:
            leaf.grad = None
