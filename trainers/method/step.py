"""Step: the passes that a method may make on one batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.ball.perturbation import perturbed
from landscape.errors import InputError
from landscape.problem.batches import Batch
from landscape.random import stream
from trainers.method import network
from trainers.method.averages import sum_over_processes
from trainers.method.batch_norm import ONE_VALUE
from trainers.method.context import Context, Pass, Rows

if TYPE_CHECKING:
    from trainers.method.task import Task


class Step:
    """The passes that a method may make on one batch: `forward`, `backward`, `outputs_with`, within `perturbed`.

    Attributes:
        task: model, loss, optimizer.
        parameters: the trainable tensors, each once.
        layout: `landscape.Parameters`: names and kinds of these tensors, in the same order.
        batch: the examples of this process, or of this m-group.
        context: where training stands; see `Context`.
        memory: lives for this step alone, from `compute` to `after_step`.
        losses: of the passes that were made, 0-dim each, of all m-groups.
        size: examples in the scope of one perturbation: of the global batch, of this process, or of this m-group.
        reached: ids of the parameters that a pass of this step gave a gradient; the others are left without one, which
            the base optimizer passes over: zeros would let weight decay and momentum move them.
    """

    def __init__(
        self,
        task: Task,
        batch: Batch,
        context: Context | None,
        indices: Tensor | None,
        sizes: tuple[int, ...],
        group: int | None = None,
    ) -> None:
        self.task, self.batch, self._context = task, batch, context
        self.parameters, self.layout = task.parameters, task.layout
        self.memory: dict[str, Any] = {}
        self.shared = task.world > 1 and task.synchronized and task.group_size is None
        self.size = sum(sizes) if self.shared else batch.size
        self.sizes, self.overflow = sizes, None
        if task.scaler is not None:
            self.overflow = torch.zeros((), dtype=torch.float32, device=task.device)
        self._indices, self._group = indices, group
        self.losses: list[Tensor] = []
        self._statistics_moved = False
        self.reached: set[int] = set()
        self._random: dict[str, Tensor] | None = None

    # -- what a method knows ---------------------------------------------------------------------------------------

    @property
    def context(self) -> Context:
        """Where training stands, for methods that draw or follow a schedule.

        Raises:
            InputError: nobody said; each step would do what the first one does.
        """
        if self._context is None:
            raise InputError(
                "this method draws at random or follows a schedule, and task.step was not told where training stands: "
                "give task.step(batch, Context(step=i, epoch=..., progress=i / total_steps, lr=...))"
            )
        return self._context

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
        """The gradient of the last `backward`, one tensor per parameter; zeros where nothing was differentiated.

        The tensors stay valid and unchanged: the next `backward` makes new ones.
        """
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]

    def leave(self, gradients: Sequence[Tensor]) -> None:
        """Put a gradient, one tensor per parameter, in place of the last `backward`'s.

        Parameters that no pass of the step has reached stay without one.
        """
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            # A 0-dim parameter's gradient has taken the dtype of 0-dim factors.
            parameter.grad = gradient.to(parameter.dtype) if id(parameter) in self.reached else None

    def reach_everywhere(self) -> None:
        """Count a parameter as reached where a pass of any process reached it."""
        flags = torch.tensor([float(id(p) in self.reached) for p in self.parameters], device=self.task.device)
        sum_over_processes([flags])
        self.reached = {id(p) for p, f in zip(self.parameters, flags.tolist(), strict=True) if f}

    # -- parts of the batch ----------------------------------------------------------------------------------------

    def largest(self, values: Tensor, k: int) -> Rows:
        """The k examples of the scope with the largest of `values` (one per example of this process; ties as topk)."""
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
            objective: gets the `Pass` with its graph, returns what is differentiated instead of the loss: one value per
                example, of which the mean is taken, or a scalar mean.
            inputs: differentiate with respect to these parameters alone; the others get no gradient, and no work.
            statistics: whether BatchNorm statistics move; None: in the first pass of the step.
        """
        for parameter in self.parameters:
            parameter.grad = None
        self.task.passes.forward += self._counted(rows)
        self.task.passes.backward += self._counted(rows)
        if self._absent(rows):
            result = self._nothing()
        else:
            with torch.enable_grad():
                result = self._run(rows, statistics)
                self._share(result, rows, objective).backward(inputs=None if inputs is None else list(inputs))
        self._finish(self.parameters if inputs is None else inputs)
        return result.detached()

    def outputs_with(self, tensors: dict[str, Tensor]) -> Tensor:
        """Logits of the batch with other weights and buffers in the model, in evaluation mode: one forward, no graph.

        Args:
            tensors: dotted name -> tensor, as `Task.named_tensors` gives them.
        """
        self.task.passes.forward += self._counted(None)
        with torch.no_grad(), self.task.slots.lent(tensors), self.task.autocast():
            return network.logits_of(self.task.outputs(self.batch))

    def perturbed(self, epsilon: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        """Context in which the weights are w + epsilon; afterwards, also after an exception, w to the last bit."""
        return perturbed(self.parameters, epsilon)

    def groups(self) -> Iterator[Step]:
        """The step divided into m-groups of `task.group_size` examples, the last one maybe smaller."""
        size = self.task.group_size or self.batch.size
        for i, start in enumerate(range(0, self.batch.size, size)):
            rows = slice(start, start + size)
            indices = None if self._indices is None else self._indices[rows]
            group = Step(self.task, self.batch.rows(rows.start, rows.stop), self._context, indices, self.sizes, i)
            group.losses = self.losses
            yield group

    # -- inner -----------------------------------------------------------------------------------------------------

    def _run(self, rows: Rows | None, statistics: bool | None) -> Pass:
        task, batch = self.task, self.batch if rows is None else _selected(self.batch, rows.index)
        moves = not self._statistics_moved if statistics is None else statistics
        self._statistics_moved |= moves
        if task.same_masks:
            self._align_masks()
        with network.frozen_statistics(() if moves else task.norms), task.autocast():
            try:
                outputs = task.outputs(batch)
            except ValueError as error:
                if "more than 1 value per channel" in str(error):
                    raise InputError(ONE_VALUE) from error
                raise
        logits = network.logits_of(outputs)
        value = outputs.loss if task.loss is None else task.loss(logits, batch.target)
        self.losses.append(value.detach().sum())
        if value.dim() == 0:
            return Pass(value, logits, batch.target)
        if value.shape != (batch.size,):
            raise InputError(
                f"the loss returned shape {tuple(value.shape)} for {batch.size} examples: one value per example, "
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

    def _share(self, result: Pass, rows: Rows | None, objective: Callable[[Pass], Tensor] | None) -> Tensor:
        """What is differentiated here: this process's part of the mean over the scope."""
        if objective is not None:
            value = objective(result)
        else:
            value = result.loss if result.example_losses is None else result.example_losses
        total = result.size
        if self.shared:
            total = self.size if rows is None else rows.total
        if value.dim():
            # Summed and divided by the number in the whole scope: exact for any division among processes.
            share = value.sum() / total
        else:
            share = value if total == result.size else value * (result.size / total)
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
        self._require_dense()
        self._reduce(inputs)
        self.reached.update(id(p) for p in inputs if p.grad is not None)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.overflow is not None and gradients:
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, self.overflow, self.task.scale().reciprocal())
        for parameter, coefficient in self.task.decayed:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=coefficient)

    def _require_dense(self) -> None:
        for slot, parameter in zip(self.layout, self.parameters, strict=True):
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise InputError(
                    f"the gradient of {slot.name} is sparse, and methods compute with dense ones: "
                    "build the layer with sparse=False"
                )

    def everywhere(self, values: Tensor) -> Tensor:
        """Rows of all processes, one process after the other: (n, ...) here -> (n of the global batch, ...)."""
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
        absent = [p.grad is None for p in inputs]
        here = torch.tensor([float(not a) for a in absent], device=self.task.device)
        for parameter in inputs:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        sum_over_processes([here, *(p.grad for p in inputs if p.grad is not None)])
        if any(absent):  # only who lacks a gradient waits to hear whether another process has one
            for parameter, count in zip(inputs, here.tolist(), strict=True):
                parameter.grad = parameter.grad if count else None

    def _rows(self, chosen: Tensor, total: int) -> Rows:
        if self.shared:
            start = sum(self.sizes[: self.task.rank])
            chosen = chosen[(chosen >= start) & (chosen < start + self.batch.size)] - start
        return Rows(chosen, total)


def _selected(batch: Batch, index: Tensor) -> Batch:
    part = batch.map(lambda t: t[index] if t.dim() and t.shape[0] == batch.size else t)
    return Batch(part.args, part.kwargs, part.target, len(index))
