"""Problem: the function L(w) of a model, a loss and a fixed set of batches."""

from __future__ import annotations

import contextlib
import copy
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.curvature.products import second_derivative
from landscape.errors import InputError, NonDeterministicWarning
from landscape.problem import checks as problem_checks
from landscape.problem.batches import Batch, Batches
from landscape.problem.evaluator import Evaluator
from landscape.problem.loss_name import loss_name
from landscape.problem.outputs import count_hits, logits_of
from landscape.problem.parameters import Parameters

LossFunction = Callable[[Any, Any], Tensor]


@dataclass
class Passes:
    """Work done, in examples: forward passes, backward passes and Hessian-vector products."""

    forward: float = 0
    backward: float = 0
    hvp: float = 0


@dataclass(frozen=True)
class Evaluation:
    """Loss (0-dim float64 tensor on the device) and accuracy in [0, 1] (nan where targets are no class indices)."""

    loss: Tensor
    accuracy: Tensor


class Problem:
    """The loss L(w) = sum_i l(f_w(x_i), y_i) / n over a fixed set of n examples, at the model's weights or any other.

    Batches are weighted by their number of examples, so unequal ones sum exactly to L(w); sums accumulate in float64
    and stay on the device. The model is evaluated in evaluation mode with the stated BatchNorm policy and is left
    bit-identical: weights, buffers, training flags, requires_grad.

    Args:
        model: any nn.Module on one device.
        loss: called as loss(outputs, targets); returns a mean-reduced scalar or one value an example. None takes
            `outputs.loss` of models that compute it themselves.
        batches: any iterable of tensors, tuples (inputs, targets) or dicts; see `landscape.problem.batches.as_batch`.
        parameters: shell pattern(s) of the parameters that make up w; the others stay as they are.
        batch_norm: "frozen", "batch" or "recalibrate" (statistics estimated at each w on the first
            `recalibration_examples`).
        logit_normalization: outputs are centered and scaled to unit length per example before the loss
            (Andriushchenko 2023, arXiv 2302.07011): without it, scaling up the last layer changes every sharpness.
        evaluation_mode: False keeps the model's own training flags.
        distributed: sum over the processes of torch.distributed; each holds its own share of the examples.
        check: look at one batch: whether two evaluations agree (else NonDeterministicWarning, naming the cause), and
            whether the loss follows the weights.

    Raises:
        InputError: no trainable parameter, no example, a loss of another shape, a sum-reduced loss; a forward pass that
            writes to a parameter or reaches one past the module that holds it.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossFunction | None,
        batches: Iterable[Any],
        *,
        parameters: str | Sequence[str] | None = None,
        batch_norm: str = "frozen",
        logit_normalization: bool = False,
        evaluation_mode: bool = True,
        recalibration_examples: int = 2048,
        distributed: bool = False,
        check: bool = True,
    ) -> None:
        if getattr(loss, "reduction", "mean") == "sum":
            raise InputError("the loss has reduction='sum': a mean-reduced loss or one value an example is needed")
        self.model, self.batch_norm = model, batch_norm
        self.parameters = Parameters.of(model, parameters)
        self.weights = self.parameters.read(model)
        self.batches = Batches(batches, self.weights.device, self.weights.dtype, keep_target=loss is None)
        self.passes = Passes()
        self.notes: list[str] = []
        self.logit_normalization, self.recalibration_examples = logit_normalization, recalibration_examples
        self._loss, self._distributed = loss, distributed
        self._evaluator = Evaluator(model, self.parameters, batch_norm, evaluation_mode=evaluation_mode)
        self.examples = self._total_examples()
        if check:
            self._check()

    # -- what L is -----------------------------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """Number of entries d of w."""
        return self.parameters.dimension

    def loss(self, w: Tensor | None = None) -> Tensor:
        """L(w), a 0-dim float64 tensor on the device. Cost: one forward pass."""
        total = self._zero()
        with torch.inference_mode(), self.bound(w):
            for batch in self.batches:
                total += self.batch_loss(self.forward(batch), batch).double() * batch.size
        return self._sum(total) / self.examples

    def evaluate(self, w: Tensor | None = None) -> Evaluation:
        """L(w) and the accuracy. Cost: one forward pass."""
        total, hits = self._zero(), self._zero()
        with torch.inference_mode(), self.bound(w):
            for batch in self.batches:
                outputs = self.forward(batch)
                total += self.batch_loss(outputs, batch).double() * batch.size
                right = count_hits(outputs, batch.target)
                hits += torch.nan if right is None else right
        both = self._sum(torch.stack([total, hits])) / self.examples
        return Evaluation(both[0], both[1])

    def outputs(self, w: Tensor | None = None) -> Tensor:
        """f_w(x_i) of all examples, concatenated: shape (n, ...). Cost: one forward pass."""
        with torch.no_grad(), self.bound(w):
            return torch.cat([logits_of(self.forward(batch)) for batch in self.batches])

    def losses(self, w: Tensor | None = None) -> Tensor:
        """l(f_w(x_i), y_i) of each example: shape (n,), float64. Cost: one forward pass."""
        with torch.no_grad(), self.bound(w):
            return torch.cat([self.example_losses(self.forward(batch), batch).double() for batch in self.batches])

    def gradient(self, w: Tensor | None = None) -> Tensor:
        """Gradient of L at w: (d,). Cost: one forward and one backward pass."""
        return self.loss_and_gradient(w)[1]

    def loss_and_gradient(self, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """L(w) and its gradient (d,). Cost: one forward and one backward pass."""
        leaves, total = self.leaves(w), self._zero()
        with torch.enable_grad(), self.bound_tensors(leaves):
            for batch in self.batches:
                loss = self.batch_loss(self.forward(batch), batch)
                self._differentiable(loss)
                (loss * (batch.size / self.examples)).backward(inputs=leaves)
                self.passes.backward += batch.size
                total += loss.detach().double() * batch.size
        gradient = self.parameters.flatten([torch.zeros_like(t) if t.grad is None else t.grad for t in leaves])
        return self._sum(total) / self.examples, self._sum(gradient)

    def hvp(self, v: Tensor, w: Tensor | None = None) -> Tensor:
        """Hessian of L at w times v: (d,), by double backward. Cost: one Hessian-vector product (about 4 forwards).

        Attention runs through its MATH backend, the only one with a second derivative.

        Raises:
            InputError: an operation without second derivative; it is named.
        """
        return second_derivative.named(lambda: self._hvp(v, w))

    def _hvp(self, v: Tensor, w: Tensor | None) -> Tensor:
        leaves, result = self.leaves(w), torch.zeros_like(self.weights)
        pieces = self.parameters.unflatten(v.to(self.weights))
        with torch.enable_grad(), second_derivative.twice_differentiable(self.model), self.bound_tensors(leaves):
            for batch in self.batches:
                loss = self.batch_loss(self.forward(batch), batch)
                second_derivative.require(loss)
                gradients = self.first_derivative(loss, leaves, batch)
                result += self.parameters.flatten(self.second_derivative(gradients, leaves, pieces, batch))
        return self._sum(result)

    # -- the parts that analyzers build on -----------------------------------------------------------------------

    def leaves(self, w: Tensor | None = None) -> list[Tensor]:
        """Views of w in the model's shapes, each a leaf of automatic differentiation.

        The flat vector itself never takes part: the backward of slicing it would cost a copy of it a slice.
        """
        return [t.detach().requires_grad_() for t in self.parameters.unflatten(self._at(w))]

    @contextlib.contextmanager
    def bound(self, w: Tensor | None = None) -> Iterator[None]:
        """Within the context the model computes at w (by default: at the weights of the Problem)."""
        with self.bound_tensors(self.parameters.unflatten(self._at(w))):
            yield

    @contextlib.contextmanager
    def bound_tensors(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Within the context the model computes with these tensors, statistics by the BatchNorm policy."""
        statistics = None
        if self.batch_norm == "recalibrate" and self._evaluator.batch_norms:
            statistics = self._evaluator.recalibrated(tensors, self._calibration_passes())
        with self._evaluator.bound(tensors, statistics):
            yield

    def forward(self, batch: Batch) -> Any:
        """The model's outputs on a batch (within `bound`); normalized logits where that was asked for."""
        self.passes.forward += batch.size
        outputs = self.model(*batch.args, **batch.kwargs)
        if not self.logit_normalization:
            return outputs
        logits = logits_of(outputs)
        centered = logits - logits.mean(dim=-1, keepdim=True)
        return centered / torch.linalg.vector_norm(centered, dim=-1, keepdim=True).clamp(min=1e-12)

    def batch_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Mean loss of a batch, a 0-dim tensor in the graph of the outputs."""
        value = self._raw_loss(outputs, batch)
        return value if value.dim() == 0 else value.mean()

    def example_losses(self, outputs: Any, batch: Batch) -> Tensor:
        """Loss of each example of a batch: (size,), in the graph of the outputs; also for a mean-reduced loss."""
        value = self._raw_loss(outputs, batch)
        if value.dim() == 1:
            return value
        if self._loss is None:
            raise InputError("this model returns only its mean loss: give Problem a loss to get one value an example")
        loss, logits = self._loss, logits_of(outputs)
        return torch.func.vmap(lambda o, t: loss(o.unsqueeze(0), t.unsqueeze(0)))(logits, batch.target)

    def first_derivative(self, loss: Tensor, leaves: Sequence[Tensor], batch: Batch) -> list[Tensor | None]:
        """Gradient of the batch's share of L, with its graph: one tensor a leaf, None where the loss ignores it."""
        self._differentiable(loss)
        self.passes.backward += batch.size
        share = loss * (batch.size / self.examples)
        return list(torch.autograd.grad(share, leaves, create_graph=True, allow_unused=True))

    def second_derivative(
        self,
        gradients: Sequence[Tensor | None],
        leaves: Sequence[Tensor],
        pieces: Sequence[Tensor],
        batch: Batch,
        *,
        retain_graph: bool = False,
    ) -> list[Tensor]:
        """Derivative of <gradients, pieces>, one tensor a leaf: the batch's share of H v."""
        pairs = [(g, v) for g, v in zip(gradients, pieces, strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return [torch.zeros_like(t) for t in leaves]
        self.passes.hvp += batch.size
        outputs, vectors = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, leaves, vectors, retain_graph=retain_graph, allow_unused=True)
        return [torch.zeros_like(t) if f is None else f for f, t in zip(found, leaves, strict=True)]

    @contextlib.contextmanager
    def counting(self) -> Iterator[dict[str, float]]:
        """A dict that holds, after the context, the passes over the n examples that were made within it."""
        before, cost = copy.copy(self.passes), {}  # type: ignore[var-annotated]
        yield cost
        cost.update({k: (v - getattr(before, k)) / self.examples for k, v in asdict(self.passes).items()})

    def with_batches(self, batches: Sequence[Batch]) -> Problem:
        """The same model, loss and weights over other batches; passes are counted together."""
        other = copy.copy(self)
        other.batches = Batches.of(batches)
        other.examples = other._total_examples()
        return other

    def rebatched(self, size: int) -> Problem:
        """The same L(w) computed in batches of `size` examples."""
        return self.with_batches(self.batches.split(size))

    def restricted(self, pattern: str | Sequence[str]) -> Problem:
        """The same loss as a function of the parameters that match the pattern alone, the others at their weights."""
        other = copy.copy(self)
        other.parameters = Parameters.of(self.model, pattern)
        other.weights = other.parameters.read(self.model)
        other._evaluator = Evaluator(
            self.model, other.parameters, self.batch_norm, evaluation_mode=self._evaluator.evaluation_mode
        )
        return other

    def relocated(self, w: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Problem:
        """The same loss and batches for a copy of the model that holds the weights w (d,) and these named buffers."""
        other = copy.copy(self)
        other.model, other.weights = copy.deepcopy(self.model), self._at(w).clone()
        self.parameters.write(other.model, other.weights)
        held = dict(other.model.named_buffers())
        for name, tensor in (buffers or {}).items():
            held[name].data.copy_(tensor)
        mode = self._evaluator.evaluation_mode
        other._evaluator = Evaluator(other.model, self.parameters, self.batch_norm, evaluation_mode=mode)
        return other

    def provenance(self) -> dict[str, Any]:
        """What was computed on what: sample, BatchNorm policy, dtype, device, versions."""
        return {
            "loss": loss_name(self._loss),
            "examples": self.examples,
            "sample_sha256": self.batches.fingerprint(),
            "batch_norm": self.batch_norm,
            "logit_normalization": self.logit_normalization,
            "dtype": str(self.weights.dtype).removeprefix("torch."),
            "device": str(self.weights.device),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "notes": list(self.notes),
        }

    # -- inner ---------------------------------------------------------------------------------------------------

    def _at(self, w: Tensor | None) -> Tensor:
        if w is None:
            return self.weights
        if w.shape != self.weights.shape:
            raise InputError(f"w must be a flat vector of shape ({self.dimension},), received {tuple(w.shape)}")
        return w.to(self.weights)

    def _raw_loss(self, outputs: Any, batch: Batch) -> Tensor:
        if self._loss is None:
            return outputs.loss
        value = self._loss(logits_of(outputs), batch.target)
        if value.dim() == 0 or value.shape == (batch.size,):
            return value
        raise InputError(
            f"the loss returned shape {tuple(value.shape)} for {batch.size} examples: a mean-reduced scalar or one "
            f"value an example, ({batch.size},), is needed"
        )

    def _calibration_passes(self) -> Iterator[None]:
        seen = 0
        for batch in self.batches:
            # A short last batch would weigh as much as a full one in the cumulative average.
            if seen and batch.size < self.batches.sizes[0]:
                continue
            self.forward(batch)
            seen += batch.size
            yield
            if seen >= self.recalibration_examples:
                return

    def _differentiable(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise InputError("the loss does not depend on the chosen parameters through differentiable operations")

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.weights.device)

    def _sum(self, value: Tensor) -> Tensor:
        if self._distributed:
            torch.distributed.all_reduce(value)
        return value

    def _total_examples(self) -> int:
        count = torch.tensor(self.batches.examples, dtype=torch.float64, device=self.weights.device)
        return int(self._sum(count))

    def _check(self) -> None:
        """Look at the first batch; what makes L random is a warning and a note of the Problem's provenance."""
        counted = copy.copy(self.passes)
        with torch.random.fork_rng():
            batch = next(iter(self.batches))
            problem_checks.require_function_of_weights(self, batch)
            causes = list(problem_checks.random_causes(self, batch))
        self.passes = counted
        for cause in causes:
            self.notes.append(cause)
            warnings.warn(cause, NonDeterministicWarning, stacklevel=4)
