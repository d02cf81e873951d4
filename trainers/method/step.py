"""Task and Step: what a method gets, and the passes that it may make.

What is taken care of here, once for all methods: the mean over the batch, processes, mixed precision, weight decay
inside the perturbed loss, BatchNorm statistics, equal dropout masks in all passes of a step, and the count of forward
and backward examples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape import processes
from landscape.ball.perturbation import perturbed
from landscape.errors import InputError
from landscape.problem.batches import Batch, as_batch
from landscape.problem.parameters import Parameters
from landscape.problem.problem import Passes
from landscape.random import stream
from trainers.method import network
from trainers.method.batch_norm import ONE_VALUE, SynchronizedBatchNorm
from trainers.method.context import Context, Pass, Rows

PRECISIONS = ("float32", "bfloat16", "float16")


class Task:
    """What is trained and how its passes are made; built once a run.

    Args:
        model: the network, wrapped in DistributedDataParallel or not. Gradients are summed over the processes here,
            after the passes that need it: DDP's hooks would fire in every pass of a step.
        loss: loss(outputs, targets) with one value an example (reduction="none"), or a mean-reduced scalar, which
            serves the methods that neither rank nor weigh examples. None: the model returns its own, `outputs.loss`.
        optimizer: the base optimizer, for methods that read its momentum.
        precision: "float32" (no autocast), "bfloat16" or "float16".
        scaler: a torch.amp.GradScaler. Methods see unscaled gradients; the one they leave is scaled again, as
            `scaler.step` expects it, and is nan if a gradient of any pass was not finite, so that the step is skipped.
        decay: L2 coefficients that belong to the perturbed loss ("weight decay inside"), one a parameter tensor: each
            pass adds decay * w to the gradient. None leaves the decay to the optimizer ("outside").
        group_size: m of m-sharpness: the batch is divided into groups of m examples, each with its own perturbation.
        synchronized: with several processes, one perturbation for the global batch (True) or one a process.
        same_masks: dropout draws the same masks in every pass of a step, as the authors' JAX code of SAM does.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor] | None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        precision: str = "float32",
        scaler: torch.amp.GradScaler | None = None,
        decay: Sequence[float] | None = None,
        group_size: int | None = None,
        synchronized: bool = True,
        same_masks: bool = True,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, received {precision!r}")
        if group_size is not None and group_size < 1:
            raise InputError(f"m must be at least 1 example a group, received {group_size}")
        network.require_whole(model)
        self.model, self.loss, self.optimizer = network.unwrapped(model), loss, optimizer
        self.layout = Parameters.of(self.model)
        named = dict(self.model.named_parameters())
        self.parameters = [named[slot.name] for slot in self.layout]
        self.device = self.parameters[0].device
        self.precision = None if precision == "float32" else getattr(torch, precision)
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.group_size, self.synchronized = group_size, synchronized
        self.norms = network.statistics_of(self.model)
        self.meets = any(isinstance(m, SynchronizedBatchNorm) for m in self.model.modules())
        self.places = network.Places(self.model)
        self.same_masks = same_masks and network.draws_masks(self.model)
        self.passes = Passes()
        self.world, self.rank = processes.world(), processes.rank()
        pairs = zip(self.parameters, decay or [0.0] * len(self.parameters), strict=True)
        self.decayed = [(p, c) for p, c in pairs if c]

    def step(
        self,
        batch: Any,
        context: Context | None = None,
        *,
        indices: Tensor | None = None,
        sizes: Sequence[int] | None = None,
    ) -> Step:
        """One optimization step on a batch.

        Args:
            batch: (inputs, targets), a dict as Hugging Face gives it, or a `Batch` of `landscape.problem`; this
                process's.
            context: where training stands.
            indices: (n,) int64, the place of each example in the training set.
            sizes: examples on each process; None means as many as here.
        """
        batch = batch if isinstance(batch, Batch) else as_batch(batch, keep_target=self.loss is None)
        sizes = (batch.size,) * self.world if sizes is None else tuple(sizes)
        return Step(self, batch, context or Context(), indices, sizes)

    def named_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by dotted name: the model's own tensors, detached."""
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: tensor.detach() for name, tensor in named}

    def autocast(self) -> Any:
        """A fresh context a pass: its cache of cast weights must not outlive a perturbation."""
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def scale(self) -> Tensor:
        """The scaler's present factor, 0-dim, without a host synchronization."""
        assert self.scaler is not None
        return self.scaler.scale(torch.ones((), device=self.device))


class Step:
    """The passes that a method may make on one batch: `forward`, `backward`, `outputs_with`, within `perturbed`.

    Attributes:
        task: model, loss, optimizer.
        parameters: the trainable tensors, each once.
        layout: `landscape.Parameters`: names and kinds of these tensors, in the same order.
        batch: the examples of this process, or of this m-group.
        context: where training stands.
        memory: lives for this step alone, from `compute` to `after_step`.
        size: examples in the scope of one perturbation: of the global batch, of this process, or of this m-group.
    """

    def __init__(
        self,
        task: Task,
        batch: Batch,
        context: Context,
        indices: Tensor | None,
        sizes: tuple[int, ...],
        group: int | None = None,
    ) -> None:
        self.task, self.batch, self.context = task, batch, context
        self.parameters, self.layout = task.parameters, task.layout
        self.memory: dict[str, Any] = {}
        self.shared = task.world > 1 and task.synchronized and task.group_size is None
        self.size = sum(sizes) if self.shared else batch.size
        self.sizes, self.overflow = sizes, None if task.scaler is None else torch.zeros((), device=task.device)
        self._indices, self._group = indices, group
        self._statistics_moved = False
        self._random: dict[str, Tensor] | None = None

    # -- what a method knows ---------------------------------------------------------------------------------------

    @property
    def indices(self) -> Tensor:
        """Place of each example in the training set, (n,) int64."""
        if self._indices is None:
            raise InputError(
                "this method keeps something for every example and the loader gives no indices: have the dataset "
                "return (inputs, targets, index) and call task.step((inputs, targets), context, indices=index)"
            )
        return self._indices

    def generator(self, name: str, device: torch.device | None = None) -> torch.Generator:
        """A generator for the purpose `name` in this step; the same on all processes and in all m-groups.

        It depends on the run's seed, the step and the name alone: a resumed run draws the same. Noise for tensors is
        drawn on their `device`; everything else on the CPU.
        """
        cpu = stream(self.context.seed, f"{name}:{self.context.step}")
        if device is None or device.type == "cpu":
            return cpu
        return torch.Generator(device).manual_seed(cpu.initial_seed())

    def gradients(self) -> list[Tensor]:
        """The gradient of the last `backward`, one tensor a parameter; zeros where nothing was differentiated.

        The tensors stay valid and unchanged: the next `backward` makes new ones.
        """
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]

    def leave(self, gradients: Sequence[Tensor]) -> None:
        """Put a gradient, one tensor a parameter, in place of the last `backward`'s."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    # -- parts of the batch ----------------------------------------------------------------------------------------

    def largest(self, values: Tensor, k: int) -> Rows:
        """The k examples of the scope with the largest of `values` (one an example of this process; ties as topk)."""
        values = values.detach().float()
        values = self.everywhere(values) if self.shared else values
        return self._rows(torch.topk(values, k, sorted=False).indices, k)

    def sample(self, k: int, name: str) -> Rows:
        """Draw k examples of the scope, without replacement."""
        name = f"{name}:{self._group}" if self._group else name
        chosen = torch.randperm(self.size, generator=self.generator(name))[:k]
        return self._rows(chosen.to(self.task.device, non_blocking=True), k)

    # -- passes ----------------------------------------------------------------------------------------------------

    def forward(self, *, rows: Rows | None = None, statistics: bool | None = None) -> Pass:
        """A forward pass without a graph, at the present weights.

        Args:
            rows: the part of the batch; None is all of it.
            statistics: whether BatchNorm statistics move; None: in the first pass of the step.
        """
        self.task.passes.forward += self._counted(rows)
        if self._absent(rows):
            return self._nothing()
        with torch.no_grad():
            return self._run(rows, statistics)

    def backward(
        self,
        *,
        rows: Rows | None = None,
        objective: Callable[[Pass], Tensor] | None = None,
        inputs: Sequence[Tensor] | None = None,
        statistics: bool | None = None,
    ) -> Pass:
        """A forward and a backward pass at the present weights; the gradient of the mean replaces that in `.grad`.

        Args:
            rows: the part of the batch; None is all of it.
            objective: gets the `Pass` with its graph, returns what is differentiated instead of the loss: one value an
                example, of which the mean is taken, or a scalar mean.
            inputs: differentiate with respect to these parameters alone; the others get no gradient, and no work.
            statistics: whether BatchNorm statistics move; None: in the first pass of the step.
        """
        for parameter in self.parameters:
            parameter.grad = None
        self.task.passes.forward += self._counted(rows)
        self.task.passes.backward += self._counted(rows)
        if self._absent(rows):
            made = self._nothing()
        else:
            with torch.enable_grad():
                made = self._run(rows, statistics)
                self._share(made, rows, objective).backward(inputs=None if inputs is None else list(inputs))
        self._finish(self.parameters if inputs is None else inputs)
        return made.detached()

    def outputs_with(self, tensors: dict[str, Tensor]) -> Tensor:
        """Logits of the batch with other weights and buffers in the model, in evaluation mode: one forward, no graph.

        Args:
            tensors: dotted name -> tensor, as `Task.named_tensors` gives them.
        """
        self.task.passes.forward += self._counted(None)
        with torch.no_grad(), self.task.places.lent(tensors), self.task.autocast():
            return network.logits_of(self.task.model(*self.batch.args, **self.batch.kwargs))

    def perturbed(self, epsilon: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        """Context in which the weights are w + epsilon; afterwards, also after an exception, w to the last bit."""
        return perturbed(self.parameters, epsilon)

    def groups(self) -> Iterator[Step]:
        """The step divided into m-groups of `task.group_size` examples, the last one maybe smaller."""
        size = self.task.group_size or self.batch.size
        for i, start in enumerate(range(0, self.batch.size, size)):
            rows = slice(start, start + size)
            indices = None if self._indices is None else self._indices[rows]
            yield Step(self.task, self.batch.rows(rows.start, rows.stop), self.context, indices, self.sizes, i)

    # -- inner -----------------------------------------------------------------------------------------------------

    def _run(self, rows: Rows | None, statistics: bool | None) -> Pass:
        task, batch = self.task, self.batch if rows is None else _selected(self.batch, rows.index)
        moves = not self._statistics_moved if statistics is None else statistics
        self._statistics_moved |= moves
        if task.same_masks:
            self._align_masks()
        with network.frozen_statistics(() if moves else task.norms), task.autocast():
            try:
                outputs = task.model(*batch.args, **batch.kwargs)
            except ValueError as error:
                if "more than 1 value per channel" in str(error):
                    raise InputError(ONE_VALUE) from error
                raise
        logits = network.logits_of(outputs)
        value = outputs.loss if task.loss is None else task.loss(logits, batch.target)
        if value.dim() == 0:
            return Pass(value, logits, batch.target)
        if value.shape != (batch.size,):
            raise InputError(
                f"the loss returned shape {tuple(value.shape)} for {batch.size} examples: one value an example, "
                f"({batch.size},), or a mean-reduced scalar is needed"
            )
        return Pass(value.mean(), logits, batch.target, value)

    def _counted(self, rows: Rows | None) -> int:
        """Examples of a pass on all processes together: the same number on each of them."""
        if self.shared:
            return self.size if rows is None else rows.total
        local = self.batch.size if rows is None else len(rows.index)
        return local * sum(self.sizes) // self.sizes[self.task.rank]

    def _align_masks(self) -> None:
        if self._random is None:
            self._random = network.random_state(self.task.device)
        else:
            network.set_random_state(self.task.device, self._random)

    def _share(self, made: Pass, rows: Rows | None, objective: Callable[[Pass], Tensor] | None) -> Tensor:
        """What is differentiated here: this process's part of the mean over the scope."""
        if objective is not None:
            value = objective(made)
        else:
            value = made.loss if made.example_losses is None else made.example_losses
        total = made.size
        if self.shared:
            total = self.size if rows is None else rows.total
        if value.dim():
            # Summed and divided by the number in the whole scope: exact for any division among processes.
            share = value.sum() / total
        else:
            share = value if total == made.size else value * (made.size / total)
        return share if self.task.scaler is None else self.task.scaler.scale(share)

    def _absent(self, rows: Rows | None) -> bool:
        """Whether none of the rows is here and no layer has to meet the other processes in the pass."""
        return rows is not None and not len(rows.index) and not (self.task.meets and self.shared)

    def _nothing(self) -> Pass:
        """No chosen row is in this process: it adds nothing to the sum over processes."""
        empty = torch.zeros(0, device=self.task.device)
        return Pass(torch.zeros((), device=self.task.device), empty, None, empty)

    def _finish(self, inputs: Sequence[Tensor]) -> None:
        """Sum the gradients over the processes, unscale them, add the decay that belongs to the loss."""
        self._reduce(inputs)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.overflow is not None and gradients:
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.overflow, self.task.scale().reciprocal())
        for parameter, coefficient in self.task.decayed:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=coefficient)

    def everywhere(self, values: Tensor) -> Tensor:
        """Rows of all processes, one a process after the other: (n, ...) here -> (n of the global batch, ...)."""
        if self.task.world == 1:
            return values
        padded = values.new_zeros(max(self.sizes), *values.shape[1:])
        padded[: len(values)] = values
        pieces = [torch.empty_like(padded) for _ in self.sizes]
        torch.distributed.all_gather(pieces, padded)
        return torch.cat([p[:n] for p, n in zip(pieces, self.sizes, strict=True)])

    def _reduce(self, inputs: Sequence[Tensor]) -> None:
        if not self.shared:
            return
        for parameter in inputs:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        sum_over_processes([p.grad for p in inputs if p.grad is not None])

    def _rows(self, chosen: Tensor, total: int) -> Rows:
        if self.shared:
            start = sum(self.sizes[: self.task.rank])
            chosen = chosen[(chosen >= start) & (chosen < start + self.batch.size)] - start
        return Rows(chosen, total)


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over all processes, in place, in one bucket a dtype."""
    for dtype in {t.dtype for t in tensors}:
        same = [t for t in tensors if t.dtype == dtype]
        bucket = torch.cat([t.reshape(-1) for t in same])
        torch.distributed.all_reduce(bucket)
        pieces = bucket.split([t.numel() for t in same])
        torch._foreach_copy_(same, [p.view_as(t) for p, t in zip(pieces, same, strict=True)])


def _selected(batch: Batch, index: Tensor) -> Batch:
    part = batch.map(lambda t: t[index] if t.dim() and t.shape[0] == batch.size else t)
    return Batch(part.args, part.kwargs, part.target, len(index))
