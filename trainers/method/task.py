"""Task: what is trained, and how its passes are made.

What is taken care of here and in `trainers.method.step`, once for all methods: the mean over the batch, processes,
mixed precision, weight decay inside the perturbed loss, BatchNorm statistics, equal dropout masks in all passes of a
step, and the count of forward and backward examples.
"""

from __future__ import annotations

import contextlib
import math
import operator
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape import processes
from landscape.errors import InputError
from landscape.problem import structure
from landscape.problem.batch_passes import Passes
from landscape.problem.batches import Batch, as_batch
from landscape.problem.evaluator import require_derivatives
from landscape.problem.fully_shard import reshard
from landscape.problem.parameters import Parameters
from trainers.method import network, sharded
from trainers.method.batch_norm import SynchronizedBatchNorm
from trainers.method.context import Context
from trainers.method.step import Step
from trainers.names import whole_number

PRECISIONS = ("float32", "bfloat16", "float16")


class Task:
    """What is trained and how its passes are made; built once per run.

    Args:
        model: the network, wrapped in DistributedDataParallel or not. Gradients are summed over the processes here,
            after the passes that need it: DDP's hooks would fire in every pass of a step.
        loss: loss(outputs, targets) with one value per example (reduction="none"), or a mean-reduced scalar, which
            serves the methods that neither rank nor weigh examples. None: the model returns its own, `outputs.loss`.
        optimizer: the base optimizer, for methods that read its momentum.
        precision: "float32" (no autocast), "bfloat16" or "float16".
        scaler: a torch.amp.GradScaler. Methods see unscaled gradients; the one they leave is scaled again, as
            `scaler.step` expects it, and is nan if a gradient of any pass was not finite, so that the step is skipped.
        decay: L2 coefficients that belong to the perturbed loss ("weight decay inside"), one per parameter tensor: each
            pass adds decay * w to the gradient. None leaves the decay to the optimizer ("outside").
        group_size: m of m-sharpness: the batch is divided into groups of m examples, each with its own perturbation.
        synchronized: with several processes, one perturbation for the global batch (True) or one per process.
        same_masks: every pass of a step draws the same from torch's global streams (dropout's masks), as the authors'
            JAX code of SAM does.
        closures: the passes are a user's closures, for which `fully_shard` may have divided the parameters.
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
        closures: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, received {precision!r}")
        group_size = None if group_size is None else whole_number("m", group_size, 1)
        if not closures:
            sharded.require_whole(model)
        self.sharded = closures and sharded.is_sharded(model)
        self.model, self.loss, self.optimizer = network.unwrapped(model), loss, optimizer
        self.find_parameters()
        self.precision = None if precision == "float32" else getattr(torch, precision)
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.group_size, self.synchronized = group_size, synchronized
        self.same_masks = same_masks
        self.passes = Passes()
        self._writes_inputs: bool | None = None  # known after the first pass
        self.world, self.rank = processes.world(), processes.rank()
        decay = [0.0] * len(self.parameters) if decay is None else decay
        if len(decay) != len(self.parameters) or not all(0 <= c < math.inf for c in decay):
            raise InputError(
                f"decay must hold a coefficient of at least 0 for each of the {len(self.parameters)} trainable "
                f"parameters, received {reprlib.repr(decay)}"
            )
        self.decayed = [(p, c) for p, c in zip(self.parameters, decay, strict=True) if c]

    def find_parameters(self) -> None:
        """Take up the model as it is now: `layout`, its trainable `parameters`, and layers that are treated apart."""
        reshard(self.model)
        self.layout = Parameters.of(self.model)
        named = dict(self.model.named_parameters())
        self.parameters = [named[slot.name] for slot in self.layout]
        self.norms = network.statistics_of(self.model)
        self._modules = list(self.model.modules())
        self.meets = any(isinstance(m, SynchronizedBatchNorm) for m in self._modules)
        self.slots = network.TensorSlots(self.model)
        self._trainable = [(p, p.requires_grad) for p in named.values()]
        self._held = self._held_now()

    @property
    def device(self) -> torch.device:
        """Where the parameters are by now: Accelerate moves them after an optimizer was made."""
        return self.parameters[0].device

    @property
    def outdated(self) -> bool:
        """Whether a parameter was frozen, unfrozen, added or replaced since `find_parameters`."""
        now = self._held_now()
        same = len(now) == len(self._held) and all(map(operator.is_, now, self._held))
        return not same or any(p.requires_grad != before for p, before in self._trainable)

    def _held_now(self) -> list[nn.Module | Tensor | None]:
        """What is in the modules that were seen; new modules hang from one of them."""
        return [held for m in self._modules for slots in (m._modules, m._parameters) for held in slots.values()]

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
            context: where training stands; methods that draw at random or follow a schedule need it.
            indices: (n,) int64, the place of each example in the training set.
            sizes: examples on each process; None means as many as here.

        Raises:
            InputError: parameters were frozen, unfrozen, added or replaced since the Task was made; a call within
                torch.inference_mode().
        """
        require_derivatives("a step")
        if self.outdated:
            raise InputError(
                "parameters were frozen or unfrozen since this Task was made, or added or replaced: make a new Task, "
                "and a new state by method.init"
            )
        batch = batch if isinstance(batch, Batch) else as_batch(batch, keep_target=self.loss is None)
        sizes = (batch.size,) * self.world if sizes is None else tuple(sizes)
        return Step(self, batch, context, indices, sizes)

    def named_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by dotted name: the model's own tensors, detached."""
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: tensor.detach() for name, tensor in named}

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """A fresh context a pass: its cache of cast weights must not outlive a perturbation."""
        return network.autocast(self.device, self.precision)

    def outputs(self, batch: Batch) -> Any:
        """What the model returns; the batch stays as it is for the next pass where the model writes to its inputs."""
        args, kwargs = batch.args, batch.kwargs
        if self._writes_inputs is not False:
            args, kwargs = structure.mapped((args, kwargs), torch.clone)
        if self._writes_inputs is not None:
            return self.model(*args, **kwargs)
        before = [(t, t._version) for t in structure.tensors((args, kwargs))]
        returned = self.model(*args, **kwargs)
        self._writes_inputs = any(t._version != version for t, version in before)
        return returned

    def scale(self) -> Tensor:
        """The scaler's present factor, 0-dim, without a host synchronization."""
        assert self.scaler is not None
        return self.scaler.scale(torch.ones((), dtype=torch.float32, device=self.device))
