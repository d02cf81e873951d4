"""What is looked at when a Problem is made: is the loss one function of the weights, the same at every call?"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from landscape import processes
from landscape.ball.spread import spread_of
from landscape.curvature.products import second_derivative
from landscape.errors import InputError, NonDeterministicWarning
from landscape.problem import additivity
from landscape.problem.batches import Batch
from landscape.problem.objective import Pair
from landscape.problem.outputs import logits_in
from landscape.problem.sharded import REASON
from landscape.random import forked

if TYPE_CHECKING:
    from landscape.problem.batch_passes import BatchPasses
    from landscape.problem.problem import Problem

_TRIED = 32
"""Examples of a batch on which a sharded network's own loss is tried out."""
_DTYPES_DIFFER = ("same dtype", "expected scalar type", "should be the same", "Found dtype", "expected m1 and m2")
"""What torch says of inputs in another dtype than the weights'."""


def settle(problem: Problem, *, check: bool) -> None:
    """Evaluate the first batch of a new Problem: what its loss is, and what c_b is where only evaluating shows it."""
    require_common_statistics(problem)
    with problem.uncounted(), forked():
        sharded = spread_of(problem.weights) is not None
        if sharded:
            _require_same_passes(problem)
            problem.settle_division(REASON)
        first = next(problem.weighted_batches(), None)
        if first is None:
            return  # Problem says that no target counts
        if check:
            require_no_kept_weights(problem, first)
        outputs = _first_outputs(problem, first)
        if isinstance(outputs, Pair):
            _weigh_by_objective(problem, outputs)
        tried = _common(problem) if sharded else problem
        if problem.objective.by_model and (known := additivity.own_denominator(tried)) is not None:
            problem.objective.learn(*known)
            problem.batches.reweighed([known[1](b) for b in problem.batches])
        first = next(problem.weighted_batches(), None)
        if check and first is not None:
            _check(problem, first)


def require_common_statistics(problem: BatchPasses) -> None:
    """Refuse statistics that each process would estimate from its own examples: L would be another one in each."""
    if problem.batch_norm != "recalibrate" or not problem.evaluator.batch_norms:
        return
    if problem.distributed and processes.world() > 1:
        raise InputError(
            "batch_norm='recalibrate' would estimate other statistics in each process, from its own examples: take "
            "'frozen' or 'batch', or analyze the checkpoint in one process"
        )


def _require_same_passes(problem: BatchPasses) -> None:
    """Refuse batches of which one process has more: the others would wait for its passes for ever."""
    counts = processes.gather((len(problem.batches), sum(bool(c) for c in problem.batches.weights)))
    if len(set(counts)) > 1:
        each = ", ".join(f"{n} ({weighted} with targets that count)" for n, weighted in counts)
        raise InputError(
            f"the processes of a sharded model have {each} batches: give each as many, since all make the same passes"
        )


def _common(problem: Problem) -> Problem:
    """The same loss over the first examples of process 0, in all processes: what is tried there is tried in step."""
    device, other = problem.weights.device, copy.copy(problem)
    few = [b.rows(0, _TRIED) if b.sliceable else b for b in itertools.islice(problem.batches, 4)]
    few = processes.agree([b.map(Tensor.cpu) for b in few])
    other.batches = problem.batches.of([b.map(lambda t: t.to(device)) for b in few])
    return other


def total(problem: BatchPasses) -> None:
    """Set the number of examples and the weight, over all processes.

    Raises:
        InputError: a process none of whose targets count, or with another number of batches of a sharded network.
    """
    batches = problem.batches
    if problem.distributed and spread_of(problem.weights) is not None:
        _require_same_passes(problem)
    totals = torch.tensor(
        [batches.examples, batches.weight, batches.classified], dtype=torch.float64, device=problem.weights.device
    )
    least = totals[1].clone()
    if problem.distributed:
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    if not least > 0:
        where = " of a process" if problem.distributed else ""
        raise InputError(
            f"the weights of all batches{where} are 0 ({problem.objective.weighing}): no target counts; check the "
            "labels and ignore_index"
        )
    examples, problem.weight, classified = problem.summed(totals).tolist()
    problem.examples, problem.classified = int(examples), int(classified)


def _first_outputs(problem: Problem, first: Batch) -> Any:
    """The outputs of the first batch.

    Where forward() takes derivatives without asking for a graph it gets one, where a network in half precision cannot
    take the inputs as they are these are cast.
    """

    def outputs_seen(batch: Batch) -> Any:
        with problem.values():
            outputs = problem.forward(replace(batch, weight=math.nan))
            problem.objective.look(outputs, batch, problem.batches.kept or [batch])
            return outputs

    try:
        return outputs_seen(first)
    except InputError as error:
        cause = str(error.__cause__)
        if "does not require grad" in cause:
            problem.evaluator.graph_inside = True
        elif problem.batches.dtype is None and any(words in cause for words in _DTYPES_DIFFER):
            problem.batches.cast_inputs(problem.weights.dtype)
            first = next(problem.weighted_batches())
        else:
            raise
        return outputs_seen(first)


def _weigh_by_objective(problem: Problem, first: Pair) -> None:
    if first.weight is None:
        problem.batches.reweighed([1.0] * len(problem.batches))
        return
    weights = []
    with problem.values():
        for batch in problem.batches:
            pair = problem.forward(replace(batch, weight=math.nan))
            if pair.weight is None:
                raise InputError(
                    f"the objective returned a weight for the first batch and none for {batch}: return both"
                )
            weights.append(pair.number(batch))
    problem.batches.reweighed(weights)
    with problem.values(1.1 * problem.weights):
        problem.forward(next(iter(problem.batches)))  # refuses a weight that follows w
    problem.objective.weighing = "the weights that the objective returns"


def _check(problem: Problem, batch: Batch) -> None:
    """Look at one batch; what makes L random is a warning and a note of the Problem's provenance."""
    sharded = spread_of(problem.weights) is not None
    if not sharded:
        require_function_of_weights(problem, batch)
    causes = list(random_causes(problem, batch))
    if not sharded:
        require_one_function(problem, batch)
    for cause in causes:
        problem.notes.append(cause)
        problem.random_causes.append(cause)
        warnings.warn(cause, NonDeterministicWarning, stacklevel=5)
    if problem.parameters.mixed:
        dtypes = sorted({str(s.dtype).removeprefix("torch.") for s in problem.parameters})
        problem.notes.append(
            f"the model computes in {', '.join(dtypes)}, each layer in its own; w is held in "
            f"{str(problem.weights.dtype).removeprefix('torch.')}, dots and sums are float64"
        )
    if len(problem.batches) > 1 and problem.objective.function is None and not causes and not sharded:
        _ = problem.undividable  # a note, where L is that of these batches


def require_no_kept_weights(problem: Problem, batch: Batch) -> None:
    """The first pass of all, with a graph: a module may keep constants that it computes, but nothing of its weights.

    Raises:
        InputError: a module keeps a tensor that was computed from weights, and would use it at other weights too.
    """
    before = [(m, dict(vars(m))) for m in problem.model.modules()]
    uses_shards, first = False, replace(batch, weight=math.nan)
    try:
        if spread_of(problem.weights) is None:
            _graphed(problem, first)
        else:
            uses_shards = _uses_shards(problem, first)
    except InputError:
        return  # the next pass says what is wrong
    if uses_shards:
        raise InputError(
            "the loss uses sharded parameters outside of the module that gathers them, where their gradients are not "
            "summed over the processes: compute that term in the module's forward(), or leave it out"
        )
    for name, module in problem.model.named_modules():
        held = next(attributes for m, attributes in before if m is module)
        for key, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.grad_fn is not None and held.get(key) is not value:
                for m, attributes in before:
                    vars(m).clear()
                    vars(m).update(attributes)
                raise InputError(
                    f"the module {name or 'itself'!r} keeps {key!r}, computed from its weights, for later calls, so "
                    "that the loss at other weights cannot be computed: compute it at every call, also in eval mode"
                )


def _uses_shards(problem: Problem, batch: Batch) -> bool:
    """Whether the loss reaches shards past the module that gathers them; one forward and one backward pass."""
    leaves = problem.bindable()
    with torch.enable_grad(), problem.bound_tensors(leaves):
        loss = problem.batch_loss(problem.forward(batch), batch)
        shards = any(hasattr(leaf, "placements") for leaf in second_derivative.leaves(loss))
        problem.evaluator.gradients(loss, leaves)
    return shards


def require_function_of_weights(problem: Problem, batch: Batch) -> None:
    """One forward pass at copies of the weights, with its graph.

    Raises:
        InputError: forward() writes to a parameter, or reaches one past its module and would keep the old one.
    """
    leaves = [t.detach().clone().requires_grad_() for t in problem.leaves()]
    try:
        loss = _graphed(problem, batch, leaves)
    except InputError:
        return  # no derivative: the first one asked for will say why
    names = problem.parameters.names
    for name, leaf in zip(names, leaves, strict=True):
        if leaf._version:
            raise InputError(
                f"the forward pass writes to the parameter {name!r} (an embedding with max_norm does), so that the "
                "loss is not a function of the weights: take that out, or do it once before"
            )
    trained = {id(p): name for name, p in problem.model.named_parameters() if name in names}
    for leaf in second_derivative.leaves(loss):
        if id(leaf) in trained:
            raise InputError(
                f"the model or the loss uses the parameter {trained[id(leaf)]!r} by a reference of its own (a list, "
                "a closure, a cached tensor), past the module that holds it, so that the loss at other weights "
                "cannot be computed: let it be read from its module at every call"
            )


def require_one_function(problem: Problem, batch: Batch) -> None:
    """Compare the loss without a graph, with one, and with the attention kernels of second derivatives.

    All under the same random state. Where only the attention kernels differ by more than rounding, every pass takes
    those that can be differentiated twice from here on.

    Raises:
        InputError: a pass without a graph computes something else; the module is named.
    """
    tolerance = _rounding(problem)
    with _Attention() as seen:
        plain = _plain(problem, batch)
    try:
        graphed = _graphed(problem, batch)
    except InputError:
        return  # no derivative: the first one asked for will say why
    if not _agree(plain, graphed, tolerance) and _agree(plain, _plain(problem, batch), tolerance):
        module = _first_difference(problem, batch, tolerance)
        # A loss near 0 is rounding itself: only a module that differs, or more than a hundredth, is another function.
        if module is not None or not _agree(plain, graphed, tolerance, floor=0.01):
            raise InputError(
                f"the loss is {float(graphed):.6g} with a graph of derivatives and {float(plain):.6g} without one: "
                f"{module or 'the loss'} computes something else under torch.no_grad() (a fast path?); make both the "
                "same"
            )
    if seen.attention:
        with sdpa_kernel(SDPBackend.MATH):
            problem.evaluator.math_attention = not _agree(_plain(problem, batch), graphed, tolerance)


class _Attention(TorchFunctionMode):
    """Sees whether fused attention is called."""

    attention = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.attention = True
        return function(*args, **(kwargs or {}))


def _plain(problem: Problem, batch: Batch) -> Tensor:
    with forked(), problem.values():
        return problem.batch_loss(problem.forward(batch), batch).detach().double()


def _graphed(problem: Problem, batch: Batch, leaves: Sequence[Tensor] | None = None) -> Tensor:
    """The loss with its graph; nothing is saved for a backward pass unless forward() itself takes derivatives."""

    def run(context: contextlib.AbstractContextManager[Any]) -> Tensor:
        bound = problem.bound_tensors(problem.leaves() if leaves is None else leaves)
        with forked(), torch.enable_grad(), bound, context:
            return problem.batch_loss(problem.forward(batch), batch).double()

    try:
        return run(torch.autograd.graph.saved_tensors_hooks(lambda t: None, lambda t: t))
    except (InputError, RuntimeError):
        return run(contextlib.nullcontext())


def _rounding(problem: Problem) -> float:
    """What the coarsest dtype on the way to a loss, or that of autocast, leaves undecided of it."""
    dtypes = [problem.computed_in, problem.evaluator.autocast or problem.weights.dtype]
    return min(max(1e3 * max(torch.finfo(d).eps for d in dtypes), 1e-10), 0.05)


def _agree(one: Tensor, other: Tensor, tolerance: float, floor: float = 0.0) -> bool:
    if not bool(one.isfinite() & other.isfinite()):
        return bool(one.isfinite() == other.isfinite())
    return bool((one - other).abs() <= tolerance * (floor + one.abs()))


def _first_difference(problem: Problem, batch: Batch, tolerance: float) -> str | None:
    """The module whose output is the first to differ between a pass without a graph and one with it."""
    runs: list[dict[str, Tensor]] = []
    for run in (_plain, _graphed):
        outputs: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for name, module in problem.model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                stack.callback(module.register_forward_hook(_keep(name, outputs)).remove)
            run(problem, batch)
        runs.append(outputs)
    for name, value in runs[0].items():
        other = runs[1].get(name)
        scale = float(value.abs().max()) if value.numel() else 0.0
        if other is None or other.shape != value.shape or float((value - other).abs().max()) > tolerance * scale:
            return f"the module {name!r}" if name else "the model"
    return None


def _keep(name: str, outputs: dict[str, Tensor]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and name not in outputs and first.is_floating_point():
            outputs[name] = first.detach().double()

    return hook


def random_causes(problem: Problem, batch: Batch) -> Iterator[str]:
    """Why L(w) may differ from call to call or with the division into batches, in words for the user."""
    if problem.batches.reread_differs():
        fate = "its first pass is kept" if problem.batches.kept is not None else "every evaluation will see other data"
        yield f"the loader gives other batches each time (shuffling, augmentation): {fate}; pass shuffle=False"

    def probe() -> Sequence[Tensor]:
        with problem.values():
            outputs = problem.forward(batch)
            logits = logits_in(outputs)
            loss = problem.batch_loss(outputs, batch).detach()
            return [loss.clone()] if logits is None else [loss.clone(), logits.detach().clone()]

    evaluator, first, second = problem.evaluator, probe(), probe()
    # Atomic additions on a GPU reorder sums: differences of rounding are no random operation.
    same = (torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True) for a, b in zip(first, second, strict=True))
    if not all(same):
        yield _random_cause(problem.model, evaluator.evaluation_mode)
    if not evaluator.evaluation_mode and any(m.training for m in evaluator.batch_norms):
        yield "BatchNorm is in training mode: L(w) depends on how the examples are divided into batches"
    elif problem.batch_norm != "batch" and any(not m.track_running_stats for m in evaluator.batch_norms):
        yield "a BatchNorm keeps no running statistics: L(w) depends on how the examples are divided into batches"


def _random_cause(model: nn.Module, evaluation_mode: bool) -> str:
    training = [n or type(m).__name__ for n, m in model.named_modules() if "Dropout" in type(m).__name__ and m.training]
    if not evaluation_mode and training:
        return f"dropout is on ({', '.join(training[:3])}): two evaluations of L(w) differ; call model.eval()"
    return (
        "two forward passes on the same batch differ: the model draws random numbers in evaluation mode "
        "(F.dropout without training=self.training, noise) or carries state; every number will scatter"
    )
