"""Problem: the function L(w) of a model, an objective and a fixed set of batches."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.ball.spread import spread_of
from landscape.curvature.products import second_derivative
from landscape.errors import InputError
from landscape.problem import checks, precision
from landscape.problem.batch_passes import Shared
from landscape.problem.batches import Batch, Batches, Reader, generators_of, source_of
from landscape.problem.evaluator import Evaluator, require_derivatives, unwrapped
from landscape.problem.fully_shard import has_shards
from landscape.problem.memory import Plan, plan
from landscape.problem.objective import Objective, telling
from landscape.problem.outputs import count_hits
from landscape.problem.parameters import Parameters
from landscape.problem.sharded import ShardedEvaluator, SpreadParameters
from landscape.problem.variants import Variants
from landscape.random import undisturbed

LossFunction = Callable[[Any, Any], Tensor]
_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Evaluation:
    """Loss (0-dim float64 tensor on the device) and accuracy in [0, 1] (nan where targets are not class indices)."""

    loss: Tensor
    accuracy: Tensor


class Problem(Variants):
    """The function L(w) = sum_b c_b l_b(w) / sum_b c_b over fixed batches, at the model's weights or any other.

    l_b is the loss of batch b and c_b its weight: what the loss of a batch divides by. For torch's losses (modules and
    functionals) that is known: the number of elements, of targets that are not ignored, the sum of their class
    weights; for the loss that a model returns it is whatever makes parts of batches add up (examples,
    unignored labels, shifted or not). L, its derivatives and `losses` are then those of all examples at once, however
    they are divided into batches. For any other loss c_b is the number of examples, unless `weight` says more, and of
    an `objective` what it returns, or 1. Batches are regrouped only where parts were seen to add up in values and
    gradients; else L is that of these batches, and `notes` says so.

    Sums accumulate in float64 and stay on the device. The model is evaluated in evaluation mode with the stated
    BatchNorm policy, without torch's inference fast paths, under the autocast region in which the Problem was made, and
    is left bit-identical: weights, buffers, training flags, requires_grad.

    Args:
        model: any nn.Module on one device; torch.compile, DataParallel and DistributedDataParallel are unwrapped. With
            distributed=True also one that `fully_shard` (FSDP2) has divided: flat vectors are then spread over the
            processes, see `whole` and `gathered`.
        loss: called as loss(outputs, targets) with what the model returned; returns a mean-reduced scalar or one value
            per example. One of torch's losses gets the `.logits` of an output that has them. None takes the loss that
            the model returns.
        batches: any iterable of batches, or a Dataset; see `landscape.problem.batches.Reader` for what a batch may be.
        weight: called as weight(batch) with an item of `batches`: c_b.
        objective: called as objective(model, batch) in place of a loss; returns the loss, or (loss, weight).
        parameters: shell pattern(s) of the parameters that make up w; the others stay as they are.
        batch_norm: "frozen", "batch" or "recalibrate" (statistics estimated at each w on the first
            `recalibration_examples`; not with several processes).
        logit_normalization: outputs are centered and scaled to unit length per example before the loss
            (Andriushchenko 2023, arXiv 2302.07011): without it, scaling up the last layer changes every sharpness.
        evaluation_mode: False keeps the model's own training flags.
        distributed: sum over the processes of torch.distributed; each holds its own share of the examples, of a sharded
            model in as many batches as the others.
        check: look at one batch: whether two evaluations agree (else NonDeterministicWarning, naming the cause),
            whether passes with and without a graph compute the same, and whether the loss follows the weights.

    Attributes:
        model: the network itself.
        weights: the model's weights, (d,); of the widest dtype where the model's tensors have several.
        batches: the fixed batches.
        examples: how many there are, over all processes.
        weight: sum of c_b, over all processes.
        passes: work done so far, in examples.
        notes: what a reader of any result has to know.

    Raises:
        InputError: a model, a loss or batches of the wrong type; no trainable parameters, complex ones; no example,
            weights that are negative or all zero; a loss of another shape, targets that do not fit the outputs; a
            forward pass that writes to a parameter or reaches one past the module that holds it; passes with and
            without a graph that compute different functions.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import landscape
        >>> batches = [(torch.ones(3, 2), torch.tensor([0, 1, 1]))]
        >>> problem = landscape.Problem(nn.Linear(2, 2), nn.CrossEntropyLoss(), batches)
        >>> problem.gradient().shape
        torch.Size([6])
        >>> def objective(model, batch):
        ...     return model(batch).square().mean(), len(batch)
        >>> problem = landscape.Problem(nn.Linear(2, 2), batches=[torch.ones(3, 2)], objective=objective)
        >>> problem.hvp(problem.weights).shape
        torch.Size([6])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction | None = None,
        batches: Iterable[Any] = (),
        *,
        weight: Callable[[Any], float] | None = None,
        objective: Callable[[nn.Module, Any], Any] | None = None,
        parameters: str | Sequence[str] | None = None,
        batch_norm: str = "frozen",
        logit_normalization: bool = False,
        evaluation_mode: bool = True,
        recalibration_examples: int = 2048,
        distributed: bool = False,
        check: bool = True,
    ) -> None:
        require_derivatives("Problem is made")
        self.objective = Objective.of(loss, objective, weight)
        if logit_normalization and (self.objective.by_model or self.objective.function is not None):
            raise InputError("logit_normalization needs a loss(outputs, targets): give one")
        self.model, self.batch_norm = unwrapped(model), batch_norm
        sharded = has_shards(self.model)
        if sharded and not distributed:
            raise InputError(
                "the model's parameters are sharded over processes: give distributed=True, and each process its own "
                "share of the examples"
            )
        self.parameters = (SpreadParameters if sharded else Parameters).of(self.model, parameters)
        self.weights = self.parameters.read(self.model)
        kind = ShardedEvaluator if sharded else Evaluator
        self.evaluator = kind(self.model, self.parameters, batch_norm, evaluation_mode=evaluation_mode)
        self._shared = Shared()
        self.logit_normalization, self.recalibration_examples = logit_normalization, recalibration_examples
        self.distributed = distributed
        whole = objective is not None
        reader = Reader(self.model.forward, keep_target=self.objective.by_model, whole=whole)
        dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        # Half precision would narrow what the loss compares, and a frozen half backbone takes its inputs as they are.
        dtype = self.weights.dtype if len(dtypes) == 1 and self.weights.dtype in _WIDE else None
        source = source_of(batches, own_targets=not whole)
        weigh, counted = self.objective.weigh, self.objective.counted
        # A loader draws from the caller's streams whenever it is iterated.
        with undisturbed(*generators_of(source)):
            self.batches = Batches.read(source, reader, self.weights.device, dtype, weigh, counted)
            self.calibration_batches = self.batches
            checks.settle(self, check=check)
        checks.total(self)

    # -- what L is -----------------------------------------------------------------------------------------------

    def loss(self, w: Tensor | None = None) -> Tensor:
        """L(w), a 0-dim float64 tensor on the device. Cost: one forward pass."""
        total = self.zero()
        with self.values(w):
            for batch in self.weighted_batches():
                total += self.batch_loss(self.forward(batch), batch).detach().double() * batch.weight
        return self.summed(total) / self.weight

    def evaluate(self, w: Tensor | None = None) -> Evaluation:
        """L(w) and the accuracy. Cost: one forward pass."""
        total, hits = self.zero(), self.zero()
        with self.values(w):
            for batch in self.batches:
                outputs = self.forward(batch)
                if batch.weight:
                    total += self.batch_loss(outputs, batch).detach().double() * batch.weight
                right = count_hits(outputs, batch.target, self.objective.ignored)
                hits += torch.nan if right is None else right
        both = self.summed(torch.stack([total, hits]))
        return Evaluation(both[0] / self.weight, both[1] / self.classified)

    def outputs(self, w: Tensor | None = None) -> Tensor:
        """f_w(x_i) of all examples, concatenated: shape (n, ...). Cost: one forward pass.

        If a model returns several tensors: the logits, or the first of them.

        Raises:
            InputError: an objective function, which shows no outputs.
        """
        with self.values(w):
            parts = [self.batch_outputs(batch).detach() for batch in self.batches]
        if len({p.shape[1:] for p in parts}) > 1:
            shapes = ", ".join(sorted({str(tuple(p.shape)) for p in parts})[:4])
            raise InputError(
                f"the outputs of the batches differ in shape ({shapes}): give batches padded to one length"
            )
        return torch.cat(parts)

    def losses(self, w: Tensor | None = None) -> Tensor:
        """What each example adds to L, times n: shape (n,), float64; their mean is L(w). Cost: one forward pass.

        Without class weights and ignored targets that is l(f_w(x_i), y_i).

        Raises:
            InputError: the loss knows no single examples, or theirs do not add up to it.
        """
        with self.values(w):
            parts = [self.example_losses(self.forward(batch), batch).detach().double() for batch in self.batches]
        return torch.cat(parts) * (self.examples / self.weight)

    def example_losses(self, outputs: Any, batch: Batch) -> Tensor:
        """What each example of a batch adds to c_b l_b: (size,), in the graph of the outputs.

        Raises:
            InputError: the loss knows no single examples, or theirs do not add up to it.
        """
        if not self.objective.exact and self.undividable is not None:
            raise InputError(
                f"the loss has no value per example ({self.undividable}): give Problem a loss that returns one"
            )
        return self.objective.example_losses(outputs, batch)

    def gradient(self, w: Tensor | None = None) -> Tensor:
        """Gradient of L at w: (d,). Cost: one forward and one backward pass."""
        return self.loss_and_gradient(w)[1]

    def loss_and_gradient(self, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """L(w) and its gradient (d,). Cost: one forward and one backward pass."""
        leaves, total = self.bindable(w), self.zero()
        with torch.enable_grad(), self.bound_tensors(leaves):
            for batch in self.weighted_batches():
                loss = self.batch_loss(self.forward(batch), batch)
                self._differentiable(loss)
                with telling("the backward pass", batch):
                    self.evaluator.backward(loss * self.share(batch), leaves)
                self.passes.backward += batch.size
                total += loss.detach().double() * batch.weight
            gradient = self.parameters.flatten(self.evaluator.slopes(leaves))
        return self.summed(total) / self.weight, self.summed(gradient)

    def hvp(self, v: Tensor, w: Tensor | None = None) -> Tensor:
        """Hessian of L at w times v: (d,), by double backward. Cost: one Hessian-vector product (about 4 forwards).

        Attention runs through its MATH backend, the only one with a second derivative.

        Raises:
            InputError: an operation without second derivative; it is named.
        """
        spread = spread_of(self.weights)
        if spread is not None:
            return spread.here(self.gathered(w).hvp(self.whole(v)))
        return second_derivative.named(lambda: self._hvp(v, w))

    def _hvp(self, v: Tensor, w: Tensor | None) -> Tensor:
        leaves, result = self.leaves(w), torch.zeros_like(self.weights)
        pieces = self.parameters.typed(v.to(self.weights))
        with torch.enable_grad(), second_derivative.twice_differentiable(self.model), self.bound_tensors(leaves):
            for batch in self.weighted_batches():
                loss = self.batch_loss(self.forward(batch), batch)
                second_derivative.require(loss)
                gradients = self.first_derivative(loss, leaves, batch)
                self.add_second_derivative(result, gradients, leaves, pieces, batch)
        return self.summed(result)

    def plan(self, *, vectors: int = 0, eigenpairs: int | None = None) -> Plan:
        """What a computation needs in memory beside what is free; see `landscape.problem.memory.Plan`.

        Args:
            vectors: vectors of length d that will be held.
            eigenpairs: hold as many as `top_eigenvalues` of so many does instead, with a basis where that fits.

        Cost: forward and backward passes over up to 24 examples.
        """
        return plan(self, vectors=vectors, eigenpairs=eigenpairs)

    # -- what L is known by ----------------------------------------------------------------------------------------

    @property
    def computed_in(self) -> torch.dtype:
        """The coarsest dtype that L is computed in, tried out once: a loss may be coarser than its weights."""
        if not self._shared.computed_in:
            self._shared.computed_in.append(precision.coarsest(self))
        return self._shared.computed_in[0]

    @property
    def loss_name(self) -> str:
        """What tells L from that of another loss; the weights of the batches count where they are not their sizes."""
        even = all(
            c * self.examples == s * self.weight for c, s in zip(self.batches.weights, self.batches.sizes, strict=True)
        )
        return self.objective.name if even else f"{self.objective.name} weighed by {self.objective.weighing}"

    def provenance(self) -> dict[str, Any]:
        """What was computed on what: sample, weights of the batches, BatchNorm policy, dtype, device, versions."""
        return {
            "loss": self.loss_name,
            "examples": self.examples,
            "weighing": self.objective.weighing,
            "weight": self.weight,
            "sample_sha256": self.batches.fingerprint(),
            "batch_norm": self.batch_norm,
            "logit_normalization": self.logit_normalization,
            "dtype": str(self.weights.dtype).removeprefix("torch."),
            "device": str(self.weights.device),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "notes": list(self.notes),
        }
