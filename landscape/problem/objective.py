"""The objective: how a batch becomes a loss l_b and a weight c_b, so that L(w) = sum_b c_b l_b(w) / sum_b c_b."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.problem import structure
from landscape.problem.batches import Batch
from landscape.problem.loss_name import loss_name
from landscape.problem.losses import CLASSES, TorchLoss, torch_loss
from landscape.problem.outputs import class_counts, logits_in, own_loss
from landscape.random import forked

Weight = Callable[[Any], float]
IGNORED = -100
"""The class index that does not count unless a loss says another: torch's and Hugging Face's."""
_MEMORY = ("out of memory", "can't allocate memory", "DefaultCPUAllocator")
_NO_DERIVATIVE = ("derivative for", "does not support", "saved tensor hooks", "invalid python storage")
_CALLED = {
    "the model": "a batch must hold what forward() takes: (inputs..., target), or a dict of its arguments and target",
    "the loss": "it is called as loss(outputs, targets), outputs as the model returned them",
    "the loss of single examples": "give Problem a loss that returns one value per example",
    "the backward pass": "loss.backward() has to work in plain torch",
    "the objective": "it is called as objective(model, batch), batch as the loader gave it",
}
_TOLD = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    ZeroDivisionError,
)


@dataclass
class Objective:
    """What is minimized: l_b of a batch's outputs, and what c_b is.

    Attributes:
        loss: called as loss(outputs, targets); None with `function`, or for the model's own loss.
        function: called as function(model, batch), returns loss or (loss, weight).
        weight: the user's c_b of an item of the loader.
        torch: the loss as one of torch's, whose denominators are known; None for any other.
        denominator: what the loss of a batch divides by, where that is known.
        weighing: what c_b is, in words for provenance and report.
        exact: whether c_b is what the loss divides by, so that batches add up by construction.
        takes_logits: the loss gets `outputs.logits`; None until the first batch shows it.
        writes_inputs: the model writes to its inputs, or asks for their gradient: each pass gets copies of them; None
            until the first pass, which gets copies too, shows it.
    """

    loss: Callable[[Any, Any], Tensor] | None
    function: Callable[[nn.Module, Any], Any] | None = None
    weight: Weight | None = None
    torch: TorchLoss | None = None
    denominator: Callable[[Batch], float] | None = None
    weighing: str = "examples"
    exact: bool = False
    takes_logits: bool | None = field(default=None, repr=False)
    writes_inputs: bool | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        loss: Callable[[Any, Any], Tensor] | None,
        function: Callable[[nn.Module, Any], Any] | None = None,
        weight: Weight | None = None,
    ) -> Objective:
        """The objective of Problem's arguments.

        Raises:
            InputError: a loss beside an objective, a class or something that cannot be called, reduction='sum'.
        """
        for name, value in (("loss", loss), ("objective", function), ("weight", weight)):
            if value is not None and (not callable(value) or isinstance(value, type)):
                what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
                raise InputError(f"{name} is {what}: a function or an instance is needed, called by Problem itself")
        if function is not None:
            if loss is not None or weight is not None:
                raise InputError("objective= computes the loss by itself: give it without loss and weight")
            return cls(None, function, weighing="1 a batch")
        loss = getattr(loss, "_orig_mod", getattr(loss, "_torchdynamo_orig_callable", loss))
        known = torch_loss(loss) if loss is not None else None
        if weight is not None:
            return cls(loss, None, weight, known, weighing="weight(batch)")
        if known is not None and known.reduction != "none":
            words = {"classes": "targets that count", "elements": "elements of the targets", "examples": "examples"}
            text = "class weights of the targets" if known.class_weights is not None else words[known.kind]
            return cls(loss, None, None, known, lambda batch: known.denominator(batch.target), text, exact=True)
        return cls(loss, torch=known)

    @property
    def by_model(self) -> bool:
        """Whether the model computes its loss itself."""
        return self.loss is None and self.function is None

    @property
    def name(self) -> str:
        """What tells it from others, see `loss_name`."""
        return f"objective {loss_name(self.function)}" if self.function is not None else loss_name(self.loss)

    @property
    def cross_entropy(self) -> bool:
        """Whether it is one of torch's cross-entropies of logits."""
        return self.torch is not None and self.torch.kind == CLASSES and self.torch.of_logits

    def weigh(self, item: Any, batch: Batch) -> float:
        """c_b as far as it is known without evaluating: by the user, by torch's denominator, else the examples.

        For an objective function it is nan: only an evaluation shows it.
        """
        if self.function is not None:
            return math.nan
        if self.weight is not None:
            if item is None:
                raise InputError("weight(batch) is known of the loader's batches alone: they cannot be regrouped")
            return _number(self.weight(item), f"weight(batch) of {batch}")
        return float(batch.size) if self.denominator is None else self.denominator(batch)

    @property
    def ignored(self) -> int:
        """The class index that does not count."""
        return self.torch.ignore_index if self.torch is not None else IGNORED

    def counted(self, batch: Batch) -> int:
        """Number of examples whose class counts, which accuracy runs over; all where targets are not classes."""
        target = batch.target
        if not isinstance(target, Tensor) or target.dim() != 1 or target.is_floating_point():
            return batch.size
        return int(class_counts(target, self.ignored).sum())

    def contributing(self, batch: Batch) -> Tensor:
        """Whether each example has a part in L: (size,) bool; none where its labels are all ignored, or weigh 0.

        An objective function shows no labels: all examples of a batch count as having one.

        Raises:
            InputError: an example whose labels are all -100, under a loss that does not show whether it ignores them.
        """
        target, device = batch.target, next((t.device for t in batch.tensors()), None)
        if not batch.weight:
            return torch.zeros(batch.size, dtype=torch.bool, device=device)
        if self.torch is not None and self.torch.kind == CLASSES and self.torch.reduction != "none":
            return self.torch.contributing(target)
        if self.by_model and self.denominator is not None and batch.sliceable:
            counts = [self.denominator(batch.rows(i, i + 1)) for i in range(batch.size)]
            return torch.tensor(counts, device=device) > 0
        labels = isinstance(target, Tensor) and not target.is_floating_point() and self.torch is None
        if labels and not self.exact and bool((target == IGNORED).reshape(len(target), -1).all(1).any()):
            raise InputError(
                f"examples have only labels of {IGNORED}, and this loss does not show whether it ignores them, so that "
                "the number n of examples is not known: leave them out, or give one of torch's losses"
            )
        return torch.ones(batch.size, dtype=torch.bool, device=device)

    def learn(self, words: str, denominator: Callable[[Batch], float]) -> None:
        """Weigh batches by what their loss was seen to divide by."""
        self.weighing, self.denominator, self.exact = words, denominator, True

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """What the model returns on a batch; the pair (loss, weight) of an objective function."""
        inputs = (batch.args, batch.kwargs)
        if self.writes_inputs is not False:
            inputs = structure.mapped(inputs, lambda t: t.detach().clone().requires_grad_(t.requires_grad))
        seen = structure.tensors(inputs) if self.writes_inputs is None else []
        before = [(t, t._version, t.requires_grad) for t in seen]
        # Containers are copies: scripts that pop the labels off their batch would find none the second time.
        args, kwargs = [copy.copy(a) if isinstance(a, Mapping | list) else a for a in inputs[0]], inputs[1]
        with telling("the model" if self.function is None else "the objective", batch):
            returned = model(*args, **kwargs) if self.function is None else self.function(model, args[0])
        if self.writes_inputs is None:
            self.writes_inputs = any(t._version != v or t.requires_grad != r for t, v, r in before)
        if self.function is None:
            return returned
        return Pair(*returned) if isinstance(returned, tuple) and len(returned) == 2 else Pair(returned)

    def value(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss: 0-dim, or one value per example (size,); in the graph of the outputs.

        Raises:
            InputError: another shape or type, outputs that the loss cannot take, targets that do not fit.
        """
        if isinstance(outputs, Pair):
            return self._checked(outputs.loss, batch)
        if self.loss is None:
            return self._checked(own_loss(outputs), batch)
        if self.torch is not None:
            logits = logits_in(outputs)
            if logits is None:
                raise InputError(
                    f"the model returned {type(outputs).__name__}, one of torch's losses needs a tensor: give "
                    "loss=lambda outputs, targets: ... that picks what it compares"
                )
            if isinstance(batch.target, Tensor):
                self.torch.refuse_unfit(logits, batch.target)
            with telling("the loss", batch):
                return self._checked(self.loss(logits, batch.target), batch)
        if self.takes_logits is None:
            self.takes_logits = self._needs_logits(outputs, batch)
        with telling("the loss", batch):
            return self._checked(self.loss(logits_in(outputs) if self.takes_logits else outputs, batch.target), batch)

    def look(self, outputs: Any, batch: Batch, batches: Sequence[Batch]) -> None:
        """See on the first batch what the loss is; refuse targets of any batch that do not fit the outputs.

        A loss of one value per example needs no denominator. That of one of torch's losses is compared with the sum of
        the examples' own values, so that a version of torch that divides by something else is noticed.
        """
        logits = logits_in(outputs)
        if self.torch is not None and logits is not None and logits.dim() > 1 and isinstance(batch.target, Tensor):
            self.torch.refuse_unfit(logits, batch.target)
            for other in batches:
                self.torch.refuse_labels(other.target, logits.shape[1])
        value = self.value(outputs, batch)
        if value.dim() == 1 and self.weight is None and self.denominator is None and self.function is None:
            self.exact = True
        if self.torch is None or self.torch.reduction == "none":
            return
        assert logits is not None
        each = self.torch.each_example(logits, batch.target).double() / self.torch.denominator(batch.target)
        rounding = min(max(100 * torch.finfo(value.dtype).eps, 1e-9), 0.02)
        if self.denominator is not None and bool((each.sum() - value).abs() > rounding * each.abs().sum()):
            self.denominator, self.exact, self.weighing = None, False, "examples"

    def example_losses(self, outputs: Any, batch: Batch) -> Tensor:
        """What each example adds to c_b l_b: (size,), in the graph of the outputs.

        Raises:
            InputError: the loss knows no single examples, or theirs do not add up to it.
        """
        if self.function is not None or self.loss is None:
            whose = "an objective function" if self.function is not None else "this model"
            raise InputError(f"{whose} returns only its mean loss: give Problem a loss to get one value per example")
        value = self.value(outputs, batch)
        if value.dim() == 1:
            return value * (batch.weight / batch.size)
        logits = logits_in(outputs)
        if self.torch is not None and self.denominator is not None:
            assert logits is not None
            return self.torch.each_example(logits, batch.target)
        if logits is None or not isinstance(batch.target, Tensor) or (logits is not outputs and not self.takes_logits):
            raise InputError(
                "this loss knows no single examples, as it compares something else than one row per example: give "
                "Problem one that returns one value per example"
            )
        loss = self.loss
        with telling("the loss of single examples", batch):
            each = torch.func.vmap(lambda o, t: loss(o.unsqueeze(0), t.unsqueeze(0)))(logits, batch.target)
        tolerance = max(1e3 * torch.finfo(value.dtype).eps, 1e-9)
        if each.shape != (batch.size,) or not torch.allclose(each.mean(), value, rtol=tolerance, atol=tolerance):
            raise InputError(
                "the mean of the single examples' losses is not the loss of their batch (class weights, ignored "
                "targets, contrast between examples): give Problem a loss that returns one value per example"
            )
        return each * (batch.weight / batch.size)

    def shares(self, batch: Batch) -> Tensor:
        """How much of c_b each example has: (size,); they sum to it.

        Raises:
            InputError: the loss knows no single examples.
        """
        if self.torch is None or self.denominator is None or self.torch.kind != CLASSES:
            return torch.full((batch.size,), batch.weight / batch.size)
        return self.torch.example_weights(batch.target)

    def compared(self, outputs: Any) -> Tensor:
        """The one tensor of outputs that the loss compares with the targets.

        Raises:
            InputError: the loss takes something else, or is computed by the model or an objective function.
        """
        logits = logits_in(outputs)
        if self.loss is None or logits is None or not (self.torch or self.takes_logits or logits is outputs):
            raise InputError(
                "a matrix that is built from the loss's Hessian at the outputs needs a loss(outputs, targets) of one "
                'tensor; take the Hessian itself, or estimate its trace: method="hutch++"'
            )
        return logits

    def _needs_logits(self, outputs: Any, batch: Batch) -> bool:
        """Whether the loss fails on what the model returned and works on its `.logits`."""
        logits = logits_in(outputs)
        if logits is None or logits is outputs:
            return False
        assert self.loss is not None
        with torch.no_grad(), forked():
            try:
                self.loss(outputs, batch.target)
            except Exception:
                try:
                    self.loss(logits, batch.target)
                except Exception:
                    return False
                return True
        return False

    def _checked(self, value: Any, batch: Batch) -> Tensor:
        one_each = batch.size if self.function is None else -1
        if not isinstance(value, Tensor):
            received = f"{type(value).__name__}, no tensor"
        elif hasattr(value, "placements"):
            received = "a DTensor, computed from shards outside of the module that gathers them"
        elif value.is_complex() or not value.is_floating_point():
            received = f"a tensor of {value.dtype}"
        elif value.dim() == 0 or value.shape == (one_each,):
            return value
        else:
            received = f"shape {tuple(value.shape)} for {batch.size} examples"
        needed = (
            "a scalar"
            if self.function is not None
            else f"a mean-reduced scalar or one value per example, ({batch.size},),"
        )
        raise InputError(f"the loss returned {received}: {needed} is needed ({batch})")


class Pair:
    """What an objective function returned: the loss and, if it gave one, the weight."""

    def __init__(self, loss: Any, weight: Any = None) -> None:
        self.loss, self.weight = loss, weight

    def number(self, batch: Batch) -> float:
        """The weight as a number; 1 where none was given."""
        return (
            1.0 if self.weight is None else _number(self.weight, f"the weight that the objective returned for {batch}")
        )


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} is {type(value).__name__}: a number is needed") from error
    if not 0 <= number < float("inf"):
        raise InputError(f"{what} is {number:g}: a finite number that is not negative is needed")
    return number


@contextlib.contextmanager
def telling(what: str, batch: Batch) -> Iterator[None]:
    """A common exception of the user's code becomes one line that says where it arose; others stay as they are."""
    try:
        yield
    except _TOLD as error:
        if type(error) not in _TOLD:
            raise
        text = (str(error).strip().splitlines() or [""])[0]
        if any(words in text for words in (*_MEMORY, *_NO_DERIVATIVE)):
            raise  # said elsewhere, in words of their own
        if "Expected more than 1 value per channel" in text:
            raise InputError(
                f"BatchNorm has no variance over one example ({batch}): give larger batches, or drop_last=True, or "
                'batch_norm="frozen"'
            ) from error
        raise InputError(f"{what} failed on {batch}: {type(error).__name__}: {text[:300]}; {_CALLED[what]}") from error
