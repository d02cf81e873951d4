"""What is looked at when a Problem is made: is the loss a function of the weights, the same one at every call?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from landscape.curvature.products import second_derivative
from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.problem.outputs import logits_of

if TYPE_CHECKING:
    from landscape.problem.problem import Problem


def require_function_of_weights(problem: Problem, batch: Batch) -> None:
    """One forward pass at copies of the weights, with a graph that saves nothing.

    Raises:
        InputError: forward() writes to a parameter, or reaches one past its module and would keep the old one.
    """
    leaves = [t.detach().clone().requires_grad_() for t in problem.leaves()]
    nothing_saved = torch.autograd.graph.saved_tensors_hooks(lambda t: None, lambda t: t)  # the memory of a forward
    try:
        with torch.enable_grad(), problem.bound_tensors(leaves), nothing_saved:
            loss = problem.batch_loss(problem.forward(batch), batch)
    except Exception:
        return  # no derivative (the first one asked for will say why), or one that forward() itself takes
    names = problem.parameters.names
    for name, leaf in zip(names, leaves, strict=True):
        if leaf._version:
            raise InputError(
                f"the forward pass writes to the parameter {name!r} (an embedding with max_norm does), so that the "
                "loss is no function of the weights: take that out, or do it once before"
            )
    own = {id(p): name for name, p in problem.model.named_parameters() if name in names}
    for leaf in second_derivative.leaves(loss):
        if id(leaf) in own:
            raise InputError(
                f"the model or the loss uses the parameter {own[id(leaf)]!r} by a reference of its own (a list, "
                "a closure, a cached tensor), past the module that holds it, so that the loss at other weights "
                "cannot be computed: let it be read from its module at every call"
            )


def random_causes(problem: Problem, batch: Batch) -> Iterator[str]:
    """Why L(w) may differ from call to call or with the division into batches, in words for the user."""
    if problem.batches.reread_differs():
        fate = "its first pass is kept" if problem.batches.kept is not None else "every evaluation will see other data"
        yield f"the loader gives other batches each time (shuffling, augmentation): {fate}; pass shuffle=False"

    def probe() -> Tensor:
        with torch.no_grad(), problem.bound():
            outputs = problem.forward(batch)
            problem.batch_loss(outputs, batch)
            return logits_of(outputs).detach().clone()

    evaluator, first, second = problem._evaluator, probe(), probe()
    # Atomic additions on a GPU reorder sums: differences of rounding are no random operation.
    if not torch.allclose(first, second, rtol=1e-5, atol=1e-6, equal_nan=True):
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
